"""The form that starts a run: fields from the configuration's schema, judged as they are typed.

What the configuration would cost and whether its data fits is found out in a thread, because files are read for it.
"""

from __future__ import annotations

import contextvars
import shlex
import threading
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.runs import launcher, schema
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.dataset_check import DatasetReport, check_dataset
from nanochat_tui.runs.discovery import find_runs
from nanochat_tui.runs.estimate import Estimate, Measured, estimate, measured_speeds
from nanochat_tui.tui.train import axes, messages
from nanochat_tui.tui.train.choice import Choice
from nanochat_tui.tui.train.dialogs import Confirm

SETTLE_SECONDS = 0.2
"""Pause in typing after which files are looked at; the fields themselves are judged at every key."""


class Fields(VerticalScroll, can_focus=False):
    """The fields. The arrows are taken here, because a scrolling container would scroll by them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", "Next field", show=False, id="form.next"),
        Binding("up", "app.focus_previous", "Previous field", show=False, id="form.previous"),
    ]


class Report(VerticalScroll, can_focus=True):
    """The command line and what follows from the fields; scrolls with the arrows when it has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="form.down"),
        Binding("k", "scroll_up", "Up", show=False, id="form.up"),
    ]


class LaunchForm(Widget):
    """Collects a configuration, a directory and a prefix; asks for the launch by `LaunchWanted`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+l", "launch", "Launch", id="form.launch"),
        Binding("ctrl+s", "save", "Save", show=False, id="form.save"),
    ]

    HELP = """\
## New run
Every field comes from the trainer's own configuration and is judged while you type; what is wrong stands in red.
**↑/↓** and Tab go from field to field and at last to the report, which scrolls: above all it has the command line.
Empty fields mean *decided by the preset*. **preset** fills the form; its *from a file or run* reads a JSON file of
`nanochat-train init-config`, or the settings of another run. **prefix** is put before the command: `nice -n 10`,
`torchrun --nproc-per-node 1`, or `ssh host`, for which paths are those of the host.

