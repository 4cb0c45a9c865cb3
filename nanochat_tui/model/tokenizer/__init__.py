"""Tokenizers: loading a `tokenizer.json`, and the text conventions of a GGUF file with the tokenizer inside it.

`codec_from_gguf` is the entry for every architecture; how a file's arrays become a tokenizer is in `from_gguf`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import Tokenizer

from nanochat_tui.formats.gguf.values import (
    GGUFValue,
    metadata_bool,
    metadata_int,
    metadata_strings,
)
from nanochat_tui.formats.recognise import HEAD_BYTES, recognise, require_regular
from nanochat_tui.model.tokenizer.codec import StreamDecoder, TextCodec
from nanochat_tui.model.tokenizer.errors import TokenizerError
from nanochat_tui.model.tokenizer.from_gguf import (
    END_NAMES,
    END_OF_TEXT,
    FileTokenizer,
    byte_level_bpe,
    from_gguf_metadata,
    read_tokenizer,
    to_gguf_metadata,
)
from nanochat_tui.model.tokenizer.infill import KEYS, OLD_KEYS, FileMarks, InfillMarks, marks_by_name
from nanochat_tui.model.tokenizer.patterns import repaired_names
from nanochat_tui.text import display_safe

__all__ = [
    "END_OF_TEXT",
    "StreamDecoder",
    "TextCodec",
    "TokenizerError",
    "byte_level_bpe",
    "codec_from_gguf",
    "from_gguf_metadata",
    "load_tokenizer",
    "to_gguf_metadata",
]


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises TokenizerError if the file is missing, unreadable or not a tokenizer.
    """
    name = display_safe(str(path))
    try:
        require_regular(path)
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"the tokenizer {name} cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise TokenizerError(f"{name} is not a tokenizer.json: it is {_kind(path)}") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        what = _kind(path) if not text.lstrip("\ufeff \t\r\n").startswith("{") else display_safe(str(error))
        raise TokenizerError(f"{name} is not a tokenizer.json: it is {what}") from error


def _kind(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return recognise(file.read(HEAD_BYTES)) or "not UTF-8 JSON text; check which file was given"


def codec_from_gguf(metadata: Mapping[str, GGUFValue], tokenizer: Tokenizer | None = None) -> TextCodec:
    """Return the text conventions of a GGUF file, with its own tokenizer or a given one in its place.

    What had to be assumed or corrected is in `TextCodec.notes`.
    Raises UserError if the tokenizer or a convention is damaged, or the given tokenizer has other ids.
    """
    inside = tokenizer is None
    if tokenizer is None:
        found = read_tokenizer(metadata)
    else:
        if "tokenizer.ggml.tokens" in metadata:
            names, _ = repaired_names(metadata_strings(metadata, "tokenizer.ggml.tokens"))
            _require_same_tokens(tokenizer, names)
        # a file without a tokenizer says nothing, and then the given one's own convention holds
        end = tokenizer.token_to_id(END_OF_TEXT)
        found = FileTokenizer(tokenizer, add_bos=False, default_bos=end, default_eos=end)
    tokenizer = found.tokenizer
    size = tokenizer.get_vocab_size(with_added_tokens=True)

    def token_id(which: str, default: int | None = None) -> int | None:
        given = metadata_int(metadata, f"tokenizer.ggml.{which}_token_id", -1, maximum=2**32 - 1)
        if given in (-1, 2**32 - 1):  # some converters write "none" as all ones
            return default
        if given >= size:
            raise TokenizerError(f"the file's {which} token {given} is outside its vocabulary of {size} tokens")
        return given

    bos, eos = token_id("bos", found.default_bos), token_id("eos", found.default_eos)
    notes = list(found.notes)
    if inside and bos is None and found.add_bos:
        bos = tokenizer.token_to_id("<|begin_of_text|>")
    add_bos = metadata_bool(metadata, "tokenizer.ggml.add_bos_token", found.add_bos)
    ends = {eos, token_id("eot"), token_id("eom")}
    marks = tokenizer.get_added_tokens_decoder()
    ends |= {index for index, mark in marks.items() if mark.content in END_NAMES and mark.special}
    # some models end a middle with these; llama.cpp takes them for ends as well
    ends |= {token_id(f"fim_{which}") for which in ("pad", "rep", "sep")}
    return TextCodec(
        tokenizer,
        bos=bos,
        eos=eos,
        add_bos=add_bos,
        indentation=metadata_int(metadata, "nanochat.text.indentation", 0, maximum=16),
        ends=frozenset(token for token in ends if token is not None),
        unused=found.unused,
        infill=_infill(token_id, tokenizer),
        file_marks=None if (file := token_id("fim_sep")) is None else FileMarks(file, token_id("fim_rep")),
        notes=tuple(notes),
    )


def _infill(token_id: Callable[[str], int | None], tokenizer: Tokenizer) -> InfillMarks | None:
    """The marks for filling in the middle: those the file names, or special tokens with the names in use."""
    for keys in (KEYS, OLD_KEYS):
        found = [i for i in map(token_id, keys) if i is not None]
        if len(found) == len(keys) == len(set(found)):
            return InfillMarks(*found)
    added = tokenizer.get_added_tokens_decoder()
    return marks_by_name({token.content: index for index, token in added.items() if token.special})


def _require_same_tokens(tokenizer: Tokenizer, names: list[str]) -> None:
    given = tokenizer.get_vocab(with_added_tokens=True)
    if len(given) != len(names) or any(given.get(name) != index for index, name in enumerate(names)):
        raise TokenizerError(
            "the given tokenizer has other tokens than the model; leave it away to use the one inside the file"
        )
