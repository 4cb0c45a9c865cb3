"""The script for a GPU, its logic on the CPU: one file in, checkpoints on the way, resumed when run again."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_preparation.test_packed_tokens import make_data

from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.train.data_preparation.packing import pack

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_gpu.py"
SMALL = ["--config", "tiny", "--device", "cpu", "--dtype", "float32", "--no-compile"]
SMALL += ["--batch-size", "2", "--seq-len", "32", "--threads", "1", "--final-eval-tokens", "64", "--log-interval", "5"]


def _script():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("train_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_utilisation_is_flops_over_the_peak() -> None:
    script = _script()
    assert script.utilisation(1e6, 117e6, "NVIDIA H100 80GB HBM3") == "MFU 11.8%"
    assert script.utilisation(1e6, 117e6, "Some CPU") == "MFU unknown"


@pytest.mark.slow
def test_a_packed_file_is_trained_on_and_resumed(tmp_path: Path) -> None:
    make_data(tmp_path / "data", 40)
    pack(tmp_path / "data", tmp_path / "p", 4 << 20)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "p"), str(tmp_path / "run")]
    first = subprocess.run(
        [*command, "--minutes", "0.15", "--checkpoint-seconds", "2", *SMALL], capture_output=True, text=True, check=True
    )
    run = RunDirectory(tmp_path / "run")
    assert "MFU unknown" in first.stdout
    steps = [checkpoint.name for checkpoint in run.checkpoints()]
    assert steps[-1] == "final"
    assert len(steps) > 1, "no checkpoint was made on the way"
    assert np.fromfile(tmp_path / "run-data/train.bin", "<u2").size == 40_000
    last = run.metrics()[-1]["step"]
    subprocess.run([*command, "--minutes", "0.25"], capture_output=True, text=True, check=True)
    assert run.metrics()[-1]["step"] > last
