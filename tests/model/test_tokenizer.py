"""The tokenizer against known encodings, its way through GGUF, and streaming."""

from __future__ import annotations

import gc
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from nanochat_tui.formats.gguf.values import GGUFValue, array, boolean, string, u32
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.model.tokenizer import (
    TextCodec,
    TokenizerError,
    byte_level_bpe,
    codec_from_gguf,
    from_gguf_metadata,
    load_tokenizer,
    to_gguf_metadata,
)
from nanochat_tui.model.tokenizer import from_gguf as tokenizer_gguf

REFERENCE = json.loads((Path(__file__).parent / "gpt2_reference.json").read_text())
"""Texts and ids by the encoder of the npm package gpt-3-encoder 1.1.4, an implementation of its own."""


def shipped() -> Tokenizer:
    path = shipped_tokenizer()
    assert path is not None
    return load_tokenizer(path)


GPT2 = shipped()
METADATA = to_gguf_metadata(GPT2, bos=50256, eos=50256)
CODEC = TextCodec(GPT2, bos=50256, eos=50256, add_bos=True, indentation=4)
NO_LEADING_TABS = st.text(max_size=60).filter(lambda text: not re.search(r"(?m)^ *\t", text))


def test_size_and_end_of_text() -> None:
    assert GPT2.get_vocab_size() == 50_257
    assert GPT2.token_to_id("<|endoftext|>") == 50_256
    assert GPT2.encode("a<|endoftext|>b").ids == [64, 50_256, 65]


@pytest.mark.parametrize("case", REFERENCE, ids=range(len(REFERENCE)))
def test_known_encodings(case: dict[str, object]) -> None:
    assert GPT2.encode(case["text"]).ids == case["ids"]


def test_rebuilt_from_gguf_it_is_identical() -> None:
    assert from_gguf_metadata(METADATA).to_str() == GPT2.to_str()


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    assert GPT2.decode(GPT2.encode(text).ids, skip_special_tokens=False) == text


def test_bos_only_where_the_model_wants_it() -> None:
    assert CODEC.encode("Hello world") == [50_256, 15_496, 995]
    assert CODEC.encode("Hello world", bos=False) == [15_496, 995]
    assert CODEC.encode("") == [50_256]
    without = TextCodec(GPT2, bos=50_256, eos=50_256, add_bos=False)
    assert without.encode("Hello world") == [15_496, 995]
    assert TextCodec(GPT2, bos=None, eos=None, add_bos=True).encode("a") == [64]


def test_indentation_is_tabs_inside() -> None:
    ids = CODEC.encode("fn a() {\n        b()\n", bos=False)
    assert GPT2.decode(ids) == "fn a() {\n\t\tb()\n"
    assert CODEC.decode(ids) == "fn a() {\n        b()\n"


@given(NO_LEADING_TABS)
def test_codec_round_trips(text: str) -> None:
    assert CODEC.decode(CODEC.encode(text)) == text


@given(st.lists(st.integers(0, 50_256), max_size=30))
def test_streaming_equals_decoding_whole(ids: list[int]) -> None:
    stream = CODEC.stream()
    pieces = [stream.feed(token) for token in ids]
    assert "".join(pieces) + stream.flush() == CODEC.decode(ids)
    plain = TextCodec(GPT2, bos=None, eos=None, add_bos=False)
    assert plain.decode(ids) == GPT2.decode(ids, skip_special_tokens=True)


@given(st.text(alphabet="é漢🙂ab", min_size=1, max_size=20))
def test_streamed_characters_are_whole(text: str) -> None:
    stream = CODEC.stream()
    pieces = [stream.feed(token) for token in CODEC.encode(text)]
    assert not any("�" in piece for piece in pieces)
    assert "".join(pieces) == text
    assert stream.flush() == ""


def test_broken_utf8_is_shown_at_the_end() -> None:
    first, *rest = GPT2.encode("漢").ids
    assert rest
    stream = CODEC.stream()
    assert stream.feed(first) == ""
    assert stream.flush() == "�"


def test_a_reply_knows_whether_its_prompt_left_it_in_indentation() -> None:
    tab = GPT2.encode("\t").ids[0]
    for prompt, expected in [
        ("", "    "),
        ("x\n", "    "),
        ("x\n    ", "    "),
        ("let x =", "\t"),
        ("x\n    y", "\t"),
    ]:
        assert CODEC.stream(after=CODEC.encode(prompt)).feed(tab) == expected, prompt


def test_unnamed_ids_are_silent() -> None:
    assert CODEC.decode([60_000, -1, 64]) == "a"


