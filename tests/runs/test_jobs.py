"""Jobs: the files that are written for Slurm and SkyPilot, and the commands, by a recorder in the place of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_support import Recorder

from nanochat_tui.errors import UserError
from nanochat_tui.runs import jobs, skypilot, slurm
from nanochat_tui.runs.jobs import Request

SKYPILOT = "NANOCHAT_SKYPILOT_PYTHON"


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(tmp_path, monkeypatch)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "nanochat_tui.cli.train_entry", *words]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)


def test_a_batch_script_is_one_that_bash_reads(tmp_path: Path) -> None:
    request = Request("a", 2, 8, "h100:8", 16, "24:00:00", ("module load cuda",), ("partition=long", "exclusive"))
    text = slurm.batch_script(request, tmp_path / "it's a run", ["--sample-prompt", "fn main() {\n"], "/opt/py thon")
    for line in ("nodes=2", "gpus-per-node=h100:8", "cpus-per-task=16", "time=24:00:00", "partition=long", "exclusive"):
        assert f"#SBATCH --{line}\n" in text
    assert text.index("#SBATCH --exclusive") < text.index("module load cuda") < text.index("srun ")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    # what the shell makes of it: the words as they were given
    said = (
        subprocess.run(
            ["bash", "-c", "scontrol() { echo first; }; srun() { printf '%s\\0' \"$@\"; }\n" + text],
            capture_output=True,
            check=False,
            env={**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"},
        )
        .stdout.decode()
        .split("\0")
    )
    assert said[1:4] == ["/opt/py thon", "-m", "torch.distributed.run"]
    assert said[said.index("--rdzv-endpoint") + 1] == "first:20007"
    assert said[said.index("--checkpoint-dir") + 1] == str(tmp_path / "it's a run")
    assert said[said.index("--resume") + 1] == "auto"
    assert said[said.index("--sample-prompt") + 1] == "fn main() {\n"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("a b"), "letters, digits"),
        (Request("a", options=("rm -rf",)), "no option of sbatch"),
        (Request("a", options=("partition=x\nreboot",)), "no option of sbatch"),
    ],
)
def test_what_cannot_stand_in_a_batch_script(tmp_path: Path, request_: Request, words: str) -> None:
    with pytest.raises(UserError, match=words):
        slurm.batch_script(request_, tmp_path, [], "python")


def test_slurm_is_driven_by_its_commands(tmp_path: Path, recorder: Recorder) -> None:
    recorder.answer(sbatch=("418;cluster\n", "", 0), squeue=("PENDING|Resources\n", "", 0))
    run = tmp_path / "run"
    words = ("submit", "--to", "slurm", "--checkpoint-dir", str(run), "--config", "try-out", "--nodes", "2")
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert recorder.calls == [["sbatch", "--parsable", str(run / "job.sh")]]
    assert "--config tiny" in (run / "job.sh").read_text()
    assert jobs.read_job(run).id == "418"
    # another one is refused while it waits
    again = command(*words)
    assert again.returncode == 2 and "slurm job 418 of this run directory is there already" in again.stderr
    assert "PENDING (Resources)" in command("job", str(run)).stdout
    told = json.loads(command("job", str(run), "--json").stdout)
    assert (told["phase"], told["id"], told["life"]) == ("waiting", "418", "unknown")
    assert command("job", str(run), "requeue").returncode == command("job", str(run), "cancel").returncode == 0
    assert ["scontrol", "requeue", "418"] in recorder.calls and ["scancel", "418"] in recorder.calls
    recorder.answer(squeue=("", "slurm_load_jobs error: Invalid job id specified", 1))
    assert "Slurm has forgotten the job" in command("job", str(run)).stdout
    recorder.answer(sbatch=("", "sbatch: error: invalid partition specified: x", 1))
    refused = command("submit", "--to", "slurm", "--checkpoint-dir", str(tmp_path / "b"), "--config", "try-out")
    assert refused.returncode == 2 and "sbatch refused: sbatch: error: invalid partition" in refused.stderr


def test_skypilot_is_driven_by_its_commands(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"job_id": 1, "job_name": "mine", "status": "FAILED"},
        {"job_id": 3, "job_name": "mine", "status": "RUNNING"},
    ]
    words = ("submit", "--to", "sky", "--checkpoint-dir", "/runs/mine", "--config", "try-out", "--gpus", "H100:8")
    assert command(*words).returncode == 0
    task = tmp_path / "runs" / "mine" / "task.yaml"
    assert recorder.calls == [
        ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", "mine", "runs/mine/task.yaml"]
    ]
    assert "--checkpoint-dir /runs/mine --resume auto" in task.read_text()
    recorder.answer(sky=("\x1b[0mFetching\n" + json.dumps(rows), "", 0))
    assert "sky job mine: RUNNING" in command("job", "runs/mine").stdout
    assert command("job", "runs/mine", "cancel").returncode == 0
    assert ["sky", "jobs", "cancel", "--yes", "--name", "mine"] in recorder.calls
    recorder.answer(sky=("no jobs here", "", 0))
    assert "UNKNOWN" in command("job", "runs/mine").stdout


def test_a_cluster_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on this machine; submit where it is"):
        slurm.submit(tmp_path / "run", "#!/bin/bash\n", "a")
    with pytest.raises(UserError, match="no job was submitted"):
        jobs.read_job(tmp_path)
    (tmp_path / "job.json").write_text('{"system": "slurm"}')
    with pytest.raises(UserError, match="not what submit wrote"):
        jobs.read_job(tmp_path)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("A"), "small letters"),
        (Request("ab", options=("partition=x",)), "no setting of SkyPilot's resources"),
        (Request("ab", mounts=("runs=s3://b",)), "a mount is PATH=BUCKET"),
    ],
)
def test_what_skypilot_would_not_take(request_: Request, words: str) -> None:
    with pytest.raises(UserError, match=words):
        skypilot.task_yaml(request_, Path("/runs"), [])


@pytest.mark.clusters
def test_skypilot_reads_the_task(tmp_path: Path) -> None:
    """By its own `Task.from_yaml`, in an environment of its own: it names versions that ours does not have."""
    python = os.environ.get(SKYPILOT)
    if python is None:
        pytest.skip(f"{SKYPILOT} names no interpreter that has skypilot")
    request = Request("mine", 2, 8, "H100:8", None, None, ("pip install x",), ("use_spot=true",), ("/runs=s3://b",))
    (tmp_path / "task.yaml").write_text(skypilot.task_yaml(request, Path("/runs/a b"), ["--sample-prompt", "a: 'b'"]))
    program = "import json, sky, sys; print(json.dumps(sky.Task.from_yaml(sys.argv[1]).to_yaml_config()))"
    done = subprocess.run(
        [python, "-c", program, str(tmp_path / "task.yaml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    assert (task["name"], task["num_nodes"]) == ("mine", 2)
    assert task["resources"]["accelerators"] == {"H100": 8} and task["resources"]["use_spot"] is True
    assert task["setup"].strip() == "pip install x"
    assert "--nproc-per-node 8" in task["run"] and "'/runs/a b'" in task["run"]
    assert task["file_mounts"]["/runs"]["source"] == "s3://b"
