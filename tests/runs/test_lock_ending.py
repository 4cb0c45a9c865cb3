"""A run whose trainer was killed: its lock may outlive it for a moment."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from nanochat_tui.runs import lock as runs_lock
from nanochat_tui.runs.directory import write_json
from nanochat_tui.runs.lock import LOCK_FILE, OWNER_FILE, lock_refusal

HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("owner", ["killed", "alive"])
def test_the_lock_of_a_killed_trainer_is_waited_for(
    tmp_path: Path, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_lock, "ENDING_SECONDS", 60.0)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / LOCK_FILE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        pid, started = holder.pid, psutil.Process(holder.pid).create_time()
        if owner == "killed":  # another process had the number then, and its threads still hold the lock
            started -= 1000
        write_json(tmp_path / OWNER_FILE, {"pid": pid, "process_started": started, "host": socket.gethostname()})
        end = threading.Timer(0.3, holder.communicate, ["\n"])
        if owner == "alive":
            refusal = lock_refusal(tmp_path)
            assert refusal is not None and f"process {pid}" in refusal
        end.start()
        if owner == "killed":
            assert lock_refusal(tmp_path) is None
        end.join()
