"""The help for what has the focus, with the keys as they are."""

from __future__ import annotations

from textual import widgets
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.widgets import KeyPanel, Markdown

from nanochat_tui.tui.keys import key_names


class _Text(Markdown):
    """Names keys in the texts it is given, which are the application's own."""

    def update(self, markdown: str) -> AwaitComplete:
        """See `Markdown.update`."""
        return super().update(key_names(self)(markdown))


class HelpPanel(widgets.HelpPanel):
    """Textual's panel, whose texts may name keys as `tui/keys.py` says."""

    def compose(self) -> ComposeResult:
        """Lay out the text and all keys."""
        yield _Text(id="widget-help")
        yield KeyPanel(id="keys-help")
