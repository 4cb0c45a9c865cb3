"""What all panes of the inspector have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Input

from nanochat_tui.tui.background import Job
from nanochat_tui.tui.inspect.opened import Opened

T = TypeVar("T")


class Pane(Vertical):
    """A tab's content. It is filled when it is first looked at, and again for another file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", show=False, id="inspect.search"),
        Binding("escape", "leave", "Back", show=False, id="inspect.back"),
    ]
    TITLE = ""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.opened: Opened | None = None
        self._jobs: dict[str, Job[Any]] = {}

    def activate(self, opened: Opened | None) -> None:
        """Show this file, if it is not what is shown already."""
        if opened is not self.opened:
            self.stop_jobs()
            self.opened = opened
            self.fill(opened)

    def fill(self, opened: Opened | None) -> None:
        """Show a file, or nothing."""

    def focus_first(self) -> None:
        """Give the focus to what a person will use first."""
        for widget in self.query("*"):
            if widget.focusable and not isinstance(widget, Input):
                widget.focus()
                return

    def start_job(
        self,
        key: str,
        work: Callable[[Job[T]], T],
        done: Callable[[T], None] | None = None,
        failed: Callable[[str], None] | None = None,
        shown: Callable[[Any], None] | None = None,
        total: int = 0,
    ) -> Job[T]:
        """Begin work in the background, in the place of what was begun under the same key."""
        self.stop_job(key)
        job = Job(
            self,
            work,
            self._ended(key, done),
            self._ended(key, failed or self.complain),
            shown=shown,
            progressed=self.progressed,
            total=total,
            name=f"inspect-{key}",
        )
        self._jobs[key] = job
        return job.start()

    def _ended(self, key: str, told: Callable[[T], None] | None) -> Callable[[T], None]:
        """Return what forgets a job that is over and tells its outcome."""

        def end(outcome: T) -> None:
            del self._jobs[key]
            if told is not None:
                told(outcome)

        return end

    def stop_job(self, key: str) -> None:
        """End a job, if there is one."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.stop()

    def stop_jobs(self) -> None:
        """End all work."""
        for key in list(self._jobs):
            self.stop_job(key)

    def job(self, key: str) -> Job[Any] | None:
        """Return the job of this key while it works."""
        return self._jobs.get(key)

    @property
    def is_working(self) -> bool:
        """Whether anything is being computed."""
        return bool(self._jobs)

    def complain(self, text: str) -> None:
        """Say what went wrong."""
        self.notify(text, severity="error", markup=False)

    def progressed(self, job: Job[Any]) -> None:
        """Show how far a job is."""

    def on_unmount(self) -> None:
        """End all work with the application."""
        self.stop_jobs()

    def action_search(self) -> None:
        """Go to the pane's search field."""
        field = self.query(Input)
        if field:
            field.first().focus()

    def action_leave(self) -> None:
        """Leave a search field, or end what is being computed."""
        if isinstance(self.app.focused, Input):
            self.focus_first()
        elif self._jobs:
            self.stop_jobs()
            self.stopped_by_hand()

    def stopped_by_hand(self) -> None:
        """Show that work was ended by the user."""


class Scroller(VerticalScroll):
    """A scrolling part that vim's fingers know."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="pane.down"),
        Binding("k", "scroll_up", "Up", show=False, id="pane.up"),
        Binding("g", "scroll_home", "Top", show=False, id="pane.top"),
        Binding("G", "scroll_end", "Bottom", show=False, id="pane.bottom"),
        Binding("ctrl+d,space", "page_down", "Page down", show=False, id="pane.page_down"),
        Binding("ctrl+u,b", "page_up", "Page up", show=False, id="pane.page_up"),
    ]
