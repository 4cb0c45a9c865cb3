"""The form that starts a run: fields from the configuration's schema, judged as they are typed.

What the configuration would cost and whether anything stands against it is found out in a thread, because files are
read for it.
"""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content
from textual.css.query import NoMatches
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static

from nanochat_tui.errors import UserError
from nanochat_tui.runs import launcher, schema
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.dataset_check import check_dataset
from nanochat_tui.runs.discovery import find_runs
from nanochat_tui.runs.estimate import Estimate, Measured, estimate, measured_speeds
from nanochat_tui.runs.identity import fitted
from nanochat_tui.runs.preflight import Check, preflight, ready
from nanochat_tui.runs.presets import PRESETS
from nanochat_tui.runs.submission import CLUSTERS, cluster_of
from nanochat_tui.text import display_safe
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.train import messages
from nanochat_tui.tui.train.form_fields import Fields, Report, empty_text, group_of, is_required, line
from nanochat_tui.tui.train.form_report import check_lines, cost_lines, problem_lines
from nanochat_tui.tui.widgets.choice import Choice
from nanochat_tui.tui.widgets.dialogs import Confirm

SETTLE_SECONDS = 0.2
"""Pause in typing after which files are looked at; the fields themselves are judged at every key."""
FIRST_PRESET = "try-out"
DEFAULTS = "defaults"
"""The choice of preset that sets nothing."""
Outcome = tuple[Estimate, list[Check]]
"""What a configuration costs, and what was found for and against it."""
CARRIED = ("data_path", "val_path", "token_dtype", "tokenizer")
"""Fields that belong to this machine and not to a preset: another preset leaves what was typed there."""


