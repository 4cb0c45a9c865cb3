"""SentencePiece against a transcription of llama.cpp's algorithm, and which rules a file's words are cut by."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_tui.formats.gguf.values import GGUFValue, ValueType, array, boolean, string, u32
from nanochat_tui.model.tokenizer import TextCodec, TokenizerError, codec_from_gguf
from nanochat_tui.model.tokenizer.codec import byte_alphabet
from nanochat_tui.model.tokenizer.patterns import WORD_RULES, word_rules

BYTES = [f"<0x{value:02X}>" for value in range(256)]
PIECES = ["▁", "a", "b", "c", "aa", "ab", "▁a", "▁ab", "abc", "bc", "aab", "▁▁", "▁▁▁▁", "aaa", "ca", "é"]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *PIECES, "<|user|>"]
FIRST = 3 + 256


def spm(prefix: bool | None = None, **more: GGUFValue) -> dict[str, GGUFValue]:
    rng = np.random.default_rng(5)
    scores = np.zeros(len(TOKENS), np.float32)
    scores[FIRST : FIRST + len(PIECES)] = -rng.permutation(len(PIECES)).astype(np.float32)
    types = [2, 3, 3, *[6] * 256, *[1] * len(PIECES), 3]
    found = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(TOKENS),
        "tokenizer.ggml.scores": array(scores),
        "tokenizer.ggml.token_type": array(types, ValueType.I32),
    }
    if prefix is not None:
        found["tokenizer.ggml.add_space_prefix"] = boolean(prefix)
    return found | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def by_score(text: str, metadata: dict[str, GGUFValue], prefix: bool) -> list[int]:
    """llama.cpp: merge the neighbours with the best union, the leftmost of equals, until there is none."""
    scores = metadata["tokenizer.ggml.scores"].value
    assert isinstance(scores, np.ndarray)
    ids = {piece: FIRST + index for index, piece in enumerate(PIECES)}
    parts = list((" " + text if prefix and text else text).replace(" ", "▁"))
    while True:
        unions = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ids]
        if not unions:
            break
        _, best = min(unions)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return [token for part in parts for token in ([ids[part]] if part in ids else [3 + b for b in part.encode()])]


@pytest.mark.parametrize("prefix", [True, False])
@settings(max_examples=150)
@given(text=st.text(alphabet="abc éß漢\n", max_size=24))
def test_sentencepiece_merges_by_score(prefix: bool, text: str) -> None:
    metadata = spm(prefix)
    codec = codec_from_gguf(metadata)
    ids = codec.encode(text, bos=False)
    assert ids == by_score(text, metadata, prefix)
    assert codec.decode(ids) == text
    stream = codec.stream()
    assert "".join([*(stream.feed(token) for token in ids), stream.flush()]) == text


def test_sentencepiece_conventions() -> None:
    codec = codec_from_gguf(spm())
    assert (codec.bos, codec.eos, codec.add_bos) == (1, 2, True)
    assert codec.encode("a")[0] == 1
    assert codec.end_ids == {2}
    assert codec.encode("<|user|>a") == [1, len(TOKENS) - 1, TOKENS.index("▁a")]
    plain = codec_from_gguf(spm(add_bos_token=boolean(False)))
    assert plain.encode("a") == [TOKENS.index("▁a")]


def test_a_reply_keeps_the_space_that_belongs_to_it() -> None:
    codec = codec_from_gguf(spm())
    word = TOKENS.index("▁a")
    for after, expected in [([], "a"), (codec.encode("b"), " a"), ([len(TOKENS) - 1], "a")]:
        assert codec.stream(after=after).feed(word) == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scores", array(np.zeros(3, np.float32)), "3 scores"),
        ("scores", array(np.full(len(TOKENS), np.nan, np.float32)), "not a number"),
        ("scores", array([1, 2], ValueType.I32), "no scores"),
        ("eos_token_id", u32(9999), "outside its vocabulary"),
    ],
)
def test_damaged_sentencepiece_is_refused(key: str, value: GGUFValue, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        codec_from_gguf(spm(**{key: value}))


def byte_level(pre: str | None, more: list[str] | None = None, landmarks: dict[int, str] | None = None) -> TextCodec:
    tokens = [*byte_alphabet(), *(more or [])]
    for place, token in (landmarks or {}).items():
        tokens += [f"[PAD{index}]" for index in range(len(tokens), place)]
        tokens.append(token)
    types = np.where(np.array([t.startswith("<|") for t in tokens]), 3, 1)
    types[[t.startswith("[PAD") for t in tokens]] = 5
    found = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.tokens": array(tokens),
        "tokenizer.ggml.token_type": array(types.astype(np.int32)),
        "tokenizer.ggml.merges": array([], ValueType.STRING),
    }
    if pre is not None:
        found["tokenizer.ggml.pre"] = string(pre)
    return codec_from_gguf(found)


WORDS = {
    "gpt-2": ["I", "'ll", "Ġpay", "Ġ$", "12345", ".", "00", "Ġ", "Ġnow", "Ċ", "Ċ", "x"],
    "qwen2": ["I", "'ll", "Ġpay", "Ġ$", "1", "2", "3", "4", "5", ".", "0", "0", "Ġ", "Ġnow", "ĊĊ", "x"],
    "llama-bpe": ["I", "'ll", "Ġpay", "Ġ$", "123", "45", ".", "00", "Ġ", "Ġnow", "ĊĊ", "x"],
    "falcon": ["I", "'", "ll", "Ġpay", "Ġ", "$", "123", "45", ".", "00", "Ġ", "Ġnow", "Ċ", "Ċ", "x"],
    "falcon3": ["I", "'", "ll", "Ġpay", "Ġ", "$", "1", "2", "3", "4", "5", ".", "0", "0", "Ġ", "Ġnow", "Ċ", "Ċ", "x"],
    "smollm": ["I", "'ll", "Ġpay", "Ġ$", "1", "2", "3", "4", "5", ".", "0", "0", "Ġ", "Ġnow", "Ċ", "Ċ", "x"],
}


@pytest.mark.parametrize("pre", WORDS)
def test_words_are_cut_by_the_rules(pre: str) -> None:
    splitter = byte_level(pre).tokenizer.pre_tokenizer
    assert splitter is not None
    assert [word for word, _ in splitter.pre_tokenize_str("I'll pay $12345.00  now\n\nx")] == WORDS[pre]


@pytest.mark.parametrize("pre", sorted(WORD_RULES))
@settings(max_examples=10)
@given(text=st.text(max_size=20))
def test_no_rules_lose_text(pre: str, text: str) -> None:
    import unicodedata

    codec = byte_level(pre)
    same = unicodedata.normalize("NFC", text) if WORD_RULES[pre].nfc else text
    assert codec.decode(codec.encode(text)) == same


LLAMA3 = {128_000: "<|begin_of_text|>", 128_009: "<|eot_id|>"}


@pytest.mark.parametrize("pre", [None, "default", "gpt-2", "qwen2", "falcon3", "from-the-future"])
def test_bitnet_without_rules_or_with_others_is_read_as_llama_3(pre: str | None) -> None:
    codec = byte_level(pre, landmarks=LLAMA3)
    assert len(codec.notes) == 1
    assert "Llama 3" in codec.notes[0]
    assert codec.add_bos
    assert codec.encode("12345") == [128_000, *(byte_level("llama-bpe").encode("12345", bos=False))]
    assert codec.end_ids == {128_009}
    assert len(codec.unused_ids) == 128_010 - 256 - 2


@pytest.mark.parametrize("pre", [None, "default", "from-the-future", "gpt-2"])
def test_llama_3_is_told_by_its_size_where_no_known_rules_are_named(pre: str | None) -> None:
    codec = byte_level(pre, landmarks={127_000: "<|begin_of_text|>", 128_255: "<|reserved|>"})
    if pre == "gpt-2":  # a name that is known is believed
        assert codec.notes == () and not codec.add_bos
    else:
        assert "Llama 3" in codec.notes[0] and codec.add_bos


def test_marks_that_a_converter_put_bos_before_get_their_names_back() -> None:
    marks = {128_000: "<|begin_of_text|>", 128_001: "<|end_of_text|>", 128_006: "<|start_header_id|>"}
    marks |= {128_007: "<|end_header_id|>", 128_009: "<|eot_id|>", 128_255: "<|reserved_special_token_250|>"}
    sound = byte_level("llama-bpe", landmarks=marks)
    codec = byte_level(None, landmarks={place: "<|begin_of_text|>" + mark for place, mark in marks.items()})
    assert "before the names of other marks" in codec.notes[0]
    assert "Llama 3" in codec.notes[1]
    text = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    assert codec.encode(text) == sound.encode(text) and codec.encode(text)[:2] == [128_000, 128_006]
    assert codec.end_ids == sound.end_ids == {128_001, 128_009}
    kept = byte_level("llama-bpe", landmarks=dict(sorted((marks | {128_010: "<|begin_of_text|><|eot_id|>"}).items())))
    assert kept.notes == () and kept.tokenizer.id_to_token(128_010) == "<|begin_of_text|><|eot_id|>"


def test_a_right_name_needs_no_note() -> None:
    for pre in ("llama-bpe", "llama3", "smaug-bpe"):
        assert byte_level(pre, landmarks=LLAMA3).notes == ()
    assert byte_level("qwen2", landmarks={151_643: "<|endoftext|>", 151_645: "<|im_end|>"}).notes == ()
    assert byte_level("gpt-2").notes == ()


def test_an_unknown_vocabulary_without_rules_is_told() -> None:
    assert "default rules" in byte_level(None).notes[0]
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        word_rules("from-the-future", ["a"])


def test_marks_written_as_text_are_marks() -> None:
    tokens = [*byte_alphabet(), "<|im_end|>", "</s>"]
    found = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(tokens),
        "tokenizer.ggml.merges": array([], ValueType.STRING),
    }
    codec = codec_from_gguf(found)
    assert codec.end_ids == {256}  # but </s> is what people strike out with
    assert codec.decode([64, 256]) == "a"


@pytest.mark.parametrize("types", [None, 1])
def test_a_file_without_types_knows_its_marks_and_its_padding(types: int | None) -> None:
    marks = ["<|im_start|>", "<|im_end|>", "<think>", "<|start_header_id|>", "<our_end>", "<s>"]
    tokens = [*byte_alphabet(), *marks, "[PAD262]", "[PADDLE]", "[PAD264]"]
    found = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("qwen2"),
        "tokenizer.ggml.tokens": array(tokens),
        "tokenizer.ggml.merges": array([], ValueType.STRING),
        "tokenizer.ggml.eot_token_id": u32(260),
        "tokenizer.ggml.bos_token_id": u32(64),  # an ordinary letter: a converter's mistake, not a mark
    }
    if types is not None:
        found["tokenizer.ggml.token_type"] = array([types] * len(tokens), ValueType.I32)
    codec = codec_from_gguf(found)
    a = tokens.index("a")
    for index, mark in enumerate(marks[:5]):
        assert codec.encode(f"a{mark}a", bos=False) == [a, 256 + index, a]
    assert codec.is_special(256) and codec.is_special(260) and not codec.is_special(a)
    assert not codec.is_special(258)  # thoughts are told apart by it
    assert len(codec.encode("<s>", bos=False)) == 3  # struck out
    assert codec.unused_ids == (262, 264)
    assert codec.end_ids == {257, 260}


def test_sentencepiece_without_types_knows_where_texts_begin_and_end() -> None:
    found = spm()
    del found["tokenizer.ggml.token_type"]
    codec = codec_from_gguf(found)
    assert codec.encode("<s>a</s>", bos=False) == [1, TOKENS.index("▁a"), 2]
    assert codec.is_special(1) and codec.is_special(2)


def test_a_large_vocabulary_loads() -> None:
    pairs = [(a, b) for a in list(byte_alphabet())[:250] for b in list(byte_alphabet())]
    more = [a + b for a, b in pairs] * 1
    found = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("qwen35"),
        "tokenizer.ggml.tokens": array([*byte_alphabet(), *more, *(f"[PAD{i}]" for i in range(186_000))]),
        "tokenizer.ggml.merges": array([f"{a} {b}" for a, b in pairs]),
    }
    codec = codec_from_gguf(found)
    assert codec.tokenizer.get_vocab_size() > 250_000