def test_special_tokens_are_shown_on_demand() -> None:
    assert CODEC.decode([50_256, 64]) == "a"
    assert CODEC.decode([50_256, 64], special=True) == "<|endoftext|>a"
    assert CODEC.end_ids == {50_256}


def test_a_text_without_marks_does_not_take_them_from_another_thread() -> None:
    """A server encodes the prompts of several people at once, some with marks and some with text about marks."""
    codec = TextCodec(small(user=("<think>",)), bos=None, eos=None, add_bos=False)
    with_marks, about_marks = "ab<|endoftext|>ba<think>" * 20, "ab<|endoftext|>ba<think>" * 40
    expected = codec.encode(with_marks), codec.encode(about_marks, special=False)
    end = codec.tokenizer.token_to_id("<|endoftext|>")
    assert expected[0].count(end) == 20 and end not in expected[1]
    assert expected[1].count(codec.tokenizer.token_to_id("<think>")) == 40
    with ThreadPoolExecutor(2) as threads:
        plain = threads.submit(lambda: [codec.encode(about_marks, special=False) for _ in range(300)])
        marked = [codec.encode(with_marks) for _ in range(600)]
    assert all(ids == expected[0] for ids in marked)
    assert all(ids == expected[1] for ids in plain.result())


def test_marks_as_text_keep_the_ids_of_a_tokenizer_with_gaps() -> None:
    parts = json.loads(small(user=("<think>",)).to_str())
    for added in parts["added_tokens"]:
        added["id"] += 7
        parts["model"]["vocab"].pop(added["content"], None)
    codec = TextCodec(Tokenizer.from_str(json.dumps(parts)), bos=None, eos=None, add_bos=False)
    think = codec.tokenizer.token_to_id("<think>")
    ids = codec.encode("<|endoftext|><think>", special=False)
    assert ids[-1] == think and codec.tokenizer.token_to_id("<|endoftext|>") not in ids


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(TokenizerError, match="Unicode"):
        CODEC.encode("a\ud800")


def small(special: tuple[str, ...] = ("<|endoftext|>",), user: tuple[str, ...] = ()) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ab", "abc", *special, *user])}
    return byte_level_bpe(vocabulary, [("a", "b"), ("ab", "c")], special, user)


def test_added_tokens_keep_their_kind() -> None:
    tokenizer = small(("<s>", "<|im_end|>"), ("<tool>",))
    metadata = to_gguf_metadata(tokenizer, bos=258, eos=259)
    assert from_gguf_metadata(metadata).to_str() == tokenizer.to_str()
    codec = codec_from_gguf(metadata)
    assert codec.decode(codec.encode("abc<tool>é<|im_end|>")) == "abc<tool>é"
    assert codec.end_ids == {259}


@settings(max_examples=40)
@given(st.text(max_size=20))
def test_small_tokenizer_round_trips(text: str) -> None:
    codec = codec_from_gguf(to_gguf_metadata(small(), bos=258, eos=258))
    assert codec.decode(codec.encode(text)) == text


