"""The fields of the form of a new run: one line each, those that hold paths as wide as there is room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input, Label

from nanochat_tui.model.config import PRESETS as SHAPES
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.runs.config import LENGTHS
from nanochat_tui.runs.schema import FormField
from nanochat_tui.tui.widgets.choice import Choice

SHAPE_FIELDS = {field.name: field.name for field in dataclass_fields(ModelConfig)} | {"seq_len": "context_length"}
"""Fields that override the named shape, and what they override."""
FOLLOWS = {"n_kv_heads": "n_heads", "seq_len": "context_length"}
"""Fields that follow another one where that is given."""
EMPTY_MEANS = {
    **dict.fromkeys(LENGTHS, "no limit"),
    "data_path": "required: a folder made by prepare-data",
    "val_path": "the data's own",
    "token_dtype": "data's",
    "tokenizer": "the data's own",
    "threads": "all",
    "final_eval_tokens": "all",
}
"""What an empty field means, for those that no shape decides."""


SHORT_TEXT = 8
"""Characters of a default above which a text field takes a row of its own."""


class Fields(VerticalScroll, can_focus=False):
    """The fields. The arrows are taken here, because a scrolling container would scroll by them; they stay inside."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "field(1)", "Next field", show=False, id="form.next"),
        Binding("up", "field(-1)", "Previous field", show=False, id="form.previous"),
        Binding("pagedown", "field(8)", "Further down", show=False, id="form.far_next"),
        Binding("pageup", "field(-8)", "Further up", show=False, id="form.far_previous"),
    ]

    def action_field(self, by: int) -> None:
        """Go to another field, to the first or last where there are not so many, and below the last to the report."""
        focusable: list[Widget] = [widget for widget in self.query("Input, Choice") if widget.focusable]
        focused = self.screen.focused
        at = focusable.index(focused) if focused in focusable else 0
        if by > 0 and focused is focusable[-1]:
            self.screen.query_one(Report).focus()
        else:
            focusable[min(max(0, at + by), len(focusable) - 1)].focus()


class Report(VerticalScroll, can_focus=True):
    """What follows from the fields, and the command line; scrolls with the arrows when it has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="form.down"),
        Binding("up,k", "up", "Up", show=False, id="form.up"),
    ]

    def action_up(self) -> None:
        """Scroll, and at the top go back to the last field."""
        if self.scroll_y > 0:
            self.scroll_up()
        else:
            self.screen.query_one(Fields).query("Input, Choice").last().focus()


def line(label: str, widget: Widget, *, required: bool = False) -> Horizontal:
    """A labelled field."""
    mark = Label(f"{label} *" if required else label, markup=False)
    mark.set_class(required, "-required")
    return Horizontal(mark, widget, classes="row")


def group_of(title: str, fields: list[FormField]) -> ComposeResult:
    """A group of fields: paths and long texts take a row each, of the others two stand in one."""
    with Container(classes="group"):
        yield Label(title, classes="heading")
        pair: list[Horizontal] = []
        for field in fields:
            row = line(field.name.replace("_", " "), _widget(field))
            if _is_long(field):
                yield from _paired(pair)
                pair = []
                yield row
            else:
                pair.append(row)
        yield from _paired(pair)


def _paired(rows: list[Horizontal]) -> ComposeResult:
    for at in range(0, len(rows), 2):
        yield Horizontal(*rows[at : at + 2], classes="pair")


def _is_long(field: FormField) -> bool:
    return field.kind == "path" or (field.kind == "text" and len(field.default) > SHORT_TEXT)


def _widget(field: FormField) -> Widget:
    name = f"field-{field.name}"
    if field.kind == "switch":
        return Choice(("yes", "no"), field.default, id=name, name=field.name)
    if field.kind == "choice":
        options = ("", *field.choices) if field.optional else field.choices
        return Choice(options, field.default, id=name, name=field.name)
    # a number is replaced by what is typed, a path is long and stays
    return Input(field.default, id=name, name=field.name, select_on_focus=not _is_long(field), compact=True)


def empty_text(field: FormField, texts: Mapping[str, str]) -> str:
    """What an empty field means now: the value that will be taken."""
    shape = SHAPES.get(texts.get("config", ""))
    leader = FOLLOWS.get(field.name)
    if leader and texts.get(leader) and (leader != "n_heads" or (shape and shape.n_kv_heads == shape.n_heads)):
        return f"{texts[leader]} ({leader.replace('_', ' ')})"
    if shape is not None and field.optional and field.name in SHAPE_FIELDS:
        return f"{getattr(shape, SHAPE_FIELDS[field.name]):,} ({texts['config']})"
    if field.name == "data_path" and texts.get("dataset") == "synthetic":
        return "none: the data is synthetic"
    if field.name == "epochs" and not any(texts.get(name) for name in LENGTHS):
        return "1"
    return EMPTY_MEANS.get(field.name, field.default or field.bounds or "default")


def is_required(field: FormField, texts: Mapping[str, str]) -> bool:
    """Whether a field that has no default must be filled in."""
    return field.name == "data_path" and texts.get("dataset") == "tokens"
