"""Does what slash commands, keys and the palette say. Each part of the chat brings its own acts; those about settings
and about the kind of the session are here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from textual.content import Content

from nanochat_tui.text import printable
from nanochat_tui.tui.chat.act import Act
from nanochat_tui.tui.chat.commands import COMMANDS, Command, suggestions
from nanochat_tui.tui.chat.view import ChatView, Desk
from nanochat_tui.tui.widgets.dialogs import Ask, Field

SHOWN = 6
"""Commands suggested at once."""
OF_THE_APPLICATION = ("preferences", "log", "help", "quit")
"""Commands that the application's own palette has too."""


class CommandRunner:
    """Runs acts by their names: those of `COMMANDS`, and others that have a key only."""

    def __init__(self, acts: Mapping[str, Act], view: ChatView, desk: Desk) -> None:
        self._acts, self._view, self._desk = acts, view, desk

    @property
    def names(self) -> frozenset[str]:
        """What can be done, by name."""
        return frozenset(self._acts)

    def possible(self, name: str) -> bool | None:
        """Whether an act makes sense now; None shows its key dimmed."""
        return self._acts[name].possible()

    async def do(self, name: str, argument: str = "") -> None:
        """Do one thing."""
        result = self._acts[name].run(argument)
        if inspect.isawaitable(result):
            await result

    async def run(self, command: Command, argument: str) -> None:
        """Do what a command says, asking for its argument if it needs one and none was given."""
        if not self.possible(command.name):
            self._view.say_error(f"/{command.name} is not possible now.")
        elif command.argument and not argument and not command.optional:
            self._ask_argument(command)
        else:
            await self.do(command.name, argument)

    def _ask_argument(self, command: Command) -> None:
        act = self._acts[command.name]

        async def answered(texts: list[str] | None) -> None:
            if texts is not None and (texts[0] or act.blank):
                await self.do(command.name, texts[0])

        title = f"{command.title}: {command.argument.lower()}"
        self._desk.ask(Ask(title, [Field(act.value())], command.help), answered)

    def palette(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """Every command that makes sense now, for the palette."""
        for command in COMMANDS:
            act = self._acts[command.name]
            if command.name in OF_THE_APPLICATION or not act.concerns() or not act.possible():
                continue
            key = f" ({self._desk.keys(command.key)})" if command.key else f" (/{command.name})"
            yield command.title, command.help + key, partial(self.run, command, "")

    def suggested(self, text: str, ways: list[str], width: int) -> Content | None:
        """Return which commands the input may become, or else the `ways` Tab could not choose from; None if there are
        none.
        """
        found = suggestions(text) if text.startswith("/") and "\n" not in text else []
        if not found:
            names = Content(printable("   ".join(ways)))
            return names.truncate(max(8, width * 4), ellipsis=True) if ways else None
        rows = [
            Content.assemble(
                (f"/{command.name}", "bold $text-primary"),
                (f" {command.argument}".ljust(24 - len(command.name)), "$text 60%"),
                command.help,
            )
            for command in found[:SHOWN]
        ]
        if len(found) > len(rows):
            tab = self._desk.keys("{prompt.complete|Tab}")
            rows.append(Content.styled(f"… {len(found) - len(rows)} more; {tab} completes", "$text 60%"))
        return Content("\n").join(rows)
