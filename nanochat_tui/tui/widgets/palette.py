"""The keys of a widget as lines of the palette, so that what has a key can also be found by its name."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from functools import partial

from textual.binding import Binding
from textual.widget import Widget

from nanochat_tui.tui.keys import key_names


def key_commands(
    owner: Widget, title: str, *, without: Container[str] = ()
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Yield title, help and callback for every key of `owner` that makes sense now, hidden keys included, but for the
    actions `without`; `title` says where they belong. Only the owner's class is asked, not those it inherits from:
    scrolling is no command.
    """
    for binding in owner.BINDINGS:
        if not isinstance(binding, Binding) or not binding.description or binding.action in without:
            continue
        name, _, arguments = binding.action.partition("(")
        parameters = tuple(part.strip(" '\"") for part in arguments.rstrip(")").split(",")) if arguments else ()
        if owner.check_action(name, parameters):
            key = owner.app.get_key_display(binding)
            if binding.id:
                key = key_names(owner).of(binding.id, key)
            call = partial(owner.app.run_action, binding.action, owner)
            yield f"{title}: {binding.description}", f"The key {key}", call
