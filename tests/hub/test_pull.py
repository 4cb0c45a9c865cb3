"""`nanochat-tui pull` and `-hf` against a hub on loopback: real processes, real HTTP, real failures."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, Repo, git_sha1

NAME = "tiny-Q2_0.gguf"
CHUNK = 10 << 20
"""Bytes that the library writes at a time."""
Run = Callable[..., subprocess.CompletedProcess[str]]


def cache(environment: dict[str, str]) -> Path:
    return Path(environment["HF_HOME"]) / "hub" / "models--user--tiny"


def named_files(environment: dict[str, str]) -> list[Path]:
    """Return what other programs would take for whole files: blobs and what snapshots lead to."""
    folder = cache(environment)
    blobs = [path for path in (folder / "blobs").glob("*") if "incomplete" not in path.name]
    return [*blobs, *(path for path in (folder / "snapshots").rglob("*") if not path.is_dir())]


@pytest.fixture
def repo(hub: Hub, model_bytes: bytes) -> Repo:
    made = Repo({NAME: model_bytes, "README.md": b"# tiny", "mmproj-F16.gguf": b"GGUF"})
    hub.repos["user/tiny"] = made
    return made


@pytest.mark.parametrize("xet", [False, True], ids=["plain", "xet"])
def test_a_model_is_fetched_compared_and_looked_at(
    hub: Hub, repo: Repo, tui: Run, environment: dict[str, str], model_bytes: bytes, xet: bool
) -> None:
    repo.xet = xet
    done = tui("pull", "user/tiny", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    path = Path(found["path"])
    digest = hashlib.sha256(model_bytes).hexdigest()
    assert path == cache(environment) / "snapshots" / COMMIT / NAME
    assert path.read_bytes() == model_bytes and path.resolve().name == digest
    assert found["files"][0]["sha256"] == digest and found["runs"] is True and found["architecture"] == "nanochat"
    assert (cache(environment) / "refs" / "main").read_text() == COMMIT
    assert len(hub.transfers()) == 1  # over plain HTTP, whether or not the hub offers Xet
    before = len(hub.asked)
    again = tui("pull", "user/tiny:Q2_0")
    assert again.returncode == 0 and again.stdout.strip() == str(path)
    assert len(hub.transfers()) == 1 and len(hub.asked) > before
    asked = len(hub.asked)
    reply = tui("chat", "-hf", "user/tiny", "-p", "fn main", "-n", "3", "--temperature", "0")
    assert reply.returncode == 0, reply.stderr
    assert len(hub.asked) == asked  # what is here needs no network


def test_a_model_named_on_the_command_line_is_fetched_first(hub: Hub, repo: Repo, tui: Run) -> None:
    reply = tui("chat", "-hf", "user/tiny:Q2_0", "-p", "fn main", "-n", "3", "--json")
    assert reply.returncode == 0, reply.stderr
    assert json.loads(reply.stdout.splitlines()[-1])["event"] == "finished"
    assert len(hub.transfers()) == 1
    both = tui("chat", "model.gguf", "-hf", "user/tiny", "-p", "x")
    assert both.returncode == 2 and "given twice" in both.stderr


def test_the_server_fetches_what_it_serves(hub: Hub, repo: Repo, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "nanochat_tui.cli.serve_entry", "-hf", "user/tiny", "--port", "0", "-t", "1"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr or ():
            lines.append(line)
            if "is ready" in line or "error" in line:
                break
        process.kill()
    assert "tiny-Q2_0 is ready" in lines[-1], lines
    assert len(hub.transfers()) == 1


def test_a_killed_download_continues_and_never_has_the_final_name(
    hub: Hub, repo: Repo, tui: Run, environment: dict[str, str]
) -> None:
    data = b"GGUF" + os.urandom(3 * CHUNK)
    repo.files[NAME], repo.slow = data, 0.05
    process = subprocess.Popen(
        [sys.executable, "-m", "nanochat_tui", "pull", "user/tiny"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    digest = hashlib.sha256(data).hexdigest()
    partial = cache(environment) / "blobs" / f"{digest}.nanochat.incomplete"
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.stat().st_size > 0):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(120)
    arrived = partial.stat().st_size
    assert 0 < arrived < len(data) and named_files(environment) == []
    repo.slow = 0.0
    tui("pull", "user/tiny")  # which then finds that these bytes are no model
    assert hub.transfers()[-1].range == f"bytes={arrived}-"
    assert (cache(environment) / "snapshots" / COMMIT / NAME).read_bytes() == data and not partial.exists()


def test_ctrl_c_keeps_what_has_arrived(hub: Hub, repo: Repo, tui: Run, environment: dict[str, str]) -> None:
    data = b"GGUF" + os.urandom(3 * CHUNK)
    repo.files[NAME], repo.slow = data, 0.05
    with subprocess.Popen(
        [sys.executable, "-m", "nanochat_tui", "pull", "user/tiny"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = [next(process.stderr), next(process.stderr)]  # the second tenth has arrived
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in rest and all("fetching" in line for line in lines)
    assert named_files(environment) == []
    repo.slow = 0.0
    tui("pull", "user/tiny")
    assert hub.transfers()[-1].range is not None
    assert (cache(environment) / "snapshots" / COMMIT / NAME).read_bytes() == data


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar_and_stdout_the_path(repo: Repo, environment: dict[str, str]) -> None:
    import pty

    main, side = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "nanochat_tui", "pull", "user/tiny"],
        env=environment | {"TERM": "xterm-256color", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=side,
        text=True,
    )
    os.close(side)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:  # the other side is closed
        pass
    out, _ = done.communicate(timeout=240)
    os.close(main)
    assert done.returncode == 0 and Path(out.strip()).is_file()
    assert b"fetching tiny-Q2_0.gguf" in shown and b"\x1b[" in shown and b"it can be run" in shown


def test_a_broken_transfer_continues_by_itself(hub: Hub, repo: Repo, tui: Run, environment: dict[str, str]) -> None:
    data = repo.files[NAME] = b"GGUF" + os.urandom(3 * CHUNK)
    repo.break_after = [CHUNK + 5000, CHUNK + 5000]
    repo.refuse = [429]
    tui("pull", "user/tiny")
    assert (cache(environment) / "snapshots" / COMMIT / NAME).read_bytes() == data
    assert [each.range for each in hub.transfers()] == [None, None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]


def test_a_server_without_ranges_sends_all_of_it_again(hub: Hub, repo: Repo, tui: Run, model_bytes: bytes) -> None:
    repo.break_after, repo.no_range = [10_000], True
    done = tui("pull", "user/tiny")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == model_bytes


def test_other_bytes_than_announced_are_deleted(
    repo: Repo, tui: Run, environment: dict[str, str], model_bytes: bytes
) -> None:
    repo.damaged = 1
    done = tui("pull", "user/tiny")
    assert done.returncode == 1 and "checksum" in done.stderr and done.stdout == ""
    assert named_files(environment) == [] and list((cache(environment) / "blobs").glob("*")) == []
    again = tui("pull", "user/tiny")
    assert again.returncode == 0 and Path(again.stdout.strip()).read_bytes() == model_bytes


def test_a_file_damaged_in_the_cache_is_fetched_again(
    hub: Hub, repo: Repo, tui: Run, environment: dict[str, str], model_bytes: bytes
) -> None:
    path = Path(tui("pull", "user/tiny").stdout.strip())
    blob = path.resolve()
    blob.write_bytes(bytes(len(model_bytes)))
    reply = tui("chat", "-hf", "user/tiny", "-p", "fn main", "-n", "2")
    assert reply.returncode == 0, reply.stderr
    assert "damaged" in reply.stderr and path.read_bytes() == model_bytes and len(hub.transfers()) == 2


def test_files_of_another_program_are_compared_before_they_are_used(
    hub: Hub, repo: Repo, tui: Run, environment: dict[str, str]
) -> None:
    code = f"from huggingface_hub import hf_hub_download as f; f('user/tiny', {NAME!r})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=240)
    asked = len(hub.asked)
    assert tui("chat", "-hf", "user/tiny", "-p", "x", "-n", "1").returncode == 0
    assert len(hub.asked) == asked
    record = json.loads((Path(environment["NANOCHAT_STATE_DIR"]) / "fetched.json").read_text())
    assert list(record) == [str(cache(environment) / "snapshots" / COMMIT / NAME)]


def test_a_small_file_is_compared_by_git_hash(
    repo: Repo, tui: Run, environment: dict[str, str], model_bytes: bytes
) -> None:
    repo.large = False
    done = tui("pull", "user/tiny")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve().name == git_sha1(model_bytes)


def test_a_split_model_comes_whole(hub: Hub, tui: Run, environment: dict[str, str]) -> None:
    names = [f"tiny-TQ2_0-0000{n}-of-00002.gguf" for n in (1, 2)]
    hub.repos["user/tiny"] = Repo({names[1]: b"GGUF" + bytes(5000), names[0]: b"GGUF" + bytes(9000)})
    done = tui("pull", "user/tiny")
    # what these hold is no model, so the inspector refuses them; they were fetched all the same
    assert done.returncode == 2 and "error" in done.stderr
    folder = cache(environment) / "snapshots" / COMMIT
    assert sorted(path.name for path in folder.iterdir()) == names and len(hub.transfers()) == 2


def test_what_cannot_be_run_is_said_with_the_reason(hub: Hub, tui: Run) -> None:
    hub.repos["user/tiny"] = Repo({"x-Q2_0.gguf": b"GGUF" + bytes(100)})
    done = tui("pull", "user/tiny")
    assert done.returncode == 2 and "x-Q2_0.gguf" in done.stderr and "Traceback" not in done.stderr


def test_the_token_goes_to_the_hub_and_to_no_one_else(hub: Hub, repo: Repo, tui: Run) -> None:
    repo.token = "hf_secret"  # noqa: S105  # of a made-up hub
    refused = tui("pull", "user/tiny")
    assert refused.returncode == 2 and "HF_TOKEN" in refused.stderr
    done = tui("pull", "user/tiny", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert {each.authorization for each in hub.asked if each.server == "content"} == {None}
    assert "hf_secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "arguments", "code", "words"),
    [
        ({}, ["user/other"], 2, "no repository user/other"),
        ({"gated": True}, ["user/tiny"], 1, "HF_TOKEN"),
        ({"list_status": 429}, ["user/tiny"], 1, "wait 7 s"),
        ({"list_status": 500}, ["user/tiny"], 1, "500"),
        ({}, ["user/tiny", "--revision", "v9"], 2, "no revision v9"),
        ({}, ["user/tiny:Q9"], 2, "tiny-Q2_0.gguf"),
        ({"lie": True}, ["user/tiny"], 1, "two things"),
        ({"no_etag": True}, ["user/tiny"], 1, "checksum"),
        ({}, ["nonsense"], 2, "catalogue"),
        ({}, [], 2, "Name a model"),
    ],
)
def test_failures_are_one_sentence(
    repo: Repo,
    tui: Run,
    environment: dict[str, str],
    change: dict[str, object],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    for name, value in change.items():
        setattr(repo, name, value)
    done = tui("pull", *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
    assert named_files(environment) == []


def test_no_network_is_said_and_offline_models_still_run(hub: Hub, repo: Repo, tui: Run) -> None:
    assert tui("pull", "user/tiny").returncode == 0
    hub.close()
    gone = tui("pull", "user/tiny")
    assert gone.returncode == 1 and "cannot be reached" in gone.stderr
    assert tui("chat", "-hf", "user/tiny", "-p", "x", "-n", "1").returncode == 0
    offline = tui("pull", "user/more", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1 and "HF_HUB_OFFLINE" in offline.stderr


def test_a_disk_without_room_is_found_out_before(hub: Hub, repo: Repo, environment: dict[str, str]) -> None:
    code = """
