"""Names, tokens, templates, values: everything that is looked up in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import TINY, tiny_tokenizer, write_model

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import array, read_gguf, string, tensor_from_array, u32, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.inspection.mhc_report import alphas, composed_over_depth
from nanochat_tui.inspection.search import fuzzy, layer_of, tree
from nanochat_tui.inspection.template import SAMPLE, render_sample
from nanochat_tui.inspection.tensor_stats import BINS, first_values, tensor_statistics
from nanochat_tui.inspection.vocabulary import Vocabulary, parse_ids
from nanochat_tui.model.mhc import stream_matrices

NAMES = [f"blk.{i}.{part}.weight" for i in (1, 3, 13, 31) for part in ("attn_q", "ffn_gate", "ffn_down", "attn_output")]


def test_a_few_letters_find_a_name() -> None:
    assert fuzzy("blk.3.ffn_down", NAMES)[0].name == "blk.3.ffn_down.weight"
    assert fuzzy("b3fd", NAMES)[0].name == "blk.3.ffn_down.weight"
    assert fuzzy("gate 13", NAMES)[0].name == "blk.13.ffn_gate.weight"
    assert [m.name for m in fuzzy("", NAMES)] == NAMES
    assert fuzzy("xyz", NAMES) == []
    match = fuzzy("FFN", ["a.ffn_up"])[0]
    assert match.positions == (2, 3, 4)


def test_layers_and_the_tree(tmp_path: Path) -> None:
    assert layer_of("blk.13.ffn_down.weight") == (13, "ffn_down")
    assert layer_of("output_norm.weight") == (None, "output_norm")
    assert layer_of("blocks.2.attention.wq.weight") == (2, "attention.wq")
    with read_gguf(write_model(tmp_path / "m.gguf")) as file:
        root = tree(file.tensors.values())
        assert [info.name for info in root.tensors] == ["token_embd.weight", "output_norm.weight"]
        assert list(root.folders) == ["blk.0", "blk.1"]
        assert root.count == len(file.tensors)
        assert root.bytes == sum(info.nbytes for info in file.tensors.values())


def test_text_to_tokens_and_back(tmp_path: Path) -> None:
    with read_gguf(write_model(tmp_path / "m.gguf")) as file:
        vocabulary = Vocabulary(file.metadata)
    assert vocabulary.problem is None and len(vocabulary) == 300
    tokens = vocabulary.encode("fn main é")
    expected = tiny_tokenizer().encode("fn main é").ids
    assert [t.id for t in tokens] == [299, *expected]
    assert b"".join(t.bytes for t in tokens[1:]) == "fn main é".encode()
    assert tokens[0].kind == "control" and tokens[0].bytes == b"<|endoftext|>"
    assert vocabulary.decode(expected) == "fn main é"
    assert vocabulary.token(300) is None and vocabulary.token(-1) is None
    assert vocabulary.decode([5000]) == ""


def test_the_vocabulary_is_searched_by_text(tmp_path: Path) -> None:
    with read_gguf(write_model(tmp_path / "m.gguf")) as file:
        vocabulary = Vocabulary(file.metadata)
    found, count = vocabulary.search(" ma")
    assert [t.bytes for t in found] == [b" ma", b" mai", b" main"] and count == 3
    assert [t.bytes for t in vocabulary.search("LET")[0]] == [b"let"]
    assert vocabulary.search("unused", 3)[1] > 3 and len(vocabulary.search("unused", 3)[0]) == 3
    assert vocabulary.search("")[1] == 0 and vocabulary.search("no such token")[1] == 0


def test_a_vocabulary_that_cannot_encode_is_still_searched() -> None:
    metadata = {
        "tokenizer.ggml.model": string("unheard-of"),
        "tokenizer.ggml.tokens": array(["<unk>", "▁hello", "<0x0A>", "x\x1b"]),
        "tokenizer.ggml.token_type": array(np.array([2, 1, 6, 1], np.int32)),
        "tokenizer.ggml.scores": array(np.array([0, -1.5, 0, 0], np.float32)),
    }
    vocabulary = Vocabulary(metadata)
    assert vocabulary.problem is not None
    with pytest.raises(UserError):
        vocabulary.encode("hello")
    (found,), _ = vocabulary.search(" hello")
    assert (found.id, found.score, found.kind) == (1, -1.5, "normal")
    assert vocabulary.token(2) is not None and vocabulary.decode([2, 1]) == "\n hello"
    metadata["tokenizer.ggml.token_type"] = array(np.array([1], np.int32))  # too short: not believed
    assert Vocabulary(metadata).decode([1]) == " hello"


def test_ids_are_read_leniently_and_nothing_else_is() -> None:
    assert parse_ids("17, 300 5") == [17, 300, 5] and parse_ids("[1,2]") == [1, 2]
    assert parse_ids("") is None and parse_ids("x 3") is None and parse_ids("9" * 30) is None and parse_ids("²") is None


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_template_is_rendered_on_the_sample() -> None:
    metadata = {"tokenizer.chat_template": string(CHATML)}
    text = render_sample(metadata).text
    assert text is not None and text.endswith("<|im_start|>assistant\n")
    assert all(message["content"] in text for message in SAMPLE)
    text = render_sample(metadata, add_generation_prompt=False).text
    assert text is not None and text.endswith("<|im_end|>\n")
    assert render_sample({}).text is None and "no chat template" in str(render_sample({}).error)


@pytest.mark.parametrize("key", ["chat_template", "ggml.tokens"])
def test_a_damaged_key_is_no_template(key: str) -> None:
    metadata = {"general.architecture": string("llama"), f"tokenizer.{key}": u32(7)}
    assert "no chat template" in str(render_sample(metadata).error)


def test_a_template_without_system_messages_is_tried_without() -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    found = render_sample({"tokenizer.chat_template": string(refuses)})
    assert found.text is not None and "system" not in found.text and "system message" in str(found.note)
    found = render_sample({"tokenizer.chat_template": string("{% for %}")})
    assert found.text is None and found.error


def test_bos_and_eos_reach_the_template() -> None:
    metadata = {
        "tokenizer.chat_template": string("{{ bos_token }}|{{ eos_token }}"),
        "tokenizer.ggml.tokens": array(["a", "<s>", "</s>"]),
        "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(99),
    }
    assert render_sample(metadata).text == "<s>|"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_the_distribution_of_values(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, (40, 64)).astype(np.float32)
    values[3, :10] = 0
    write_gguf(tmp_path / "m.gguf", {}, [tensor_from_array("w", values, TENSOR_TYPES[kind])])
    with read_gguf(tmp_path / "m.gguf") as file:
        stored = file.array("w").astype(np.float64)
        read: list[int] = []
        found = tensor_statistics(file, "w", read.append)
        assert (first_values(file, "w", 5) == stored.reshape(-1)[:5]).all()
    assert (found.smallest, found.largest) == (stored.min(), stored.max())
    assert found.mean == pytest.approx(stored.mean()) and found.deviation == pytest.approx(stored.std())
    assert found.zeros == int((stored == 0).sum()) and found.not_finite == 0
    assert list(found.histogram) == np.histogram(stored, BINS)[0].tolist()
    assert sum(read) > 0


def test_values_that_are_not_finite_are_counted_apart(tmp_path: Path) -> None:
    values = np.array([1.0, np.nan, 3.0, np.inf], np.float32)
    tensors = [tensor_from_array("n", values, TENSOR_TYPES["F32"])]
    tensors.append(tensor_from_array("one", np.full(4, 2.0), TENSOR_TYPES["F32"]))
    tensors.append(tensor_from_array("bad", np.full(4, np.nan), TENSOR_TYPES["F32"]))
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    with read_gguf(tmp_path / "m.gguf") as file:
        found = tensor_statistics(file, "n")
        assert (found.not_finite, found.mean, found.deviation, sum(found.histogram)) == (2, 2.0, 1.0, 2)
        assert sum(tensor_statistics(file, "one").histogram) == 4
        assert tensor_statistics(file, "bad").histogram == ()


@pytest.mark.parametrize("streams", [2, 4])
def test_mixing_composed_over_depth(streams: int) -> None:
    records = np.random.default_rng(0).normal(0, 1, (6, 9 if streams == 2 else 40)).astype(np.float32)
    h = stream_matrices(records, streams).residual
    products, memory = composed_over_depth(h)
    product = np.eye(streams)
    for index in range(6):
        product = h[index].astype(np.float64) @ product
        assert products[index] == pytest.approx(product)
        # two states that differ without a common mean: no direction keeps more of its length than this
        differences = np.eye(streams) - 1 / streams
        assert memory[index] == pytest.approx(np.linalg.svd(product @ differences, compute_uv=False)[0], abs=1e-6)
    assert (np.diff(memory) <= 1e-9).all()
    if streams == 2:
        assert alphas(h) == pytest.approx(1 / (1 + np.exp(-records[:, 0])), abs=1e-6)
    assert TINY.n_streams == 2


def test_the_template_is_that_which_the_chat_uses() -> None:
    vocabulary = {"tokenizer.ggml.tokens": array(["a", "<|im_start|>", "<|im_end|>"])}
    for own in ({}, {"tokenizer.chat_template": string("{% for %}")}):
        found = render_sample({"general.architecture": string("qwen2"), **vocabulary, **own})
        assert found.text is not None and found.text.startswith("<|im_start|>system\n")
        assert found.note is not None and "its family, ChatML, is used" in found.note
