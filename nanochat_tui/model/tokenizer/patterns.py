r"""How text is cut into words before byte-level merges, by the name in `tokenizer.ggml.pre`.

A GGUF file names its rules and does not carry them. The patterns are those of the published tokenizers, as llama.cpp
lists them (src/llama-vocab.cpp); several of one rule are applied one after another, each to what the others left
whole. A vocabulary that is known by sight overrides a name that is missing or wrong: BitNet 2B4T was published
without one, and read by the default rules it writes nonsense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nanochat_tui.model.tokenizer.errors import TokenizerError
from nanochat_tui.text import display_safe


@dataclass(frozen=True, slots=True)
class WordRules:
    """Rules of one family. `patterns` are regular expressions; matches and what lies between become words."""

    patterns: tuple[str, ...]
    add_bos: bool = False
    """Whether a text begins with BOS where the file does not say."""
    ignore_merges: bool = False
    """Whether a word that is a token is taken whole, even where the merges would not lead there."""
    nfc: bool = False
    """Whether text is composed (Unicode NFC) first."""


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _SUFFIX + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACE
_QWEN35 = _SUFFIX + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACE
_LLAMA3 = _SUFFIX + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACE
_HUNYUAN = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r" ?[\p{P}\p{S}]+[\r\n]*|" + _SPACE
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
_PUNCTUATION_TICK = r"[\p{P}\$\+<=>\^~\|`]+"

_RULES: Final[dict[tuple[str, ...], WordRules]] = {
    ("gpt-2", "phi-2", "olmo", "jais", "mpt", "mellum", "modern-bert"): WordRules((_GPT2,)),
    ("qwen2", "hunyuan", "deepseek-r1-qwen"): WordRules((_QWEN2,), nfc=True),
    ("stablelm2",): WordRules((_QWEN2,)),
    ("qwen35",): WordRules((_QWEN35,), nfc=True),
    ("llama-bpe", "llama3", "llama-v3", "falcon-h1"): WordRules((_LLAMA3,), add_bos=True, ignore_merges=True),
    ("smaug-bpe", "dbrx"): WordRules((_LLAMA3,)),
    # upstream reads these by Llama 3's rules; the files were made for Microsoft's fork, which reads them so
    ("falcon3", "falcon_e", "falcon-e"): WordRules((_PUNCTUATION_TICK, _GPT2, "[0-9]")),
    ("falcon",): WordRules((_PUNCTUATION_TICK, _GPT2, "[0-9][0-9][0-9]")),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"): WordRules((r"\p{N}", _GPT2)),
    ("hunyuan-dense", "deepseek-v3", "joyai-llm"): WordRules((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _HUNYUAN)),
    ("default",): WordRules((_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}

WORD_RULES: Final = {name: rules for names, rules in _RULES.items() for name in names}
"""Rules by every name that a file may have for them."""


@dataclass(frozen=True, slots=True)
class _Family:
    """A vocabulary that can be told by tokens at fixed places; every file of it cuts words alike."""

    called: str
    pre: str
    landmarks: tuple[tuple[int, str], ...]
    size: int = 0
    """Entries that no other vocabulary has; they tell it where a file names no rules that are known."""


LLAMA3_SIZE: Final = 128_256
_LLAMA3_BOS: Final = "<|begin_of_text|>"

_FAMILIES: Final = (
    _Family("Llama 3", "llama-bpe", ((128_000, "<|begin_of_text|>"), (128_009, "<|eot_id|>")), LLAMA3_SIZE),
    _Family("Qwen 2 and 3", "qwen2", ((151_643, "<|endoftext|>"), (151_645, "<|im_end|>"))),
    _Family("Qwen 3.5", "qwen35", ((248_044, "<|endoftext|>"), (248_046, "<|im_end|>"))),
    _Family("GPT-2", "gpt-2", ((50_255, "Ġgazed"), (50_256, "<|endoftext|>"))),
)


def word_rules(pre: str, tokens: Sequence[str]) -> tuple[WordRules, str | None]:
    """Return the rules for a file's `tokenizer.ggml.pre` ('' if it has none) and its vocabulary.

    The second is a sentence for people where the rules are not the ones that the file names, or it names none.
    Raises TokenizerError for a name that is not known, unless the vocabulary is.
    """
    named = WORD_RULES.get(pre)
    family = next((one for one in _FAMILIES if _is(one, tokens)), None)
    if family is None and (named is None or pre == "default"):
        family = next((one for one in _FAMILIES if one.size == len(tokens)), None)
    if family is not None:
        right = WORD_RULES[family.pre]
        if named is not None and named.patterns == right.patterns:
            return named, None
        says = f"names the rules “{display_safe(pre)}”" if pre else "does not say how"
        return right, (
            f"the file {says} to split text into words; its vocabulary is that of {family.called}, "
            f"so the rules “{family.pre}” are used"
        )
    if named is not None:
        return named, None
    if not pre:
        return WORD_RULES["default"], (
            "the file does not say how to split text into words and its vocabulary is not a known one; the default "
            "rules are used, which may not be those of its training"
        )
    raise TokenizerError(
        f"the file's tokenizer splits text by the rules of “{display_safe(pre)}”, which this version does not know; "
        "give the model's tokenizer.json with --tokenizer"
    )


def repaired_names(tokens: list[str]) -> tuple[list[str], str | None]:
    """Return a file's tokens without the BOS that some converters put before the name of every mark of Llama 3.

    They asked the tokenizer how it spells a mark, and it put BOS in front as before any text. The second is a sentence
    for people, None where nothing was to be done. Names that would then occur twice are left as they are.
    """
    if len(tokens) != LLAMA3_SIZE:
        return tokens, None
    words, marks = tokens[:128_000], tokens[128_000:]
    short = [mark.removeprefix(_LLAMA3_BOS) or mark for mark in marks]
    if short == marks or len({*short}) != len(marks) or not {*short}.isdisjoint(words):
        return tokens, None
    return words + short, f"the file's converter wrote {_LLAMA3_BOS} before the names of other marks; it is taken away"


def _is(family: _Family, tokens: Sequence[str]) -> bool:
    return all(place < len(tokens) and tokens[place] == token for place, token in family.landmarks)
