"""torchtitan: our model in its trainer, in an environment of its own, on gloo and processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trained import VOCABULARY, write_data

from nanochat_tui.export.checkpoint import load_checkpoint
from nanochat_tui.model.config import PRESETS
from nanochat_tui.train.titan.names import our_names

PYTHON = "NANOCHAT_TORCHTITAN_PYTHON"
HERE = Path(__file__).parent / "titan"
SAME = 1e-5
"""Relative difference of numbers that the order of additions explains."""


def python() -> str:
    found = os.environ.get(PYTHON)
    if found is None:
        pytest.skip(f"{PYTHON} names no interpreter that has torchtitan")
    return found


def run(*command: str, **environment: str) -> str:
    paths = os.pathsep.join([str(HERE.parents[2]), str(HERE)])
    done = subprocess.run(
        [python(), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def titan(folder: Path, data: Path, processes: int, config: str, *options: str) -> list[dict[str, Any]]:
    """Run torchtitan's own command; returns loss and norm of each step."""
    losses = folder.with_suffix(".jsonl")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = ["--module", "titan_runs", "--config", config, "--dump-folder", str(folder), *options]
    run(*launcher, str(HERE / "on_processors.py"), str(losses), *words, NANOCHAT_DATA=str(data))
    return [json.loads(line) for line in losses.read_text().splitlines()] if losses.exists() else []


@pytest.mark.parametrize("flavor", ["tiny", "25b-moe"])
def test_every_tensor_of_ours_has_a_name_in_torchtitan(flavor: str) -> None:
    torch = pytest.importorskip("torch")
    from nanochat_tui.train.model import NanochatModel

    with torch.device("meta"):
        ours = NanochatModel(PRESETS[flavor]).state_dict()
    assert sorted(our_names(PRESETS[flavor]).values()) == sorted(ours)


@pytest.mark.clusters
def test_the_model_is_ours() -> None:
    found = json.loads(run(str(HERE / "compare.py")).splitlines()[-1])
    for flavor, counts in found["parameters"].items():
        assert counts == [PRESETS[flavor].parameters] * 3
    assert found["records"] and len(found["refused"]) == 3
    assert set(found["apart"]) >= {"two streams, tied", "experts"}
    for name, kinds in found["apart"].items():
        assert max(kinds["float"]) <= SAME, name
        # a value at the border between two integers may fall to either side
        near = [one for one in kinds["int8"] if one <= SAME]
        assert len(near) >= 0.9 * len(kinds["int8"]) and max(kinds["int8"]) < 0.1, name


@pytest.mark.clusters
@pytest.mark.parametrize(
    ("config", "options"), [("dense", ()), ("experts", ("--parallelism.expert-parallel-degree", "2"))]
)
def test_two_ranks_take_the_step_of_one_and_the_checkpoint_is_exported(
    tmp_path: Path, config: str, options: tuple[str, ...]
) -> None:
    """7b and 25b-moe at reduced width: FSDP2, and expert parallelism, through torchtitan's trainer."""
    data = write_data(tmp_path / "data")
    # weights drawn in shares are others, so both begin with those of a checkpoint
    titan(tmp_path / "seed", data, 1, config, "--checkpoint.create-seed-checkpoint")
    start = [
        "--checkpoint.initial-load-path",
        str(tmp_path / "seed" / "checkpoint" / "step-0"),
        "--training.steps",
        "2",
    ]
    one = titan(tmp_path / "one", data, 1, config, *start, "--training.local-batch-size", "4")
    two = titan(tmp_path / "two", data, 2, config, *start, "--training.local-batch-size", "2", *options)
    assert [row["step"] for row in two] == [1, 2]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=SAME)
    # the balance loss is another one for each part of a batch
    assert two[0]["norm"] == pytest.approx(one[0]["norm"], rel=1e-4 if config == "dense" else 1e-2)
    assert 0 < two[1]["loss"] < 10
    # its checkpoint becomes one of ours
    saved, target = tmp_path / "two" / "checkpoint" / "step-2", tmp_path / "run" / "step_2"
    flavor = {"dense": "7b", "experts": "25b-moe"}[config]
    run(str(HERE / "convert_reduced.py"), str(saved), str(target), flavor, str(data))
    shape, weights = load_checkpoint(target)
    assert sum(values.size for values in weights.values()) == shape.parameters
    state = json.loads((target / "state.json").read_text())
    assert (state["step"], state["tokens"]) == (2, 2 * 4 * shape.context_length)
    program = [sys.executable, "-m", "nanochat_tui.cli.train_entry", "export", "--checkpoint", str(target)]
    program += ["--gguf", str(tmp_path / "m.gguf")]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.clusters
def test_the_loader_goes_on_on_another_number_of_ranks_and_runs_have_names(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    found = json.loads(run(str(HERE / "loading.py"), str(data)).splitlines()[-1])
    # three batches of four by one rank, or one batch of four and then two by two ranks
    assert found["resumed"] == found["whole"][1:] and len(set(map(tuple, found["whole"][0]))) > 1
    assert found["vocabulary"] == "refused"
    # torchtitan finds the runs by the names of module and configuration; the vocabulary is that of the data
    flavors = {"nanochat_tiny": "tiny", "nanochat_7b": "7b", "nanochat_25b_moe": "25b-moe"}
    assert found["named"] == {name: [flavor, VOCABULARY, 7] for name, flavor in flavors.items()}
