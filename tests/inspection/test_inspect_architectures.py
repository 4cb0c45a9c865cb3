"""A file of every architecture is described, whether or not this version runs it, and all of it can be looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from support_architectures import add_rotation, draft, finish, write_architecture

from nanochat_tui.formats.gguf import TensorData, array, read_gguf, string, write_gguf
from nanochat_tui.inspection import compare, inspect_file, ternary_statistics
from nanochat_tui.inspection.tensor_stats import first_values
from nanochat_tui.inspection.text import summary_lines
from nanochat_tui.model.support import refusal


@pytest.mark.parametrize("name", ["llama", "minicpm", "qwen3", "bitnet", "bitnet-b1.58", "qwen35", "maple"])
def test_every_architecture_is_described(tmp_path: Path, name: str) -> None:
    path = write_architecture(tmp_path / "m.gguf", name)
    summary = inspect_file(path)
    found = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert found["architecture"] == name
    assert summary.shape is not None and found["shape"]["layers"] == summary.shape.n_layers
    assert found["shape"]["width"] == summary.shape.dim
    assert (found["shape"]["recurrent_layers"] > 0) is (name == "qwen35")
    assert (found["shape"]["experts"] > 0) is (name == "maple")
    with read_gguf(path) as file:
        reason = refusal(file)
        assert found["parameters"] == sum(info.elements for info in file.tensors.values())
        statistics = ternary_statistics(file)
        assert statistics and all(part.weights == sum(part.counts) for part in statistics)
        for tensor in file.tensors:
            first_values(file, tensor, 8)
        assert compare(file, file).same
    if reason is not None:
        assert found["reason"] == reason and not found["runs"]
    text = "\n".join(summary_lines(summary, metadata=True))
    assert f"{summary.shape.n_layers} blocks of width {summary.shape.dim}" in text


@pytest.mark.parametrize(
    ("template", "marks", "line", "family"),
    [
        (None, (), "no chat template (it continues text)", None),
        (None, ("<|im_start|>", "<|im_end|>"), "no chat template (that of its family, ChatML, is used)", "ChatML"),
        ("{% for %}", ("<|im_start|>", "<|im_end|>"), "of no use (that of its family, ChatML, is used)", "ChatML"),
        ("{{ messages[0].content }}", ("<|im_start|>", "<|im_end|>"), "300 tokens, with a chat template", None),
    ],
)
def test_it_is_said_which_template_a_chat_uses(
    tmp_path: Path, template: str | None, marks: tuple[str, ...], line: str, family: str | None
) -> None:
    path = write_architecture(tmp_path / "m.gguf", "llama")
    with read_gguf(path) as file:
        metadata = dict(file.metadata)
        tensors = [TensorData(n, i.shape, i.type, file.raw(n).copy()) for n, i in file.tensors.items()]
    tokens = list(cast("list[str]", metadata["tokenizer.ggml.tokens"].value))
    tokens[300 - len(marks) :] = marks
    metadata["tokenizer.ggml.tokens"] = array(tokens)
    if template is not None:
        metadata["tokenizer.chat_template"] = string(template)
    write_gguf(path, metadata, tensors)
    summary = inspect_file(path)
    assert line in "\n".join(summary_lines(summary))
    assert summary.to_json()["tokenizer"]["chat_family"] == family


def test_a_rotation_that_the_engine_knows_has_no_problem(tmp_path: Path) -> None:
    made = draft("qwen3")
    add_rotation(made)
    summary = inspect_file(finish(made, tmp_path / "m.gguf"))
    assert summary.rotation is not None and summary.rotation.problem is None
    assert summary.rotation.block_size == 64 and summary.rotation.weights > 0
    assert [trap.kind for trap in summary.traps if trap.kind == "rotated"] == ["rotated"]