class LaunchForm(Widget):
    """Collects a configuration, a directory and a prefix; asks for the launch by `LaunchWanted`."""

    HELP: ClassVar[str] = """\
## New run
Every field comes from the trainer's own configuration and is judged while you type; what is wrong stands in red, what
must be filled in has a *. **{form.previous|↑}/{form.next|↓}** and Tab go from field to field, Tab at last to the
report, which scrolls: what is wrong, what the run costs, what was checked, and the command line. A dim text in an empty
field is what will be taken.

**preset** fills the form, and gives back what you changed when you return to it; **settings** reads a file of
`nanochat-train init-config`, or the settings of another run. **prefix** is put before the command: `nice -n 10`,
`torchrun --nproc-per-node 2`, or `ssh host`, for which paths are those of the host. `slurm` or `sky` submits a job,
with options of `nanochat-train submit` behind it: `slurm --gpus 8 --time 24:00:00`.

**{form.launch|Ctrl+L}** starts the run, exactly as the command line says; **{form.save|Ctrl+S}** saves the settings as
TOML; **{form.leave|Esc}** leaves the form as it is.
"""

    def __init__(self, root: Path, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.root = root
        self.fields = {field.name: field for field in schema.form_fields()}
        self.config: TrainConfig | None = None
        self._priced: TrainConfig | None = None
        """The configuration whose cost is estimated: the same, or one whose data has no name yet."""
        self.problems: dict[str, str] = {}
        self.command: list[str] = []
        self.estimate: Estimate | None = None
        self.checks: list[Check] | None = None
        """What was found against the run and for it; None while it is looked for."""
        self._measured: list[Measured] | None = None
        self._number = 0
        self._judged_texts: tuple[dict[str, str], list[str]] | None = None
        self._launch_texts: tuple[dict[str, str], list[str]] | None = None
        self._timer: Timer | None = None
        self._looking: Job[Outcome] | None = None
        self._proposed = ""
        """The directory the form named; one that was named by hand stays."""
        self._launching = self._wanted = False
        self._launched: set[Path] = set()
        self._preset = FIRST_PRESET
        self._left: dict[str, dict[str, str]] = {}
        """What stood in the fields when another preset was chosen, by preset."""

    def compose(self) -> ComposeResult:
        """The fields in groups; at their side, or below in a small terminal, what follows from them."""
        titles = {preset.name: preset.title for preset in PRESETS.values()}
        with Fields(id="form-fields"):
            with Container(classes="group"):
                yield Label("Run", classes="heading")
                yield line("preset", Choice([*PRESETS, DEFAULTS], FIRST_PRESET, titles=titles, id="form-preset"))
                directory = Input(id="form-directory", select_on_focus=False, compact=True)
                yield line("directory", directory, required=True)
                prefix = Input(
                    placeholder="nothing: on this machine", id="form-prefix", select_on_focus=False, compact=True
                )
                yield line("prefix", prefix)
                yield line("settings", Input(placeholder="TOML file or run, then Enter", id="form-file", compact=True))
            for group in dict.fromkeys(field.group for field in self.fields.values()):
                yield from group_of(group, [field for field in self.fields.values() if field.group == group])
        with Vertical(id="form-outcome"):
            yield Static("", id="form-hint", markup=False)
            with Report(id="form-report"):
                for part in ("problems", "facts", "checks", "command"):
                    yield Static("", id=f"form-{part}", markup=False)
            yield Button("Launch", id="form-launch", variant="primary", compact=True)

    def on_mount(self) -> None:
        """Begin with the smallest preset."""
        self._apply(schema.texts_of(PRESETS[FIRST_PRESET].values))
        self._name_directory()

    def on_resize(self) -> None:
        """Break the lines of the estimate for the new width."""
        self._show()

    def focus_first(self) -> None:
        """Put the cursor where one begins."""
        self.query_one("#form-preset").focus()

    # texts

    def _field(self, name: str) -> Input | Choice:
        widget = self.query_one(f"#field-{name}")
        if not isinstance(widget, (Input, Choice)):
            raise NoMatches(name)
        return widget

    def texts(self) -> dict[str, str]:
        """What stands in the fields."""
        return {name: self._field(name).value for name in self.fields}

    def _apply(self, texts: dict[str, str]) -> None:
        with self.prevent(Input.Changed, Choice.Changed):
            for name, text in texts.items():
                self._field(name).value = text
        self._judge()

    def set_field(self, name: str, text: str) -> None:
        """Put a text into a field, as if it had been typed."""
        self._field(name).value = text
        self._judge()

    def _take_preset(self, name: str) -> None:
        """Fill the fields from a preset, or with what was left there when another one was chosen."""
        texts = self.texts()
        self._left[self._preset] = texts
        self._preset = name
        values = PRESETS[name].values if name in PRESETS else {}
        filled = self._left.get(name) or schema.texts_of(values)
        self._apply({**filled, **{field: texts[field] or filled[field] for field in CARRIED}})
        self._name_directory()

    @property
    def directory(self) -> Path:
        """Where the run would go; the home directory's mark is kept for another machine's shell."""
        text = self.query_one("#form-directory", Input).value.strip()
        there = launcher.is_remote(self.prefix) or cluster_of(self.prefix) == CLUSTERS["sky"]
        return Path(text) if there else Path(text).expanduser()

    @property
    def prefix(self) -> list[str]:
        """The words before the command; none while they cannot be read."""
        try:
            return launcher.split_prefix(self.query_one("#form-prefix", Input).value)
        except UserError:
            return []

    def _name_directory(self) -> None:
        """Propose a directory that is free, unless one was named by hand."""
        field = self.query_one("#form-directory", Input)
        if field.value not in ("", self._proposed):
            return
        base = self.query_one("#field-config", Choice).value or "run"
        number = 1
        while (path := self.root / f"{base}-{number}").exists() or path in self._launched:
            number += 1
        self._proposed = field.value = str(path)

    # judging

    @on(Input.Changed)
    @on(Choice.Changed)
    def _typed(self, event: Input.Changed | Choice.Changed) -> None:
        event.stop()
        widget = event.choice if isinstance(event, Choice.Changed) else event.input
        if widget.id == "form-preset":
            self._take_preset(widget.value)
            self._hint_for(widget)
            return
        if widget.id == "form-file":
            return
        if widget.id == "field-config":
            self._name_directory()
        self._judge()

    def _judge(self, *, again: bool = False) -> None:
        """Judge all fields, mark the wrong ones, show the command; files are looked at a moment later. Where nothing
        has changed nothing is done, unless `again`.
        """
        texts = self.texts()
        others = [self.query_one(f"#form-{name}", Input).value for name in ("prefix", "directory")]
        if (texts, others) == self._judged_texts and not again:
            return
        self._judged_texts = texts, others
        checked = schema.check(texts)
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
        for name, field in self.fields.items():
            widget, required = self._field(name), is_required(field, texts)
            widget.set_class(name in self.problems, "-wrong")
            if isinstance(widget, Input):
                widget.placeholder = empty_text(field, texts)
            else:
                widget.blank = empty_text(field, texts)
            label = widget.parent.query_one(Label) if widget.parent is not None else None
            if label is not None and label.has_class("-required") != required:
                label.set_class(required, "-required")
                label.update(field.name.replace("_", " ") + (" *" if required else ""))
        self._priced = self.config
        if self.config is None and not texts["data_path"]:  # what it costs can be said before the data is named
            self._priced = schema.check({**texts, "data_path": str(self.root)}).config
        self.estimate = self.checks = None
        self._number += 1  # what is found out of the texts of before counts no more
        self._wanted = False
        self._show()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(SETTLE_SECONDS, self._look) if self._priced is not None else None

    def _look(self) -> None:
        config = self._priced
        if config is None:
            return
        nameless = self.config is None
        number = self._number
        directory, prefix = self.directory, self.prefix
        cluster = cluster_of(prefix)
        remote = launcher.is_remote(prefix) or cluster is not None

        def work(_: Job[Outcome]) -> Outcome:
            try:
                if self._measured is None:
                    self._measured = measured_speeds(run.path for run in find_runs(self.root) if not run.is_log)
                if nameless:
                    checks = []
                    outcome = estimate(config, None, self._measured, elsewhere=remote)
                elif remote:
                    where = cluster or "other machine"
                    checks = [Check(where, "note", "its data, PyTorch, disk and memory are not looked at")]
                    synthetic = check_dataset(config).train_tokens if config.dataset == "synthetic" else None
                    outcome = estimate(config, synthetic, elsewhere=True)
                else:
                    checks = preflight(config, directory, prefix=prefix)
                    outcome = estimate(fitted(config), check_dataset(config).train_tokens, self._measured)
            except (UserError, OSError) as error:
                checks, outcome = [Check("data", "error", str(error))], estimate(config)
            return outcome, checks

        if self._looking is not None:
            self._looking.stop()
        self._looking = Job(self, work, functools.partial(self._looked, number), name="form-look").start()

    def _looked(self, number: int, outcome: Outcome) -> None:
        if number == self._number and self._priced is not None:
            self.estimate, self.checks = outcome
            self._show()
            if self._wanted:
                self.action_launch()

    @property
    def ready(self) -> bool:
        """Whether a launch makes sense: everything valid and nothing against it."""
        return self.config is not None and not self.problems and self.checks is not None and ready(self.checks)

    # showing

    def _show(self) -> None:
        checks = self.checks or []
        report = self.query_one(Report)
        costs = cost_lines(self.estimate, max(30, report.size.width - 2)) if self.estimate is not None else []
        waiting = "checking …" if self._priced is not None and self.checks is None else ""
        command = Content.assemble(
            ("command\n", "$text-primary"),
            (display_safe(shlex.join(self.command), 4000) if self.command else "–", "$text"),
        )
        parts = {
            "problems": problem_lines(self.problems, checks),
            "facts": Content("\n".join(costs) or waiting),
            "checks": check_lines(checks),
            "command": command,
        }
        for name, content in parts.items():
            static = self.query_one(f"#form-{name}", Static)
            static.display = bool(content.plain)
            static.update(content)
        button = self.query_one("#form-launch", Button)
        button.disabled = not self.ready
        button.label = Content(f"Launch {launcher.place_text(self.prefix)}")

    def on_descendant_focus(self) -> None:
        """Explain the field that has the focus."""
        focused = self.screen.focused
        if focused is not None:
            self._hint_for(focused)

    def _hint_for(self, widget: Widget) -> None:
        field = self.fields.get(widget.name or "")
        hints = {
            "form-directory": "Where the run's files go; it must be free.",
            "form-prefix": "Put before the command: nice -n 10, torchrun …, ssh HOST; slurm … or sky … submits a job.",
            "form-report": "What follows from the fields; ↑/↓ scroll, Tab leaves.",
            "form-file": "A file of init-config, or a run whose settings to take; Enter reads it.",
        }
        text = hints.get(widget.id or "", "")
        if isinstance(widget, Choice) and widget.id == "form-preset":
            text = PRESETS[widget.value].purpose if widget.value in PRESETS else "the trainer's defaults"
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
        """Ask for the launch, or say what stands against it; while that is still looked for, a moment later."""
        errors = [check for check in self.checks or () if check.state == "error"]
        if self.config is None or self.problems:
            name, problem = next(iter(self.problems.items()), ("", "the settings are not valid"))
            said = f"{name.replace('_', ' ')}: {problem}" if name else problem
        elif errors:
            said = f"{errors[0].name}: {errors[0].text}"
        elif self._launching:
            said = "a launch is under way"
        elif self.checks is None:
            self._wanted = True
            return
        else:
            self._wanted = False
            self._launching = True
            self._launch_texts = self._judged_texts
            self.post_message(messages.LaunchWanted(self.config, self.directory, self.prefix))
            return
        self.app.notify(display_safe(said, 400), severity="error", markup=False)

    @property
    def touched(self) -> bool:
        """Whether something was typed since the launch: who types must not be taken to another tab."""
        return self._judged_texts != self._launch_texts

    def launched(self, directory: Path | None) -> None:
        """A launch is over: `directory` is taken now and another one proposed; None: it was refused, all stays."""
        self._launching = False
        if directory is not None:
            self._launched.add(directory)
            self._measured = None
            self.query_one("#form-directory", Input).value = ""
            self._name_directory()
        self._judge(again=True)

    def action_save(self) -> None:
        """Save the settings as TOML next to the run's directory; a file that is there is replaced only if so wished."""
        if self.config is None or not self.directory.name:
            self.action_launch()  # says what is wrong
            return
        target = self.directory.with_name(f"{self.directory.name}.toml")
        if not target.exists():
            self._save(target)
            return

        def go(wanted: bool | None) -> None:
            if wanted:
                self._save(target)

        question = f"{display_safe(str(target), 300)} is there already. Replace it by these settings?"
        self.app.push_screen(Confirm(question, yes="Replace it"), go)

    def _save(self, target: Path) -> None:
        if self.config is None:
            return
        try:
            schema.save_settings(target, self.config)
        except (UserError, OSError) as error:
            self.app.notify(display_safe(str(error), 400), severity="error", markup=False)
            return
        self.app.notify(display_safe(f"Saved as {target}; train with --config"), timeout=5, markup=False)
