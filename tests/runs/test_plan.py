"""Plans against numbers worked out by hand, and against what the original's own records say of its shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanochat_tui.cli.train_app import app
from nanochat_tui.errors import UserError
from nanochat_tui.model.config import PRESETS as SHAPES
from nanochat_tui.runs.config import TrainConfig, parse_config
from nanochat_tui.runs.memory import memory_parts
from nanochat_tui.runs.plan import make_plan
from nanochat_tui.runs.presets import PRESETS


def configured(name: str, **changes: object) -> TrainConfig:
    return parse_config({"data_path": "x", **PRESETS[name].values, **changes})


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("d20", 17_981_036, 17_981_036),
        # with three blocks of multi-token prediction, which an export leaves out
        ("d20-e3", 17_981_036 + 3 * (851_968 + 131_072 + 1_280), None),
        ("nano-125m", 127_090_392, 127_090_392),
        ("1b", 1_114_886_504, 1_114_886_504),
        # two tables, 24 blocks, 49 norms and 48 mHC records
        ("nano-560m", 2 * 32_000 * 1024 + 24 * (4 * 1024**2 + 3 * 1024 * 2816) + 49 * 1024 + 48 * 9, None),
        ("7b", 6_721_640_960, 6_721_640_960),
        ("25b-moe", 37_022_341_632, 11_051_211_264),
    ],
)
def test_parameters_are_those_of_the_shape(name: str, total: int, active: int | None) -> None:
    plan = make_plan(configured(name))
    assert plan.parameters == total
    assert plan.active_parameters == (active or total)


def test_the_experts_by_hand() -> None:
    dense, mixed = SHAPES["7b"], SHAPES["25b-moe"]
    expert, router = 3 * 4096 * 11_008, 4096 * 8
    assert mixed.parameters - dense.parameters == 32 * (7 * expert + router)
    assert mixed.active_parameters - dense.parameters == 32 * (expert + router)
    with pytest.raises(ValueError, match="n_active_experts must be 1 to 8, not 9"):
        mixed.with_(n_active_experts=9)


def test_d20_by_hand() -> None:
    config = configured("d20", batch_size=8, head_frequent=0, steps=1000, dtype="bfloat16")
    plan = make_plan(config, tokens_per_second=2000.0)
    flops = 6 * (5_111_808 + 50_257 * 256 + 6 * 256 * 512)
    assert (plan.tokens_per_step, plan.steps, plan.tokens) == (4096, 1000, 4_096_000)
    assert plan.flops_per_token == flops
    assert plan.flops == flops * 4_096_000
    assert plan.hours == plan.device_hours == pytest.approx(4_096_000 / 2000 / 3600)
    table, parameters = 50_257 * 256, 17_981_036
    assert plan.memory.weights == 4 * parameters + 2 * (table + 5_111_808)
    assert plan.memory.gradients == 4 * parameters
    assert plan.memory.optimizer == 4 * 5_111_808 + 8 * (parameters - 5_111_808)
    # 22 + 4 x 2 vectors of 256 and 6 of 768 a layer and token, and the logits of 2,048 tokens with their gradient
    assert plan.memory.activations == 2 * (4096 * 6 * (30 * 256 + 6 * 768) + 2 * 2048 * 50_257)
    assert plan.memory.total == sum(
        (plan.memory.weights, plan.memory.gradients, plan.memory.optimizer, plan.memory.activations, 350_000_000)
    )


def test_several_devices_share_tokens_and_state() -> None:
    config = configured("7b", tokens=10**12, dtype="bfloat16")
    plan = make_plan(config, tokens_per_second=10_000.0, devices=64, hours=1000.0)
    assert plan.tokens_per_step == 64 * 32 * 8192
    assert plan.steps == -(-(10**12) // plan.tokens_per_step)
    assert plan.tokens_per_second == 640_000
    assert plan.hours == pytest.approx(10**12 / 640_000 / 3600)
    assert plan.device_hours == pytest.approx(64 * plan.hours)
    assert plan.devices_for_hours == 28  # 1e12 / 1e4 / 3600 / 1000 = 27.8
    assert plan.sharded_memory is not None
    assert plan.sharded_memory.gradients == plan.memory.gradients // 64
    assert plan.sharded_memory.optimizer == plan.memory.optimizer // 64
    one_block = 5_670_699_008 // 32
    assert plan.sharded_memory.weights == 4 * 6_721_640_960 // 64 + 2 * (2 * 128_256 * 4096 + one_block)
    assert plan.sharded_memory.activations == plan.memory.activations
    assert memory_parts(config, 1) == plan.memory


def test_the_length_is_the_first_limit_reached() -> None:
    assert make_plan(configured("d20")).tokens == 20 * 17_981_036
    assert make_plan(configured("d20"), train_tokens=1234).tokens == 1234
    assert make_plan(configured("d20", epochs=2.5), train_tokens=1000).tokens == 2500
    timed = configured("d20", minutes=10, tokens=10**9)
    assert make_plan(timed).tokens == 10**9
    assert make_plan(timed, tokens_per_second=100.0, devices=3).tokens == 10 * 60 * 300
    with pytest.raises(UserError, match="give it with --tok-per-s"):
        make_plan(timed, hours=3.0)


def invoke(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    if isinstance(done.exception, UserError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


def test_the_command(tmp_path: Path) -> None:
    code, text = invoke("plan", "25b-moe", "--tok-per-s", "1000", "--devices", "8", "--json")
    assert code == 0, text
    found = json.loads(text)
    assert (found["parameters"], found["active_parameters"]) == (37_022_341_632, 11_051_211_264)
    assert found["memory_bytes"] == sum(found["memory"].values())
    assert found["hours"] == pytest.approx(found["tokens"] / 8000 / 3600)

    file = tmp_path / "mine.toml"
    assert invoke("init-config", "nano-125m", "--output", str(file))[0] == 0
    code, text = invoke("plan", str(file), "--tokens", "1000000", "--dim", "1024", "--n-heads", "16", "--n-layers", "2")
    assert code == 0, text
    shape = SHAPES["nano-125m"].with_(dim=1024, n_heads=16, n_kv_heads=16, n_layers=2)
    assert f"{shape.parameters:,}" in text
    assert "1,000,000 (as configured), 62 steps of 16,384" in text
    assert "--tok-per-s" in text


def test_commands_that_cannot_be_followed(tmp_path: Path) -> None:
    assert invoke("plan", "d21")[1].startswith("there is no configuration d21: neither a file nor one of try-out")
    file = tmp_path / "mine.toml"
    file.write_text("steps = 0\n")
    code, text = invoke("train", "--config", str(file), "--dry-run")
    assert code == 2
    assert f"{file}, line 1: steps:" in text
    # an option wins, and then the file's line is not to blame
    code, text = invoke("train", "--config", str(file), "--steps", "-1", "--dry-run")
    assert "mine.toml" not in text and "steps" in text
    assert invoke("init-config", "d20", "-o", str(file))[1].endswith("name another file, or pass --force to replace it")
    assert invoke("init-config", "d20", "-o", str(file), "--force")[0] == 0
    assert invoke("init-config", "train.json")[1].startswith("there is no configuration train.json; name one of")
    code, text = invoke("init-config", "tiny", "-o", "-")
    assert code == 0 and text.startswith("# tiny: ")
