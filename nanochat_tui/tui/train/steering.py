"""The part of the train mode that starts, steers and ends runs, and says what came of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual import on, work
from textual.events import Callback
from textual.screen import Screen

from nanochat_tui.errors import UserError
from nanochat_tui.runs import launcher, signals, submission
from nanochat_tui.runs.config import LENGTHS
from nanochat_tui.runs.watch import Snapshot
from nanochat_tui.text import display_safe
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.messages import ModeNews
from nanochat_tui.tui.train import messages
from nanochat_tui.tui.train.launch_form import LaunchForm
from nanochat_tui.tui.train.watcher import Watcher
from nanochat_tui.tui.widgets.dialogs import Ask, Confirm, Field

FIRST_SECONDS = 1.5
"""Time a started process gets to fail at once, before it is said to run."""
SILENT_SECONDS = 15.0
"""Age of a heartbeat that is worth a word while a request waits; the trainer beats every ten."""


@dataclass(frozen=True, slots=True)
class Request:
    """Something a trainer was asked for and has not answered yet."""

    number: int
    word: str
    """checkpoint or stop."""
    asked: float
    """By the monotonic clock."""


class Steering(Screen[None]):
    """Launch, resume, checkpoint, stop, kill; every one of them is followed to its outcome."""

    watcher: Watcher

    def __init__(self) -> None:
        super().__init__()
        self.seen: Snapshot | None = None
        self.opened: Path | None = None
        self.requests: dict[Path, Request] = {}

    def complain(self, error: Exception | str) -> None:
        """Say what went wrong."""
        self.notify(display_safe(str(error), 600), severity="error", markup=False, timeout=8)

    def say(self, text: str) -> None:
        """Say what was done."""
        self.notify(display_safe(text, 600), markup=False, timeout=4)

    def open_path(self, path: Path) -> None:
        """Open a run directory or a log file and show it; what is neither is said."""
        raise NotImplementedError

    def _in_background(
        self, work: Callable[[], object], done: Callable[[Any], None], failed: Callable[[], None] | None = None
    ) -> None:
        """Do what may wait for a disk in a thread the application need not wait for; `done` gets its result here. An
        error is said, and `failed` called.
        """

        def complain(reason: str) -> None:
            self.complain(reason)
            if failed is not None:
                failed()

        Job(self, lambda _: work(), done, complain, name="train-action").start()

    # requests

    def action_checkpoint(self) -> None:
        """Ask the run for a checkpoint."""
        if self.opened is not None:
            self._request("checkpoint", "Asked for a checkpoint; it comes at the next step.", self.opened)

    def action_stop(self) -> None:
        """Ask whether the run should write a checkpoint and end, then ask it to."""
        seen, path = self.seen, self.opened
        if seen is None or path is None:
            return

        def go(wanted: bool | None) -> None:
            if wanted:
                self._request("stop", "Asked to stop; it writes a checkpoint first.", path)

        question = f"Stop {display_safe(seen.name)} at step {seen.state.step:,}? It writes a checkpoint and ends."
        self.app.push_screen(Confirm(question, yes="Stop it", no="No, let it run"), go)

    def _request(self, word: str, said: str, path: Path) -> None:
        send = signals.request_checkpoint if word == "checkpoint" else signals.request_stop

        def sent(number: int) -> None:
            self.requests[path] = Request(number, word, time.monotonic())
            self.say(said)
            self.watcher.expect_life(15.0)

        self._in_background(lambda: send(path), sent)

    def follow_request(self, seen: Snapshot) -> str:
        """Say what came of a request, once; until then return what to show of it. '' when nothing is pending."""
        request, state = self.requests.get(seen.path), seen.state
        if request is None:
            return ""
        newest = max(seen.checkpoints, key=lambda c: (c.modified, c.step), default=None)
        written = state.control_result or (newest.path.name if newest is not None else "none")
        if state.control_done == request.number or (request.word == "stop" and state.life == "stopped"):
            if request.word == "stop" and state.alive:
                return "stopping …"
            del self.requests[seen.path]
            if state.control_result.startswith("failed"):
                self.complain(f"The checkpoint {state.control_result}")
            elif request.word == "stop":
                self.say(f"{seen.name} stopped at step {state.step:,}; its checkpoint is {written}.")
            else:
                self.say(f"The checkpoint {written} is written.")
            return ""
        if not state.alive:
            del self.requests[seen.path]
            if request.word == "checkpoint":
                self.complain(f"{seen.name} ended before it answered; its last checkpoint: {written}.")
            return ""
        waited = time.monotonic() - request.asked
        said = f"{request.word} asked for {waited:.0f} s ago, still waiting"
        silent = state.heartbeat_age
        if silent is not None and silent > SILENT_SECONDS:
            said += f"; no heartbeat for {silent:.0f} s"
        return said if waited > 2 else ""

    @work
    async def action_kill(self) -> None:
        """Kill the trainer, after asking twice."""
        seen, path = self.seen, self.opened
        if seen is None or path is None:
            return
        try:
            process = signals.find_process(path)
        except UserError as error:
            self.complain(error)
            return
        last = max((c.step for c in seen.checkpoints), default=0)
        lost = f"everything since step {last:,} is lost" if last else "there is no checkpoint: everything is lost"
        first = Confirm(
            f"Kill the trainer of {display_safe(seen.name)}? It is at step {seen.state.step:,}; {lost}. "
            + key_names(self)("To stop safely, press {train.stop|s} instead."),
            yes="Kill it",
        )
        if not await self.app.push_screen_wait(first):
            return
        second = Confirm(f"Really kill process {process.pid} now, without a checkpoint?", yes=f"Kill {process.pid}")
        if not await self.app.push_screen_wait(second):
            return
        self.requests.pop(path, None)
        self._in_background(lambda: signals.kill(path), self._killed)

    def _killed(self, pid: int) -> None:
        self.say(f"Killed process {pid}.")
        self.watcher.search()

    # starting

    def action_resume(self) -> None:
        """Continue the open run from its last checkpoint, or another one."""
        seen = self.seen
        if seen is None or not seen.checkpoints:
            return
        last = max(seen.checkpoints, key=lambda c: (c.step, c.modified)).path
        settings = seen.config.get("config")
        lengths = settings if isinstance(settings, dict) else {}
        now = ", ".join(f"{lengths[name]:,} {name}" for name in LENGTHS if isinstance(lengths.get(name), (int, float)))

        def check(values: list[str]) -> None:
            if not (Path(values[0]).expanduser() / "state.json").is_file():
                raise UserError("that is not a checkpoint: it has no state.json")
            launcher.parse_length(values[1])
            launcher.split_prefix(values[2])

        def go(values: list[str] | None) -> None:
            if values is not None:
                checkpoint, prefix = Path(values[0]).expanduser(), launcher.split_prefix(values[2])
                length = launcher.parse_length(values[1])
                self.start(functools.partial(launcher.resume, checkpoint, prefix, **length), prefix)

        fields = [
            Field(str(last), "checkpoint"),
            Field("", "length in all", f"as before: {now or 'no limit'}"),
            Field(launcher.launch_prefix(seen.path), "command prefix", "nothing: on this machine"),
        ]
        text = "A length is 9000 (steps), 90 min, 1.5 h, 2 epochs or 50M tokens."
        self.app.push_screen(Ask(f"Resume {seen.name}", fields, text, check=check, button="Resume"), go)

    @on(messages.LaunchWanted)
    def _launch(self, event: messages.LaunchWanted) -> None:
        if submission.cluster_of(event.prefix) is not None:
            self._submit(event)
            return
        self.start(functools.partial(launcher.launch, event.config, event.prefix, event.directory), event.prefix)

    def _submit(self, event: messages.LaunchWanted) -> None:
        """Submit a job to a cluster; its run shows when the job has begun."""
        self.say(f"Submitting {event.directory.name} {launcher.place_text(event.prefix)} …")

        def submitted(said: str) -> None:
            self.notify(said, markup=False, timeout=15)
            for form in self.query(LaunchForm):
                form.launched(event.directory)
            self.watcher.search()

        arguments = launcher.config_arguments(event.config)
        send = functools.partial(submission.submit, arguments, event.directory, event.prefix)
        self._in_background(send, submitted, self._not_begun)

    def action_job(self, directory: Path, action: str) -> None:
        """Ask a cluster about the job of a run directory, or have it ended or put back into the queue."""

        def said(text: str) -> None:
            self.notify(text, title=display_safe(directory.name, 60), markup=False, timeout=15)
            self.watcher.search()

        self._in_background(lambda: submission.ask(directory, action), said)

    def start(self, begin: Callable[[], launcher.Launched], prefix: list[str]) -> None:
        """Start a trainer. How it began is said when it had time to fail at once, how a client ended when it has."""
        self.say(f"Starting {launcher.place_text(prefix)} …")

        def begun() -> launcher.Launched:
            launched = begin()
            launched.ended.wait(FIRST_SECONDS)
            return launched

        self._in_background(begun, lambda launched: self._has_begun(launched, prefix), self._not_begun)

    def _not_begun(self) -> None:
        for form in self.query(LaunchForm):
            form.launched(None)

    def _has_begun(self, launched: launcher.Launched, prefix: list[str]) -> None:
        here, remote, ended = launched.directory.is_dir(), launcher.is_remote(prefix), launched.ended.is_set()
        if not ended:
            where = f"{launcher.place_text(prefix)} (process {launched.pid})"
            mount = "" if here else " Its directory is on that machine: mount it to watch."
            self.say(f"Started {launched.directory.name} {where}; it continues when this application ends.{mount}")
        refused = remote and launched.failure() is not None
        touched = False
        for form in self.query(LaunchForm):
            touched = form.has_focus_within and form.touched
            form.launched(None if refused else launched.directory)
        if here and not refused and not touched:
            self.open_path(launched.directory)
        self.watcher.expect_life()
        if remote:
            launched.when_ended(lambda ended: self.post_message(Callback(functools.partial(self._client_ended, ended))))

    def _client_ended(self, launched: launcher.Launched) -> None:
        """Say how the client (ssh) ended through which a run was started on another machine."""
        failure = launched.failure()
        if failure is not None:
            self.notify(display_safe(failure, 600), severity="error", markup=False, timeout=15)
            self.app.bell()
            self.app.post_message(ModeNews("train", "✗"))
        else:
            self.say(f"{launched.directory.name} is over on the other machine.")
        self.watcher.search()