def changed(key: str, value: GGUFValue | None) -> dict[str, GGUFValue]:
    metadata = dict(to_gguf_metadata(small(), bos=258, eos=258))
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    else:
        metadata[f"tokenizer.ggml.{key}"] = value
    return metadata


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", None, "no tokenizer inside"),
        ("model", string("bert"), "WordPiece"),
        ("model", string("llama"), "no scores"),
        ("model", string("\x1b[31m"), r"\\x1b"),
        ("pre", string("no-such-rules"), "“no-such-rules”"),
        ("tokens", array(["a", "a"]), "twice"),
        ("tokens", array(["a", "b"]), "token types"),
        ("merges", array(["ab"]), "impossible merge"),
        ("merges", array(["a zz"]), "do not fit"),
        ("bos_token_id", u32(70_000), "outside its vocabulary"),
        ("token_type", array(np.ones(3, np.int32)), "token types"),
    ],
)
def test_damaged_metadata_is_refused(key: str, value: GGUFValue | None, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        codec_from_gguf(changed(key, value))


PLAIN_MERGES = [f"Ġ{letter} {letter}中" for letter in "abcdefgh"]


@pytest.mark.parametrize("odd", ["ab", "", " ", "a ", " b", "a\0b", "a b\0", "a\0 b", "a b c", "a  b", "😀 \ud800"])
@pytest.mark.parametrize("other", ["x y", "x y z", "xy"])
def test_merges_that_are_parted_together_are_parted_as_each_alone(odd: str, other: str) -> None:
    """One without a space and one with two have as many spaces as two that are sound."""

    def parted(texts: list[str]) -> object:
        try:
            return tokenizer_gguf._merges(texts)
        except TokenizerError as error:
            return str(error)

    each = [parted([text]) for text in (odd, other)]
    wrong = [found for found in each if isinstance(found, str)]
    texts = [*PLAIN_MERGES, odd, other]
    assert parted(texts) == (wrong[0] if wrong else [tuple(text.split(" ", 1)) for text in texts])
    assert parted([]) == []


def test_the_search_for_garbage_goes_on_after_a_tokenizer() -> None:
    assert gc.isenabled()
    from_gguf_metadata(METADATA)
    with pytest.raises(TokenizerError, match="twice"):
        from_gguf_metadata(changed("tokens", array(["a", "a"])))
    assert gc.isenabled()
    gc.disable()
    try:
        from_gguf_metadata(METADATA)
        assert not gc.isenabled(), "whoever turned it off wants it off"
    finally:
        gc.enable()


def test_a_given_tokenizer_must_be_the_models() -> None:
    metadata = to_gguf_metadata(small(), bos=258, eos=258)
    assert codec_from_gguf(metadata, small()).encode("abc") == [258, 257]
    with pytest.raises(TokenizerError, match="other tokens"):
        codec_from_gguf(metadata, GPT2)


def test_a_file_without_a_tokenizer_takes_the_given_one() -> None:
    codec = codec_from_gguf({"tokenizer.ggml.add_bos_token": boolean(True)}, GPT2)
    assert codec.encode("a") == [50_256, 64]
    assert codec.end_ids == {50_256}


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path / "absent.json")
    for content in (b"{}", b"\xff\xfe", b"null"):
        (tmp_path / "t.json").write_bytes(content)
        with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
            load_tokenizer(tmp_path / "t.json")


def test_other_kinds_cannot_be_exported() -> None:
    normalised = small()
    normalised.normalizer = normalizers.NFC()
    whitespace = small()
    whitespace.pre_tokenizer = pre_tokenizers.Whitespace()
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.decoder = decoders.ByteLevel()
    for tokenizer in (normalised, whitespace, words):
        with pytest.raises(TokenizerError, match="exported"):
            to_gguf_metadata(tokenizer, bos=0, eos=0)
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        to_gguf_metadata(small(), bos=0, eos=259)
    with pytest.raises(TokenizerError, match="spell bytes"):
        TextCodec(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), None, None, False)


def spoken(**changes: GGUFValue) -> dict[str, GGUFValue]:
    return to_gguf_metadata(GPT2, bos=50256, eos=50256) | changes


def test_the_same_tokenizer_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_gguf, "_built", {})
    first = codec_from_gguf(spoken())
    assert codec_from_gguf(spoken()).tokenizer is first.tokenizer
    assert codec_from_gguf(spoken(**{"general.name": string("other")})).tokenizer is first.tokenizer
    assert first.tokenizer.to_str() == from_gguf_metadata(spoken()).to_str()
    assert from_gguf_metadata(spoken()) is not first.tokenizer, "who asks for a bare one may change it"


def test_whatever_differs_makes_another_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[bytes, object] = {}
    monkeypatch.setattr(tokenizer_gguf, "_built", kept)
    plain = spoken()
    merges = list(plain["tokenizer.ggml.merges"].value)  # type: ignore[arg-type]
    merges[100], merges[101] = merges[101], merges[100]
    others = [
        {"tokenizer.ggml.merges": array(merges)},
        {"tokenizer.ggml.pre": string("llama-bpe")},
        {"tokenizer.ggml.add_bos_token": boolean(False)},
        {"tokenizer.ggml.eos_token_id": u32(5)},
    ]
    prints = {tokenizer_gguf._fingerprint(plain | other) for other in others} | {tokenizer_gguf._fingerprint(plain)}
    assert len(prints) == 5
    texts = [{"tokenizer.ggml.tokens": array(names)} for names in (["a\0b", "c"], ["a", "b\0c"], ["a", "b", "c"])]
    assert len({tokenizer_gguf._fingerprint(each) for each in texts}) == 3
    for other in others:
        codec_from_gguf(plain | other)
    assert len(kept) == tokenizer_gguf._KEPT


def test_a_damaged_tokenizer_is_refused_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_gguf, "_built", {})
    damaged = spoken(**{"tokenizer.ggml.merges": array(["nothing here"])})
    for _ in range(2):
        with pytest.raises(TokenizerError, match="merges do not fit"):
            codec_from_gguf(damaged)
