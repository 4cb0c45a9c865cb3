"""Fine-tuning: starting from a file, answers only, what is forgotten, and the file that comes out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import TINY, write_model
from test_trainer import OPTIONS
from trained import losses, write_data
from typer.testing import CliRunner

from nanochat_tui.cli.train_app import app
from nanochat_tui.cli.train_finetune import defaults
from nanochat_tui.cli.train_options import merged_config
from nanochat_tui.errors import UserError
from nanochat_tui.export import export_model
from nanochat_tui.export.start import starting_text, starting_weights
from nanochat_tui.formats.chat_tokens import FIRST, GIVEN, LEARNED
from nanochat_tui.formats.gguf import metadata_string, read_gguf
from nanochat_tui.model.chat.families import ALPACA, INSTRUCT
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.train.chat_data import ChatOptions, encode_conversation, prepare_chat
from nanochat_tui.train.data import IGNORED, BatchLoader, open_dataset
from nanochat_tui.train.environment import MALLOC_SETTINGS
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.step import exact_backward
from nanochat_tui.train.trainer import Trainer

SHAPE = TINY.with_(indentation=4, group_size=128, n_layers=1, n_heads=2, n_kv_heads=2)
SETTINGS = {name: value for name, value in OPTIONS.items() if name not in ("config", "vocab_size", "dataset")}
WORDS = [
    *("--no-compile", "--threads", "1", "--seq-len", "96", "--batch-size", "2", "--log-interval", "1"),
    *("--device", "cpu", "--dtype", "float32", "--sample-tokens", "0"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base.gguf", SHAPE)


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _pairs(path: Path, count: int = 120) -> Path:
    return _write(path, [{"prompt": f"add {i}", "completion": f"fn f{i}() {{\n    {i}\n}}"} for i in range(count)])


def _invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments), env={**MALLOC_SETTINGS, "COLUMNS": "200", "NO_COLOR": "1"})
    if isinstance(done.exception, UserError):
        return done.exception.exit_code, done.output + str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize(("ternary", "streams"), [("Q2_0", 2), ("PQ2_0", 4), ("Q2_0", 1)])
def test_a_run_of_no_step_is_the_file_it_started_from(tmp_path: Path, ternary: Any, streams: int) -> None:
    shape = SHAPE.with_(n_streams=streams)
    model = write_model(tmp_path / "base.gguf", shape, ternary=ternary)
    data = write_data(tmp_path / "data")
    settings = merged_config(None, {**SETTINGS, "init_from": model, "data_path": data, "steps": 1})
    trainer = Trainer(settings, tmp_path / "run")
    trainer._begin()
    trainer._checkpoint("step_0")
    trainer.loader.close()
    trainer._lock.release()
    export_model(tmp_path / "run" / "step_0", tmp_path / "again.gguf", None, data / "tokenizer.json", ternary=ternary)
    with read_gguf(model) as before, read_gguf(tmp_path / "again.gguf") as after:
        assert before.tensors.keys() == after.tensors.keys()
        for name in before.tensors:
            assert before.raw(name).tobytes() == after.raw(name).tobytes(), name


def test_a_run_that_starts_from_a_file_computes_what_the_engine_does(model: Path, tmp_path: Path) -> None:
    from nanochat_tui.engine.generate.model import load

    shape, weights = starting_weights(model)
    network = NanochatModel(shape)
    network.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    ids = np.arange(40) % 256
    with torch.no_grad():
        expected = network.logits(torch.from_numpy(ids)[None])[0].numpy()
    found = load(model, kv="f32", threads=1).logits(ids)
    assert np.abs(found - expected).max() < 0.1 * expected.std()


def test_the_shape_of_a_start_is_its_own_and_another_is_refused(model: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    config = merged_config(None, {**SETTINGS, "init_from": model, "data_path": data, "steps": 1})
    assert config.model_shape().with_(indentation=4) == SHAPE
    other = merged_config(None, {**SETTINGS, "init_from": model, "data_path": data, "steps": 1, "hidden_dim": 384})
    with pytest.raises(UserError, match=r"base\.gguf is of another shape: hidden_dim differ"):
        Trainer(other, tmp_path / "run")
    foreign = write_model(tmp_path / "foreign.gguf", SHAPE.with_(rope_theta=77.0))
    with pytest.raises(UserError, match="no configuration can give"):
        merged_config(None, {**SETTINGS, "init_from": foreign, "data_path": data})
    with pytest.raises(UserError, match="there is no checkpoint or GGUF file"):
        merged_config(None, {**SETTINGS, "init_from": tmp_path / "none", "data_path": data})
    spaced = write_model(tmp_path / "spaced.gguf", SHAPE.with_(indentation=0))
    with pytest.raises(UserError, match="--indentation 0"):
        Trainer(merged_config(None, {**SETTINGS, "init_from": spaced, "data_path": data, "steps": 1}), tmp_path / "run")


def test_answers_are_learned_with_their_end_and_prompts_are_those_of_the_chat(model: Path) -> None:
    start = starting_text(model)
    talk = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Say <|endoftext|> once."},
        {"role": "assistant", "content": "fn a() {\n    1\n}"},
        {"role": "user", "content": "More."},
        {"role": "assistant", "content": "let it"},
    ]
    ids, roles = encode_conversation(start, INSTRUCT, talk)
    codec = start.codec
    learned = [[]]
    for token, role in zip(ids, roles, strict=True):
        if role == LEARNED:
            learned[-1].append(token)
        elif learned[-1]:
            learned.append([])
    assert [codec.decode(part, special=True) for part in learned] == [
        "fn a() {\n    1\n}<|endoftext|>",
        "let it<|endoftext|>",
    ]
    assert roles[0] == FIRST
    assert ids[0] == codec.bos
    assert codec.end_ids >= {ids[-1]}
    from nanochat_tui.model.chat.prompt import encode_chat

    first = encode_chat(codec, INSTRUCT, talk[:2])
    assert ids[: len(first)] == first
    assert set(roles[1 : len(first)]) == {GIVEN}
    assert encode_chat(codec, INSTRUCT, talk[:4]) == ids[: len(ids) - len(learned[-1])]


def test_a_template_without_a_mark_gets_the_end_of_text(model: Path) -> None:
    start = starting_text(model)
    pair = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids, roles = encode_conversation(start, ALPACA, pair)
    assert [ids[i] for i, role in enumerate(roles) if role == LEARNED][-1] == start.codec.eos


def test_batches_have_no_target_for_what_is_given(model: Path, tmp_path: Path) -> None:
    start = starting_text(model)
    report = prepare_chat(
        ChatOptions((_pairs(tmp_path / "a.jsonl"),), start, INSTRUCT, longest=96, output=tmp_path / "data")
    )
    config = merged_config(None, {**SETTINGS, "init_from": model, "data_path": tmp_path / "data", "seq_len": 96})
    data = open_dataset(config, SHAPE.vocab_size)
    assert data.train_roles is not None
    assert int((data.train_roles == LEARNED).sum()) == report.learned["train"]
    loader = BatchLoader(data.train, config, data.end, roles=data.train_roles)
    inputs, targets = loader.batch_at(0)
    assert inputs.min() >= 0
    assert (targets == IGNORED).any()
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        text = start.codec.decode(row, special=True)
        answers = start.codec.decode([t for t in wanted if t != IGNORED], special=True)
        assert "### Instruction" in text
        assert "###" not in answers
        assert "fn" in answers
    learned = targets[:, :-1] != IGNORED
    assert torch.equal(inputs[:, 1:][learned], targets[:, :-1][learned])


def test_the_loss_is_the_mean_over_the_answers_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    shape = ModelConfig(128, 1, 2, 2, 128, 64, 16, indentation=0)
    network = NanochatModel(shape)
    inputs, targets = torch.randint(0, 64, (2, 16)), torch.randint(0, 64, (32,))
    places = torch.tensor([3, 4, 9, 20, 31])
    loss = exact_backward(network, network.trunk, inputs, targets[places], 1.0, learned=places)
    gradient = network.token_embd.weight.grad
    assert gradient is not None
    kept = gradient.clone()
    network.zero_grad()
    logits = network.logits(inputs).reshape(32, -1)[places]
    reference = torch.nn.functional.cross_entropy(logits, targets[places])
    reference.backward()
    assert float(loss) == pytest.approx(float(reference.detach()), rel=1e-5)
    assert torch.allclose(kept, network.token_embd.weight.grad, atol=1e-5)


def test_the_command_trains_and_the_file_answers_by_its_template(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    held = write_data(tmp_path / "held")
    code, text = _invoke(
        *("finetune", str(_pairs(tmp_path / "a.jsonl")), "--from", str(model), "--checkpoint-dir", str(run)),
        *("--steps", "12", "--held-out", str(held), "--eval-interval", "6", "--muon-lr", "0.02", *WORDS),
    )
    assert code == 0, text
    rows = RunDirectory(run).metrics()
    assert [row["step"] for row in rows] == list(range(13))
    assert [row["step"] for row in rows if "held_out_loss" in row] == [0, 6, 12]
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert "held_out_bits_per_byte" in rows[0]
    out = tmp_path / "chat.gguf"
    code, text = _invoke("export", "--checkpoint", str(run / "final"), "--gguf", str(out))
    assert code == 0, text
    with read_gguf(out) as file:
        assert metadata_string(file.metadata, "tokenizer.chat_template") == INSTRUCT
    code, text = _invoke("finetune", str(tmp_path / "a.jsonl"), "--from", str(model), "--checkpoint-dir", str(run))
    assert code == 2
    assert "holds a run already" in text


def test_a_resumed_fine_tuning_repeats_the_unbroken_one(model: Path, tmp_path: Path) -> None:
    words = ["finetune", str(_pairs(tmp_path / "a.jsonl")), "--from", str(model), *WORDS]
    words += ["--checkpoint-interval", "3", "--no-stop-on-divergence"]  # its weights are random, worse than guessing
    code, text = _invoke(*words, "--steps", "6", "--checkpoint-dir", str(tmp_path / "whole"))
    assert code == 0, text
    assert _invoke(*words, "--steps", "6", "--checkpoint-dir", str(tmp_path / "part"))[0] == 0
    part = tmp_path / "part"
    code, text = _invoke("train", "--resume", str(part / "step_3"), "--force")
    assert code == 0, text
    whole, again = losses(RunDirectory(tmp_path / "whole").metrics()), losses(RunDirectory(part).metrics())
    assert whole == again


def test_rates_are_a_tenth_of_those_of_pre_training() -> None:
    found = defaults()
    assert (found["muon_lr"], found["embed_lr"], found["scalar_lr"]) == (0.002, 0.001, 0.0003)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "is no JSON object"),
        ('{"text": "a"}', "has neither messages nor prompt and completion"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "the last message must be the assistant's"),
        ('{"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]}', "not tool"),
        ('{"prompt": "a", "completion": ""}', "must be text that is not empty"),
        ('{"prompt": 3, "completion": "b"}', "must be text that is not empty"),
    ],
)
def test_what_is_no_conversation_is_refused_by_line(model: Path, tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(line + "\n")
    run = tmp_path / "run"
    code, text = _invoke("finetune", str(file), "--from", str(model), "--checkpoint-dir", str(run), *WORDS)
    assert code == 2
    assert words in text
    assert not (run / "data").exists()


def test_too_long_conversations_are_counted_and_none_left_is_an_error(model: Path, tmp_path: Path) -> None:
    file = _write(tmp_path / "a.jsonl", [{"prompt": "a" * 300, "completion": "b"}])
    words = ["finetune", str(file), "--from", str(model), "--checkpoint-dir", str(tmp_path / "run"), *WORDS]
    code, text = _invoke(*words)
    assert code == 2
    assert "1 are longer than 96 tokens" in text


def test_methods_that_need_every_token_are_refused(model: Path, tmp_path: Path) -> None:
    start = starting_text(model)
    prepare_chat(ChatOptions((_pairs(tmp_path / "a.jsonl"),), start, INSTRUCT, longest=96, output=tmp_path / "data"))
    for setting in ({"mtp_depth": 1}, {"fim_rate": 0.5}, {"collider_ratio": 0.5}):
        config = merged_config(
            None, {**SETTINGS, "init_from": model, "data_path": tmp_path / "data", "seq_len": 96, **setting}
        )
        with pytest.raises(UserError, match="cannot be used with conversations"):
            open_dataset(config, SHAPE.vocab_size)