import shutil, sys
from types import SimpleNamespace
shutil.disk_usage = lambda path: SimpleNamespace(free=1000)
from nanochat_tui.cli.app import dispatch
from nanochat_tui.cli.entry import run
sys.exit(run(dispatch, ["pull", "user/tiny"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 2 and "make room" in done.stderr and hub.transfers() == []


def test_two_at_a_time_fetch_once(hub: Hub, repo: Repo, environment: dict[str, str], model_bytes: bytes) -> None:
    repo.slow = 0.02
    command = [sys.executable, "-m", "nanochat_tui", "pull", "user/tiny"]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(hub.transfers()) == 1 and len({out for out, _ in said}) == 1
    assert Path(said[0][0].strip()).read_bytes() == model_bytes


def test_the_catalogue_is_shown(tui: Run) -> None:
    shown = tui("pull", "--list")
    assert shown.returncode == 0 and shown.stderr == "" and "not opened by us" in shown.stdout
    rows = json.loads(tui("pull", "--list", "--json").stdout)["models"]
    assert {"name", "repo", "gigabytes", "memory_gigabytes", "architecture", "state", "present"} <= set(rows[0])


def test_no_start_pays_for_the_library() -> None:
    code = """
import sys
from nanochat_tui.cli.app import dispatch
dispatch(["chat", "--help"])
dispatch(["pull", "--help"])
assert not {"huggingface_hub", "httpx", "rich.progress"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=True, capture_output=True, timeout=240)
