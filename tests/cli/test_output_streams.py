"""Every command with every stream closed, full or left, with a full disk and without a home: a sentence and a code.

stdout is data: if it cannot be written that is said, with code 1; a reader who leaves is no failure. stderr is
narration: without it the same is done.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from support import TINY, write_model

resource = pytest.importorskip("resource")

Command = tuple[str, list[str]]
TUI, SERVE, TRAIN = "nanochat_tui", "nanochat_tui.cli.serve_entry", "nanochat_tui.cli.train_entry"

COMMANDS: dict[str, Command] = {
    "version": (TUI, ["--version"]),
    "help": (TUI, ["--help"]),
    "completion": (TUI, ["--show-completion", "bash"]),
    "doctor": (TUI, ["doctor"]),
    "doctor-json": (TUI, ["doctor", "--json"]),
    "cache": (TUI, ["cache"]),
    "cache-json": (TUI, ["cache", "--json"]),
    "inspect": (TUI, ["inspect", "m.gguf", "--metadata", "--ternary"]),
    "inspect-json": (TUI, ["inspect", "m.gguf", "--json"]),
    "compare": (TUI, ["inspect", "m.gguf", "--compare", "m.gguf"]),
    "chat": (TUI, ["chat", "m.gguf", "-p", "fn", "-n", "3", "--seed", "1"]),
    "chat-json": (TUI, ["chat", "m.gguf", "-p", "fn", "-n", "3", "--json"]),
    "bench": (TUI, ["bench", "m.gguf", "-t", "1", "-n", "2", "--context", "4", "--prompt", "4", "--repeats", "1"]),
    "convert": (TUI, ["convert", "p.gguf", "out.gguf", "--type", "Q2_0"]),
    "serve-help": (SERVE, ["--help"]),
    "serve-version": (SERVE, ["-V"]),
    "train-help": (TRAIN, ["--help"]),
    "init-config": (TRAIN, ["init-config", "d20", "--output", "config.toml"]),
    "prepare-data": (TRAIN, ["prepare-data", "code", "--output", "data", "--any-licence", "--workers", "1"]),
    "prepare-data-json": (
        TRAIN,
        ["prepare-data", "code", "--output", "data", "--any-licence", "--workers", "1", "--json"],
    ),
    "export-help": (TRAIN, ["export", "--help"]),
    # failures, whose one sentence goes to stderr
    "no-file": (TUI, ["inspect", "missing.gguf"]),
    "usage": (TUI, ["chat", "--no-such-option"]),
    "no-server": (TUI, ["chat", "--attach", "http://127.0.0.1:9", "-p", "x"]),
    "no-terminal": (TUI, ["m.gguf"]),
}
QUICK = ("version", "inspect-json", "init-config", "no-file")
"""What the default run looks at; the slow one looks at all."""
WRITES_NOTHING = ("init-config", "no-file", "usage", "no-server", "no-terminal")
"""Commands whose stdout stays empty."""
MEASURES = ("bench", "doctor", "doctor-json", "chat-json", "inspect-json", "inspect")
"""Commands that print what they measured."""


def chosen(*quick: str) -> list[object]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in COMMANDS]


@dataclass
class Done:
    code: int
    out: bytes
    err: str


def run(name: str, folder: Path, *, before: Callable[[], object] | None = None, **streams: object) -> Done:
    module, arguments = COMMANDS[name]
    environment = {**os.environ, "COLUMNS": "100"}
    environment |= streams.pop("environment", {})  # type: ignore[arg-type]
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        preexec_fn=before,
        check=False,
        timeout=300,
        **given,  # type: ignore[call-overload]
    )
    return Done(done.returncode, done.stdout or b"", (done.stderr or b"").decode())


def assert_quiet(done: Done, *codes: int) -> None:
    assert done.code in codes, done.err
    for wrong in ("Traceback", "happen", "Exception ignored", "Errno", "BrokenPipe", "Error("):
        assert wrong not in done.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "m.gguf", TINY)
    write_model(tmp_path / "p.gguf", TINY, ternary="PQ2_0")
    code = tmp_path / "code"
    code.mkdir()
    for number in range(3):
        names = [
            f"{'abcdefgh'[number + at]}_{word}" for at, word in enumerate(("length", "weight", "colour", "height"))
        ]
        functions = (
            f"/// Returns the {name} of a thing.\npub fn {name}(thing: &Thing) -> u32 {{\n    thing.{name}\n}}\n"
            for name in names
        )
        (code / f"f{number}.rs").write_text("\n".join(functions))
    return tmp_path


_HEALTHY: dict[str, Done] = {}


def healthy(name: str, folder: Path) -> Done:
    """Return what a command does when all is well; run once, in a folder of the same name, which output may hold."""
    if name not in _HEALTHY:
        with tempfile.TemporaryDirectory() as other:
            copy = Path(other) / "x"
            shutil.copytree(folder, copy)
            _HEALTHY[name] = run(name, copy)
    return _HEALTHY[name]


@pytest.mark.parametrize("how", ["full", "closed"])
@pytest.mark.parametrize("name", chosen(*QUICK))
def test_an_output_that_cannot_be_written_is_told(name: str, how: str, folder: Path) -> None:
    before = healthy(name, folder) if name in WRITES_NOTHING else None
    if how == "full":
        with Path("/dev/full").open("wb") as full:
            done = run(name, folder, stdout=full)
    else:
        done = run(name, folder, before=lambda: os.close(1))
    if before is not None:
        assert_quiet(done, before.code)
    else:
        assert_quiet(done, 1)
        reason = "No space left on device" if how == "full" else "standard output is closed"
        assert done.err.endswith(f"error: The output could not be written: {reason}.\n")


@pytest.mark.parametrize("name", chosen(*QUICK))
def test_a_reader_who_leaves_is_no_failure(name: str, folder: Path) -> None:
    code = healthy(name, folder).code if name in WRITES_NOTHING else 0
    reading, writing = os.pipe()
    os.close(reading)
    done = run(name, folder, stdout=writing)
    os.close(writing)
    assert_quiet(done, code)
    assert name in WRITES_NOTHING or "error" not in done.err


@pytest.mark.parametrize("how", ["full", "closed", "left"])
@pytest.mark.parametrize("name", chosen(*QUICK))
def test_without_stderr_the_same_is_done(name: str, how: str, folder: Path) -> None:
    before = healthy(name, folder)
    if how == "full":
        with Path("/dev/full").open("wb") as full:
            done = run(name, folder, stderr=full)
    elif how == "closed":
        done = run(name, folder, before=lambda: os.close(2))
    else:
        reading, writing = os.pipe()
        os.close(reading)
        done = run(name, folder, stderr=writing)
        os.close(writing)
    assert done.code == before.code
    assert bool(done.out) == bool(before.out)
    if name not in MEASURES:
        assert done.out == before.out
    if name == "init-config":
        assert tomllib.loads((folder / "config.toml").read_text())["config"] == "d20"
    if name == "convert":
        assert (folder / "out.gguf").stat().st_size > 1000


@pytest.mark.parametrize("name", chosen("version", "no-terminal"))
def test_without_stdin(name: str, folder: Path) -> None:
    before = healthy(name, folder)
    done = run(name, folder, before=lambda: os.close(0))
    assert_quiet(done, before.code)


@pytest.mark.slow
def test_chat_without_stdin_says_what_it_needs(folder: Path) -> None:
    COMMANDS["chat-stdin"] = (TUI, ["chat", "m.gguf"])
    done = run("chat-stdin", folder, before=lambda: os.close(0))
    del COMMANDS["chat-stdin"]
    assert_quiet(done, 2)
    assert "Give the text with -p TEXT" in done.err


def no_room() -> None:
    """Let every write to a file fail, as on a full disk; pipes are no files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.parametrize("name", chosen(*QUICK))
