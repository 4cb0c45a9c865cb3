"""Kept evaluations: what a folder says of them while they run and afterwards; starting, stopping, continuing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support import write_model

from nanochat_tui.cli.app import dispatch
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.folder import COMMAND
from nanochat_tui.evaluate.kept import LAUNCH, LOG, Kept, Shelf, find_kept, read_problems, resume, start, stop
from nanochat_tui.evaluate.sandbox.isolation import isolation
from nanochat_tui.evaluate.solving import ROWS, Evaluation, Row
from nanochat_tui.evaluate.summary import wilson

ABOUT = {"set": "three", "model": "tiny", "problems": 3, "samples": 1}


def evaluation(folder: Path, *verdicts: str, total: int = 3) -> Evaluation:
    made = Evaluation(folder, ABOUT)
    made.folder.describe([{"problem": f"p{n}", "prompt": "fn"} for n in range(total)], total)
    with made.folder.hold(["eval", "humaneval"]):
        for number, verdict in enumerate(verdicts):
            made.append(Row(f"p{number}", 0, "x", verdict, ""))
    return made


def ended(folder: Path) -> None:
    """Let the folder say that another process, which is gone, worked on it."""
    note = json.loads((folder / COMMAND).read_text())
    (folder / COMMAND).write_text(json.dumps({**note, "pid": 1, "started": 0.0}))


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_folder_tells_how_far_it_is(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "run", "passed", "failed")
    shelf = Shelf(tmp_path)
    (found,) = shelf.look()
    assert (found.state, found.done, found.total, found.passed, found.model) == ("running", 2, 3, 1, "tiny")
    assert found.rate() == (0.5, *wilson(1, 2))
    one.append(Row("p2", 0, "x", "passed", ""))
    assert shelf.look()[0].done == 3, "what was appended is read"
    ended(tmp_path / "run")
    assert shelf.look()[0].state == "finished"
    assert list(read_problems(tmp_path / "run")) == ["p0", "p1", "p2"]


def test_a_process_that_is_gone_has_stopped_or_failed(tmp_path: Path) -> None:
    evaluation(tmp_path / "card" / "run", "passed")
    ended(tmp_path / "card" / "run")
    (found,) = Shelf(tmp_path).look()
    assert (found.name, found.state, found.seconds_left) == ("card/run", "stopped", None)
    (tmp_path / "card" / "run" / LOG).write_text("reading\nerror: the server is gone\n")
    (found,) = Shelf(tmp_path).look()
    assert (found.state, found.failure) == ("failed", "the server is gone")


def test_damaged_rows_and_foreign_folders_hinder_nothing(tmp_path: Path) -> None:
    made = evaluation(tmp_path / "run", "passed")
    with (made.folder.path / ROWS).open("a") as file:
        file.write('nonsense\n[1]\n{"problem": 3, "sample": 0, "completion": "", "verdict": "", "detail": ""}\n{"half')
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "evaluation.json").write_text("[]")
    (found,) = Shelf(tmp_path).look()
    assert [row.problem for row in found.rows] == ["p0"]
    assert Shelf(tmp_path / "none").look() == []


def test_several_samples_of_a_problem_are_not_independent(tmp_path: Path) -> None:
    made = Evaluation(tmp_path / "run", ABOUT)
    made.folder.describe([], 8)
    for problem in range(4):
        for sample in range(2):
            made.append(Row(f"p{problem}", sample, "", "passed" if problem < 2 else "failed", ""))
    rate = Shelf(tmp_path).look()[0].rate()
    assert rate is not None and rate[0] == 0.5
    assert rate[2] - rate[1] > wilson(4, 8)[1] - wilson(4, 8)[0]


def test_names_stand_for_kept_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root" / "a").mkdir(parents=True)
    assert find_kept("a", tmp_path / "root") == tmp_path / "root" / "a"
    (tmp_path / "a").mkdir()
    assert find_kept("a", tmp_path / "root") == Path("a")


def test_the_list_in_words_and_for_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_DATA_DIR", str(tmp_path))
    assert dispatch(["eval", "list"]) == 0
    assert "no evaluations below" in capsys.readouterr().out
    evaluation(tmp_path / "evaluations" / "run", "failed", "failed", "failed")
    ended(tmp_path / "evaluations" / "run")
    dispatch(["eval", "list"])
    assert capsys.readouterr().out == "run: finished, three, 3 of 3, passed 0.0% (0.0% to 56.2%)\n"
    dispatch(["eval", "list", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert (row["name"], row["state"], row["done"], row["rate"]) == ("run", "finished", 3, 0.0)
    dispatch(["eval", "compare", "run", "run"])
    assert "| pass@1 | 0.0% | 0.0% |" in capsys.readouterr().out


def test_one_is_started_stopped_and_continued(tmp_path: Path) -> None:
    try:
        isolation()
    except UserError as error:
        pytest.skip(str(error))
    model = write_model(tmp_path / "tiny.gguf")
    folder = tmp_path / "kept" / "run"
    words = ["eval", "humaneval", str(model), "--limit", "3", "--max-tokens", "4", "-n", "200", "--out", str(folder)]
    process = start(words, folder)
    shelf = Shelf(tmp_path / "kept")

    def now() -> Kept:
        (found,) = shelf.look()
        return found

    wait(lambda: now().done >= 2)
    assert now().state == "running" and now().total == 600 and now().arguments[:2] == ("eval", "humaneval")
    with pytest.raises(UserError, match="is at work already"):
        start(words, folder)
    assert stop(folder)
    wait(lambda: now().state == "stopped")
    assert process.wait(120) == 130 and not stop(folder)
    before = now().done
    again = resume(now())
    wait(lambda: now().done > before)
    assert now().seconds_left is not None
    psutil.Process(again.pid).send_signal(signal.SIGINT)
    assert again.wait(120) == 130
    keys = [row.key for row in now().rows]
    assert len(keys) == len(set(keys)) and json.loads((folder / LAUNCH).read_text())["pid"] == again.pid


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(["eval", "humaneval", str(tmp_path / "none.gguf")], folder).wait(120)
    (found,) = Shelf(tmp_path).look()
    assert found.state == "failed" and "There is no file" in found.failure
    with pytest.raises(UserError, match="is no evaluation"):
        resume(Kept(folder, "run", {}, (), 0, "stopped", "", 0.0, ("chat",)))
    with pytest.raises(UserError, match="does not say how"):
        resume(Kept(folder, "run", {}, (), 0, "stopped", "", 0.0))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_process_that_misses_the_interrupt_is_terminated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat_tui.evaluate.kept.STOP_SECONDS", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = psutil.Process(process.pid).create_time()
        (tmp_path / LAUNCH).write_text(json.dumps({"arguments": [], "pid": process.pid, "started": started}))
        assert stop(tmp_path)
        assert process.wait(120) == -signal.SIGTERM
