"""The script of recipe trials: one factor each, a table against base, no run made twice."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from trained import VOCABULARY, write_data

from nanochat_tui.cli.train_options import config_parameters
from nanochat_tui.runs.config import parse_config

SCRIPT = Path(__file__).parents[2] / "scripts" / "recipe_trials.py"
SMALL = "--config tiny --seq-len 16 --batch-size 2 --threads 1 --no-compile --dtype float32 --final-eval-tokens 256"
SMALL += " --short-seq-len 0 --checkpoint-interval 5 --warmup-steps 2"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("recipe_trials", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipe_trials"] = module
    spec.loader.exec_module(module)
    return module


def test_every_trial_is_a_valid_configuration_that_differs_from_base(script: Any) -> None:
    options = {p.name for p in config_parameters()}
    base = parse_config(_values(script.BASE) | {"dataset": "synthetic"})
    seen = set()
    for name, changes in script.TRIALS.items():
        assert {key.replace("-", "_") for key in changes} <= options, name
        config = parse_config(_values(script.BASE | changes) | {"dataset": "synthetic"})
        assert (config == base) == (name == "base"), name
        seen.add(config.model_dump_json())
    assert len(seen) == len(script.TRIALS)


def _values(options: dict[str, str]) -> dict[str, object]:
    return {key.replace("-", "_"): value or True for key, value in options.items()}


def test_the_table_compares_with_base(script: Any) -> None:
    outcomes = [
        script.Outcome("base", 0, 1000, 2.0, 1.0, 60.0),
        script.Outcome("base", 1, 1000, 2.2, 1.2, 60.0),
        script.Outcome("better", 0, 1000, 1.89, 0.9, 120.0),
    ]
    text = script.table(outcomes, "the command")
    assert "Standard deviation of `base` over seeds: 0.1414" in text
    lines = [line for line in text.splitlines() if line.startswith("| b")]
    assert lines[0] == "| better | 1,000 | 1 | 1.8900 | -0.2100 (-10.00%) | 0.9000 | 2.0 |"
    assert lines[1] == "| base | 1,000 | 2 | 2.1000 |  | 1.1000 | 1.0 |"


def test_too_many_tokens_and_unknown_names_are_refused(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tmp_path), str(tmp_path / "out"), "--tokens", "30000000"]) == 2
    assert "more than the budget of 60,000,000" in capsys.readouterr().err
    assert script.main([str(tmp_path), str(tmp_path / "out"), "--only", "magic"]) == 2
    assert "no trial 'magic'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_trials_are_run_once(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", vocabulary=VOCABULARY)
    words = [str(data), str(tmp_path / "out"), "--tokens", "640", "--only", "NorMuon", "--", *SMALL.split()]
    assert script.main(words) == 0
    rows = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert [(row["name"], row["tokens"]) for row in rows] == [("base", 640), ("NorMuon", 640)]
    assert rows[0]["loss"] != rows[1]["loss"]
    capsys.readouterr()
    assert script.main(words) == 0
    assert "seed 0" not in capsys.readouterr().out  # nothing was trained again
    assert json.loads((tmp_path / "out" / "trials.json").read_text()) == rows
    assert "--only NorMuon -- --config tiny" in (tmp_path / "out" / "table.md").read_text()
