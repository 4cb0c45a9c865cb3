"""Fill in the middle: marks of a tokenizer, in GGUF and tokenizer.json, and the ids of a gap."""

import json
from typing import Any

import gguf
import pytest
from support import tiny_tokenizer
from tokenizers import Tokenizer

from nanochat_tui.formats.gguf import u32
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.model.tokenizer import TextCodec, TokenizerError, codec_from_gguf, load_tokenizer, to_gguf_metadata
from nanochat_tui.model.tokenizer.infill import (
    KEYS,
    KNOWN_NAMES,
    NAMES,
    OLD_KEYS,
    InfillMarks,
    add_marks,
    choose_marks,
    marks_by_name,
)

TEXTS = ["fn main() {\n\tlet é = 'ý þ ÿ 中 🦀';\n}\n", " ".join(NAMES), "".join(f"{name}x" for name in NAMES), "ýþÿ"]


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    path = shipped_tokenizer()
    assert path is not None
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def marked(gpt2: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(add_marks(gpt2.to_str(), choose_marks(gpt2)))


def _codec(tokenizer: Tokenizer, marks: InfillMarks | None, **more: Any) -> TextCodec:
    end = tokenizer.token_to_id("<|endoftext|>")
    return codec_from_gguf(to_gguf_metadata(tokenizer, bos=end, eos=end, infill=marks) | more)


def test_keys_are_those_of_the_format() -> None:
    names = gguf.Keys.Tokenizer
    assert [f"tokenizer.ggml.{key}_token_id" for key in KEYS] == [names.FIM_PRE_ID, names.FIM_SUF_ID, names.FIM_MID_ID]
    assert [f"tokenizer.ggml.{key}_token_id" for key in OLD_KEYS] == [
        names.PREFIX_ID,
        names.SUFFIX_ID,
        names.MIDDLE_ID,
    ]


def test_marks_take_ids_that_no_text_has(gpt2: Tokenizer, marked: Tokenizer) -> None:
    marks = choose_marks(gpt2)
    assert [gpt2.token_to_id(c) for c in "ýþÿ"] == list(marks.ids)  # the bytes FD, FE, FF, which UTF-8 never holds
    assert marked.get_vocab_size() == gpt2.get_vocab_size() == 50_257
    assert [marked.id_to_token(i) for i in marks.ids] == list(NAMES)
    others = set(range(50_257)) - set(marks.ids)
    assert all(marked.id_to_token(i) == gpt2.id_to_token(i) for i in others)
    assert choose_marks(marked) == marks
    assert add_marks(marked.to_str(), marks) == marked.to_str()
    plain = Tokenizer.from_str(marked.to_str())
    plain.encode_special_tokens = True
    for text in TEXTS:
        assert plain.encode(text).ids == gpt2.encode(text).ids
        assert not set(plain.encode(text).ids) & set(marks.ids)
        assert marked.decode(plain.encode(text).ids, skip_special_tokens=False) == text


def test_a_gguf_names_them_and_text_never_becomes_one(gpt2: Tokenizer, marked: Tokenizer) -> None:
    marks = choose_marks(gpt2)
    metadata = to_gguf_metadata(marked, bos=50_256, eos=50_256, infill=marks)
    types: Any = metadata["tokenizer.ggml.token_type"].value
    assert [int(types[i]) for i in marks.ids] == [gguf.TokenType.CONTROL] * 3
    codec = codec_from_gguf(metadata)
    assert codec.infill == marks
    for text in TEXTS:
        assert codec.encode(text, special=False) == [50_256, *gpt2.encode(text).ids]
        ids, dropped = codec.encode_infill(text, text)
        assert ids == [50_256, *marks.arrange(gpt2.encode(text).ids, gpt2.encode(text).ids)]
        assert dropped == 0
        assert codec.decode(ids) == codec.decode(gpt2.encode(text).ids) * 2
    with pytest.raises(TokenizerError, match="is no special token"):
        to_gguf_metadata(gpt2, bos=50_256, eos=50_256, infill=marks)


def test_both_orders() -> None:
    marks = InfillMarks(1, 2, 3)
    assert marks.arrange([10, 11], [20]) == [1, 10, 11, 2, 20, 3]
    assert marks.arrange([10, 11], [20], suffix_first=True) == [1, 2, 20, 3, 10, 11]
    assert marks.before_gap([9, 1, 10, 11, 2, 20, 3]) == [10, 11]
    assert marks.before_gap([1, 2, 20, 3, 10]) == [1, 2, 20, 3, 10]
    assert marks.before_gap([]) == []
    assert InfillMarks.from_json(json.loads(json.dumps(marks.to_json()))) == marks
    assert InfillMarks.from_json(None) is None and InfillMarks.from_json({"prefix": 1}) is None


def test_a_long_prefix_keeps_its_end_and_a_long_suffix_its_beginning(marked: Tokenizer) -> None:
    codec = _codec(marked, choose_marks(marked))
    before, after = (codec.encode(f"{word} " * 300, bos=False) for word in ("left", "right"))
    marks = choose_marks(marked)
    for room in (4, 5, 40, 303, 500, 2000):
        ids, dropped = codec.encode_infill("left " * 300, "right " * 300, room=room)
        assert len(ids) == min(room, 4 + len(before) + len(after))
        assert dropped == 4 + len(before) + len(after) - len(ids)
        assert ids[:2] == [50_256, marks.prefix] and ids[-1] == marks.middle
        at = ids.index(marks.suffix)
        assert ids[2:at] == before[len(before) - (at - 2) :]
        assert ids[at + 1 : -1] == after[: len(ids) - at - 2]
        assert at + 2 == len(ids) or len(ids) - at - 2 >= min((room - 4) // 4, len(after))
    ids, dropped = codec.encode_infill("left", "right " * 300, room=100)
    assert len(ids) == 100 and codec.decode(ids[1:3]) == "left"  # a short prefix leaves its room to the suffix


def test_indentation_of_the_middle_goes_on_from_the_prefix(marked: Tokenizer) -> None:
    four = {"nanochat.text.indentation": u32(4)}
    codec = _codec(marked, choose_marks(marked), **four)
    tab = codec.encode("    x", bos=False)[0]
    assert codec.token_bytes(tab) == b"\t"
    for prefix, text in (("a\n", "    "), ("a\n    ", "    "), ("a ", "\t"), ("", "    ")):
        ids, _ = codec.encode_infill(prefix, "\n    }")
        assert codec.stream(after=ids).feed(tab) == text


@pytest.mark.parametrize("names", KNOWN_NAMES)
def test_marks_of_other_models_are_known_by_key_and_by_name(names: tuple[str, str, str]) -> None:
    tokenizer = tiny_tokenizer()
    parts = json.loads(tokenizer.to_str())
    parts["model"]["vocab"] = {
        {f"unused{i}": name for i, name in enumerate(names)}.get(token, token): index
        for token, index in parts["model"]["vocab"].items()
    }
    ids = [parts["model"]["vocab"][name] for name in names]
    extra = [dict(parts["added_tokens"][0], id=i, content=name) for i, name in zip(ids, names, strict=True)]
    parts["added_tokens"] = sorted([*parts["added_tokens"], *extra], key=lambda token: token["id"])
    found = _codec(Tokenizer.from_str(json.dumps(parts)), None).infill
    assert found == InfillMarks(*ids)
    assert marks_by_name(dict(zip(names, ids, strict=True))) == found


@pytest.mark.parametrize("keys", [KEYS, OLD_KEYS])
def test_marks_of_other_models_are_known_by_both_kinds_of_keys(keys: tuple[str, str, str]) -> None:
    named = {f"tokenizer.ggml.{key}_token_id": u32(i) for key, i in zip(keys, (266, 268, 267), strict=True)}
    assert _codec(tiny_tokenizer(), None, **named).infill == InfillMarks(266, 268, 267)
    named.popitem()
    assert _codec(tiny_tokenizer(), None, **named).infill is None
    with pytest.raises(TokenizerError, match="outside its vocabulary"):
        _codec(tiny_tokenizer(), None, **{f"tokenizer.ggml.{keys[0]}_token_id": u32(999)})


def test_a_model_without_marks_refuses_in_a_sentence(gpt2: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="cannot fill in between two texts"):
        _codec(gpt2, None).encode_infill("a", "b")


def test_a_tokenizer_without_free_ids_is_refused(gpt2: Tokenizer) -> None:
    parts = json.loads(tiny_tokenizer().to_str())
    parts["model"]["vocab"] = {{"ý": "no"}.get(t, t): i for t, i in parts["model"]["vocab"].items()}
    with pytest.raises(TokenizerError, match="no ids for filling in"):
        choose_marks(Tokenizer.from_str(json.dumps(parts)))
    with pytest.raises(TokenizerError, match="no free ids"):
        add_marks(gpt2.to_str(), InfillMarks(185, 186, gpt2.token_to_id("t")))  # merges take it
