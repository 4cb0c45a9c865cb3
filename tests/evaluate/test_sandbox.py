"""Untrusted programs reach nothing, use no more than they may, and end with whoever started them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.sandbox import isolation as isolations
from nanochat_tui.evaluate.sandbox.isolation import Command, Isolation, isolation
from nanochat_tui.evaluate.sandbox.limits import Limits, Outcome
from nanochat_tui.evaluate.sandbox.run import run
from nanochat_tui.evaluate.toolchains import python

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sandboxes are made of Linux's namespaces")
WAIT = 120
ROOT = Path(__file__).parents[2]
LONG = Limits(seconds=WAIT)


@pytest.fixture(params=[Isolation.BUBBLEWRAP, Isolation.NAMESPACES], ids=lambda kind: kind.value)
def kind(request: pytest.FixtureRequest) -> Isolation:
    found: Isolation = request.param
    if not isolations._works(found):
        pytest.skip(f"{found.value} does not work here")
    return found


def script(kind: Isolation, text: str, limits: Limits = LONG, given: Path | None = None) -> Outcome:
    """Run a Python program."""
    tool = python()
    command = Command([tool.program, "-I", "-S", "-c", textwrap.dedent(text)], given, tool.folders)
    return run(kind, command, limits)


def test_a_program_runs_with_what_it_is_given(kind: Isolation, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("inside")
    tmp_path.chmod(0o755)
    tool = python()
    text = "import os, sys; print(sys.stdin.read(), open(os.environ['GIVEN'] + '/word').read()); sys.exit(7)"
    command = Command([tool.program, "-I", "-S", "-c", text], tmp_path, tool.folders)
    outcome = run(kind, command, LONG, b"given")
    assert (outcome.ended, outcome.code, outcome.stdout) == ("exit", 7, b"given inside\n"), outcome


def test_nothing_outside_can_be_read_or_written(kind: Isolation, tmp_path: Path) -> None:
    secret, given = tmp_path / "secret", tmp_path / "given"
    secret.write_text("do not read")
    given.mkdir()
    (given / "kept").write_text("kept")
    for folder in (tmp_path, given):
        folder.chmod(0o777)
    outcome = script(
        kind,
        f"""
        import os
        for path in ({str(secret)!r}, "/etc/passwd", {str(Path.home())!r} + "/.profile"):
            try:
                print("read", path, open(path).read(1))
            except OSError:
                pass
        given = os.environ["GIVEN"]
        for path in ("/usr/new", "/new", given + "/new", given + "/kept", {str(tmp_path)!r} + "/new"):
            try:
                open(path, "w").write("x")
                print("wrote", path)
            except OSError:
                pass
        open("own", "w").write("x")
        print(sorted(os.listdir()))
        """,
        given=given,
    )
    assert outcome.stdout.decode() == "['own']\n", outcome
    assert (given / "kept").read_text() == "kept" and not (tmp_path / "new").exists()


def test_there_is_no_network_and_no_other_process(kind: Isolation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = script(
            kind,
            f"""
            import os, socket
            try:
                socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 5)
                print("connected")
            except OSError:
                pass
            print([name for name in os.listdir("/proc") if name.isdigit() and int(name) > 20])
            try:
                os.kill({os.getpid()}, 0)
                print("found the parent")
            except OSError:
                pass
            """,
        )
    assert outcome.stdout == b"[]\n", outcome


def test_no_privilege_is_left(kind: Isolation) -> None:
    outcome = script(
        kind,
        """
        import os
        lines = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
        capabilities = {int(lines["Cap" + name], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
        print(capabilities, lines["NoNewPrivs"].strip())
        """,
    )
    assert outcome.stdout == b"{0} 1\n", outcome


def test_an_endless_loop_is_ended(kind: Isolation) -> None:
    assert script(kind, "while True: pass", Limits(seconds=1.0)).ended == "timeout"


def test_what_is_left_behind_ends_with_the_program(kind: Isolation) -> None:
    mark = f"left-{os.getpid()}-{kind.value}"
    outcome = script(
        kind,
        f"""
        import os, sys
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(999)", {mark!r}])
        """,
    )
    assert outcome.succeeded, outcome
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


def test_ten_gigabytes_are_refused_or_end_the_program(kind: Isolation) -> None:
    assert not script(kind, "data = bytearray(10 << 30)").succeeded
    every = Limits(seconds=WAIT, memory=256 << 20, address_space=None)
    assert script(kind, "data = bytearray(10 << 30); print(sum(data))", every).ended == "memory"


def test_memory_is_summed_over_processes(kind: Isolation) -> None:
    shared = """
        import os, time
        for _ in range(3):
            if os.fork() == 0:
                break
        data = bytearray(b"x" * (60 << 20))
        time.sleep(999)
    """
    assert script(kind, shared, Limits(seconds=WAIT, memory=150 << 20)).ended == "memory"


def test_a_fork_bomb_is_contained(kind: Isolation) -> None:
    bomb = """
        import os, time
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
    """
    outcome = script(kind, bomb, Limits(seconds=3.0))
    assert outcome.ended in ("processes", "timeout") and not outcome.succeeded


def test_a_flood_of_output_is_cut(kind: Isolation) -> None:
    outcome = script(kind, "while True: print('x' * 1000)")
    assert outcome.ended == "output" and len(outcome.stdout) <= 1 << 16


def test_files_are_bounded(kind: Isolation) -> None:
    outcome = script(kind, "open('big', 'wb').write(bytes(100 << 20))")
    assert not outcome.succeeded


def test_a_killed_parent_takes_the_program_along(kind: Isolation) -> None:
    mark = f"orphan-{os.getpid()}-{kind.value}"
    program = f"""
        import sys
        from nanochat_tui.evaluate.sandbox.isolation import Command, Isolation
        from nanochat_tui.evaluate.sandbox.limits import Limits
        from nanochat_tui.evaluate.sandbox.run import run
        from nanochat_tui.evaluate.toolchains import python
        tool = python()
        text = "import time; print('up', flush=True); time.sleep(999)"
        command = Command([tool.program, "-I", "-S", "-c", text, {mark!r}], None, tool.folders)
        run(Isolation({kind.value!r}), command, Limits(seconds=999))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env=environment)

    def alive() -> list[int]:
        found = psutil.process_iter(["pid", "cmdline", "status"])
        return [
            p.info["pid"]
            for p in found
            if mark in (p.info["cmdline"] or []) and p.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def runs_inside() -> bool:
        """Whether the program itself is up, and not only what makes its sandbox."""
        for pid in alive():
            try:
                if psutil.Process(pid).cmdline()[0] == python().program:
                    return True
            except psutil.Error:
                continue
        return False

    end = time.monotonic() + WAIT
    try:
        while not runs_inside() and time.monotonic() < end:
            time.sleep(0.05)
        assert runs_inside()
    finally:
        parent.kill()
        parent.wait()
    while alive() and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive()


def test_without_isolation_it_refuses_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolations, "_works", lambda kind: False)
    with pytest.raises(UserError, match=r"bubblewrap.*--unsafe"):
        isolation()
    assert isolation(unsafe=True) is Isolation.NONE
    assert script(Isolation.NONE, "print('runs')").stdout == b"runs\n"
    assert script(Isolation.NONE, "while True: pass", Limits(seconds=1.0)).ended == "timeout"