**Ctrl+L** starts the run, exactly as the command line says; **Ctrl+S** saves the settings as JSON.
"""

    def __init__(self, root: Path, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.root = root
        self.fields = {field.name: field for field in schema.form_fields()}
        self.config: TrainConfig | None = None
        self.problems: dict[str, str] = {}
        self.command: list[str] = []
        self.estimate: Estimate | None = None
        self.dataset: DatasetReport | None = None
        self._measured: list[Measured] | None = None
        self._number = 0
        self._timer: Timer | None = None
        self._named = False

    def compose(self) -> ComposeResult:
        """The fields in groups; beside them, or below in a small terminal, what follows from them."""
        with Fields(id="form-fields"):
            with Container(classes="group"):
                yield Label("Run", classes="heading")
                with Horizontal(classes="row"):
                    yield Label("preset")
                    yield Choice([*schema.PRESETS, "defaults"], "try-out", id="form-preset")
                yield from self._line("directory", str(self.root / "new-run"), "form-directory")
                yield from self._line("prefix", "", "form-prefix", "nothing: on this machine")
                yield from self._line("settings", "", "form-file", "JSON file or run, then Enter")
            groups = dict.fromkeys(field.group for field in self.fields.values())
            for group in groups:
                with Container(classes="group"):
                    yield Label(group, classes="heading")
                    for field in self.fields.values():
                        if field.group == group:
                            yield from self._field(field)
        with Vertical(id="form-outcome"):
            yield Static("", id="form-hint", markup=False)
            with Report(id="form-report"):
                yield Static("", id="form-problems", markup=False)
                yield Static("", id="form-command", markup=False)
                yield Static("", id="form-facts", markup=False)
            yield Button("Launch", id="form-launch", variant="primary", compact=True)

    def _line(self, label: str, value: str, id: str, placeholder: str = "") -> ComposeResult:
        with Horizontal(classes="row"):
            yield Label(label)
            yield Input(value, id=id, placeholder=placeholder, compact=True)

    def _field(self, field: schema.FormField) -> ComposeResult:
        with Horizontal(classes="row"):
            yield Label(field.name.replace("_", " "))
            name = f"field-{field.name}"
            if field.kind == "switch":
                yield Choice(("yes", "no"), field.default, id=name, name=field.name)
            elif field.kind == "choice":
                options = ("", *field.choices) if field.optional else field.choices
                yield Choice(options, field.default, id=name, name=field.name)
            else:
                yield Input(
                    field.default, id=name, name=field.name, placeholder=field.bounds or "default", compact=True
                )

    def on_mount(self) -> None:
        """Begin with the smallest preset."""
        self._apply(schema.texts_of(schema.PRESETS["try-out"][1]))
        self._name_directory()

    def focus_first(self) -> None:
        """Put the cursor where one begins."""
        self.query_one("#form-preset").focus()

    # texts

    def texts(self) -> dict[str, str]:
        """What stands in the fields."""
        found = {}
        for name in self.fields:
            widget = self.query_one(f"#field-{name}")
            found[name] = widget.value if isinstance(widget, (Input, Choice)) else ""
        return found

    def _apply(self, texts: dict[str, str]) -> None:
        with self.prevent(Input.Changed, Choice.Changed):
            for name, text in texts.items():
                widget = self.query_one(f"#field-{name}")
                if isinstance(widget, (Input, Choice)):
                    widget.value = text
        self._judge()

    def set_field(self, name: str, text: str) -> None:
        """Put a text into a field, as if it had been typed."""
        widget = self.query_one(f"#field-{name}")
        if isinstance(widget, (Input, Choice)):
            widget.value = text
        self._judge()

    @property
    def directory(self) -> Path:
        """Where the run would go; the home directory's mark is kept for another machine's shell."""
        text = self.query_one("#form-directory", Input).value.strip()
        return Path(text) if launcher.is_remote(self._prefix()) else Path(text).expanduser()

    def _prefix(self) -> list[str]:
        try:
            return launcher.split_prefix(self.query_one("#form-prefix", Input).value)
        except UserError:
            return []

    def _name_directory(self) -> None:
        """Propose a directory that is free, until somebody names one."""
        if self._named:
            return
        base = self.query_one("#field-config", Choice).value or "run"
        number = 1
        while (self.root / f"{base}-{number}").exists():
            number += 1
        with self.prevent(Input.Changed):
            self.query_one("#form-directory", Input).value = str(self.root / f"{base}-{number}")

    # judging

    @on(Input.Changed)
    @on(Choice.Changed)
    def _typed(self, event: Input.Changed | Choice.Changed) -> None:
        event.stop()
        widget = event.choice if isinstance(event, Choice.Changed) else event.input
        if widget.id == "form-preset" and isinstance(widget, Choice):
            values = schema.PRESETS[widget.value][1] if widget.value in schema.PRESETS else {}
            self._apply(schema.texts_of(values))
            self._name_directory()
            self._hint_for(widget)
            return
        if widget.id == "form-file":
            return
        if widget.id == "form-directory":
            self._named = True
        elif widget.id == "field-config":
            self._name_directory()
        self._judge()

    def _judge(self) -> None:
        """Judge all fields, mark the wrong ones, show the command; files are looked at a moment later."""
        checked = schema.check(self.texts())
        self.config, self.problems = checked.config, dict(checked.problems)
        try:
            prefix = launcher.split_prefix(self.query_one("#form-prefix", Input).value)
            if not self.query_one("#form-directory", Input).value.strip():
                raise UserError("a run needs a directory")
            arguments = launcher.config_arguments(self.config) if self.config is not None else []
            self.command = launcher.train_command(arguments, self.directory, prefix)
        except UserError as error:
            self.problems["run"] = str(error)
            self.command = []
        for name in self.fields:
            self.query_one(f"#field-{name}").set_class(name in self.problems, "-wrong")
        self.estimate = self.dataset = None
        self._show()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(SETTLE_SECONDS, self._reckon) if self.config is not None else None

    def _reckon(self) -> None:
        config = self.config
        if config is None:
            return
        self._number += 1
        number, context = self._number, contextvars.copy_context()
        remote = launcher.is_remote(self._prefix())

        def work() -> None:
            try:
                if self._measured is None:
                    self._measured = measured_speeds(run.path for run in find_runs(self.root) if not run.is_log)
                dataset = (
                    DatasetReport(notes=["data on the other machine is not looked at"])
                    if remote and config.dataset == "tokens"
                    else check_dataset(config, shipped_tokenizer())
                )
                measured = [] if remote else self._measured
                outcome = estimate(config, dataset.train_tokens, measured)
            except (UserError, OSError) as error:
                dataset, outcome = DatasetReport(problems=[str(error)]), estimate(config)
            self.post_message(messages.FormReckoned(number, outcome, dataset))

        threading.Thread(target=lambda: context.run(work), name="form-reckon", daemon=True).start()

    @on(messages.FormReckoned)
    def _reckoned(self, event: messages.FormReckoned) -> None:
        event.stop()
        if event.number == self._number and self.config is not None:
            self.estimate, self.dataset = event.estimate, event.dataset
            self._show()

    @property
    def ready(self) -> bool:
        """Whether a launch makes sense: everything valid and nothing against the data."""
        return self.config is not None and not self.problems and self.dataset is not None and self.dataset.ok

    # showing

    def _show(self) -> None:
        problems = self._problems()
        wrong = self.query_one("#form-problems", Static)
        wrong.display = bool(problems.plain)
        wrong.update(problems)
        self.query_one("#form-facts", Static).update(self._facts())
        text = shlex.join(self.command) if self.command else "–"
        self.query_one("#form-command", Static).update(
            Content.assemble(("command\n", "$text-primary"), (display_safe(text, 4000), "$text"))
        )
        button = self.query_one("#form-launch", Button)
        button.disabled = not self.ready

    def _problems(self) -> Content:
        """What forbids the launch; it stands above the command, which may be long."""
        said = [f"{name.replace('_', ' ') or 'settings'}: {problem}" for name, problem in self.problems.items()]
        said += [f"data: {problem}" for problem in self.dataset.problems] if self.dataset is not None else []
        return Content("\n").join(Content.styled(f"✗ {display_safe(text)}", "$text-error") for text in said)

    def _facts(self) -> Content:
        lines: list[tuple[str, str]] = []
        if self.dataset is not None:
            if self.dataset.train_tokens:
                held = axes.amount(self.dataset.val_tokens)
                train = axes.amount(self.dataset.train_tokens)
                lines.append((f"✓ data: {train} tokens to train on, {held} held out\n", "$text-success"))
            lines += [(f"  {note}\n", "$text 60%") for note in self.dataset.notes]
        if self.estimate is not None:
            lines += [(line + "\n", "$text") for line in estimate_lines(self.estimate)]
        waiting = "" if self.config is None or self.dataset is not None else "reckoning …"
        return Content.assemble(*lines) if lines else Content.styled(waiting, "$text 60%")

    def on_descendant_focus(self) -> None:
        """Explain the field that has the focus."""
        focused = self.screen.focused
        if focused is not None:
            self._hint_for(focused)

    def _hint_for(self, widget: Widget) -> None:
        field = self.fields.get(widget.name or "")
        hints = {
            "form-directory": "Where the run's files go; it must be free.",
            "form-prefix": "Put before the command: nice -n 10, torchrun …, ssh HOST.",
            "form-report": "The command line and what it will cost; ↑/↓ scroll, Tab goes on.",
            "form-file": "A file of init-config, or a run whose settings to take; Enter reads it.",
        }
        text = hints.get(widget.id or "", "")
        if isinstance(widget, Choice) and widget.id == "form-preset":
            text = schema.PRESETS[widget.value][0] if widget.value in schema.PRESETS else "the trainer's defaults"
        if field is not None:
            bounds = f" ({field.bounds})" if field.bounds else ""
            default = f" Default: {field.default}." if field.default else ""
            text = f"{field.description}{bounds}{default}"
        self.query_one("#form-hint", Static).update(display_safe(text, 300))

    # actions

    @on(Input.Submitted, "#form-file")
    def _load(self, event: Input.Submitted) -> None:
        event.stop()
        try:
            self._apply(schema.load_preset(Path(event.value.strip()).expanduser()))
        except (UserError, OSError) as error:
            self.app.notify(display_safe(str(error), 400), severity="error", markup=False)
            return
        self.app.notify("Settings read.", timeout=2)

    @on(Button.Pressed, "#form-launch")
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.action_launch()

    def action_launch(self) -> None:
        """Ask for the launch, or say what is still wrong."""
        if self.config is None or self.problems:
            name, problem = next(iter(self.problems.items()), ("", "the settings are not valid"))
            self.app.notify(display_safe(f"{name}: {problem}", 400), severity="error", markup=False)
            return
        if self.dataset is not None and not self.dataset.ok:
            self.app.notify(display_safe(self.dataset.problems[0], 400), severity="error", markup=False)
            return
        prefix = launcher.split_prefix(self.query_one("#form-prefix", Input).value)
        self.post_message(messages.LaunchWanted(self.config, self.directory, prefix))

    def launched(self) -> None:
        """Propose another directory for the next run."""
        self._named = False
        self._measured = None
        self._name_directory()
        self._judge()

    def action_save(self) -> None:
        """Save the settings as JSON beside the run's directory; a file that is there is replaced only when asked to."""
        if self.config is None or not self.directory.name:
            self.action_launch()  # says what is wrong
            return
        target = self.directory.with_name(f"{self.directory.name}.json")
        if not target.exists():
            self._save(target)
            return

        def go(wanted: bool | None) -> None:
            if wanted:
                self._save(target)

        question = f"{display_safe(str(target), 300)} is there already. Replace it by these settings?"
        self.app.push_screen(Confirm(question, "Replace it"), go)

    def _save(self, target: Path) -> None:
        if self.config is None:
            return
        try:
            schema.save_settings(target, self.config)
        except (UserError, OSError) as error:
            self.app.notify(display_safe(str(error), 400), severity="error", markup=False)
            return
        self.app.notify(display_safe(f"Saved as {target}; train with --config-file"), timeout=5, markup=False)


def estimate_lines(outcome: Estimate) -> list[str]:
    """What to expect, in a few lines."""
    lines = [
        f"{outcome.parameters:,} parameters, {outcome.ternary_parameters:,} ternary",
        f"about {axes.size(outcome.memory_bytes)} of memory, {axes.size(outcome.checkpoint_bytes)} per checkpoint",
    ]
    steps = f"{outcome.total_steps:,} steps of {outcome.tokens_per_step:,} tokens" if outcome.total_steps else ""
    if outcome.total_tokens:
        steps += f", {axes.amount(outcome.total_tokens)} in all"
    lines.append(steps or f"{outcome.tokens_per_step:,} tokens per step")
    if outcome.tokens_per_second:
        lines.append(f"about {axes.duration(outcome.seconds)} at {outcome.tokens_per_second:,.0f} tok/s")
        lines.append(f"  ({display_safe(outcome.basis)})")
    elif outcome.seconds:
        lines.append(f"{axes.duration(outcome.seconds)}, as asked")
    else:
        lines.append(f"time: {outcome.basis}")
    return lines