def test_a_full_disk(name: str, folder: Path) -> None:
    before = healthy(name, folder)
    listed = sorted(folder.rglob("*"))
    done = run(name, folder, before=no_room)
    if name in ("convert", "init-config", "prepare-data", "prepare-data-json"):
        assert_quiet(done, 1, 2)
        assert "File too large" in done.err or "ulimit -f" in done.err
        assert sorted(folder.rglob("*")) == listed, "no half of a file is left"
    else:
        assert_quiet(done, before.code)


@pytest.mark.parametrize("name", chosen(*QUICK))
def test_no_folder_of_the_users_own_can_be_written(name: str, folder: Path) -> None:
    before = healthy(name, folder)
    nowhere = {f"XDG_{kind}_HOME": "/dev/null/x" for kind in ("CACHE", "CONFIG", "DATA", "STATE")}
    done = run(name, folder, environment={**nowhere, "HOME": "/dev/null/x", "TMPDIR": "/dev/null/x"})
    if name.startswith("prepare"):
        assert_quiet(done, 0, 1, 2)  # worker processes need a temporary folder on some systems
    else:
        assert_quiet(done, before.code)


@pytest.mark.parametrize("name", chosen(*QUICK))
def test_an_encoding_that_lacks_characters_stops_nothing(name: str, folder: Path) -> None:
    before = healthy(name, folder)
    done = run(name, folder, environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"})
    assert_quiet(done, before.code)


@pytest.mark.slow
def test_a_full_disk_keeps_no_unfinished_kernels(folder: Path) -> None:
    done = run("chat", folder, before=no_room, environment={"XDG_CACHE_HOME": str(folder / "cache")})
    assert_quiet(done, 0)
    assert not [path for path in (folder / "cache").rglob("*") if path.is_file() and path.suffix == ".tmp"]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["nanochat_tui", SERVE])
def test_servers_serve_on_when_their_log_has_no_reader(module: str, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    web = module == TUI
    arguments = ["web", "m.gguf"] if web else ["--model", "m.gguf"]
    command = [sys.executable, "-m", module, *arguments, "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answers = [
                    httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=120).status_code
                    for path in ("", "health", "none")
                ]
                if web or answers[1] == 200:
                    break
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        assert answers == ([403, 403, 403] if web else [200, 200, 404])
        process.terminate()
        assert process.wait(120) == 0
    finally:
        process.kill()
