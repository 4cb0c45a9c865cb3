"""The chat template, rendered on a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from nanochat_tui.inspection.template import SAMPLE, Rendering, render_sample, special_tokens, template_of
from nanochat_tui.text import display_safe, printable
from nanochat_tui.tui.inspect.opened import Opened
from nanochat_tui.tui.inspect.pane import Pane, Scroller

Conversation = Callable[[], Sequence[Mapping[str, Any]]]
_THINKING: tuple[tuple[str, bool | None], ...] = (("as it likes", None), ("on", True), ("off", False))


class TemplatePane(Pane):
    """Shows what the model would read, with the marks of roles in colour."""

    TITLE = "Template"
    HELP = """\
### Template
What a conversation becomes before the model reads it, by the file's template or, where it has none that works, by its
family's, as in the chat. **{template.sample_chat|c}** changes between a sample and the conversation of the chat,
**{template.reply_begun|r}** adds or leaves the beginning of the reply, **{template.thinking|y}** switches thinking,
**{template.source|t}** shows the template itself. Special tokens are coloured.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "conversation", "Sample/chat", id="template.sample_chat"),
        Binding("r", "generation", "Reply begun", id="template.reply_begun"),
        Binding("y", "thinking", "Thinking", id="template.thinking"),
        Binding("t", "source", "Source", id="template.source"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.from_chat = False
        self.begun = True
        self.thinking = 0
        self.source = False

    def compose(self) -> ComposeResult:
        """A line that says what is shown, and the text."""
        yield Static(id="template-head", markup=False)
        with Scroller(can_focus=True):
            yield Static(id="template-text", markup=False)

    def fill(self, opened: Opened | None) -> None:
        """See `Pane`."""
        self._draw()

    def activate(self, opened: Opened | None) -> None:
        """Also when nothing but the conversation has changed."""
        super().activate(opened)
        self._draw()

    def _messages(self) -> Sequence[Mapping[str, Any]]:
        """The conversation of the chat, where the application tells it."""
        tell: Conversation | None = getattr(self.app, "session_messages", None)
        return tell() if tell is not None else ()

    def _draw(self) -> None:
        opened = self.opened
        if opened is None:
            return
        text, head = self.query_one("#template-text", Static), self.query_one("#template-head", Static)
        metadata = {} if opened.file is None else opened.file.metadata
        template, assumed = template_of(metadata)
        if template is None:
            head.update(Content.styled("no chat template in this file", "$text-warning"))
            text.update("Text is completed as it is.")
            return
        if self.source:
            which = "the template itself" if assumed is None else f"the template of its family: {assumed}"
            told = f"{display_safe(which, 300)}; {len(template):,} characters"
            head.update(Content.styled(told, "$text 60%" if assumed is None else "$text-warning"))
            text.update(Content(printable(template[:100_000])))
            return
        messages = self._messages() if self.from_chat else SAMPLE
        quiet = "$text 60%"
        which = "the chat's conversation" if self.from_chat else "a sample conversation"
        told = (
            f"{which} · beginning of the reply {'added' if self.begun else 'left out'} · "
            f"thinking {_THINKING[self.thinking][0]}"
        )
        head.update(Content.styled(told, quiet))
        if not messages:
            text.update("Nothing was said in the chat yet.")
            return
        found = render_sample(
            metadata, messages, add_generation_prompt=self.begun, enable_thinking=_THINKING[self.thinking][1]
        )
        text.update(self._rendered(found, special_tokens(metadata)))

    def _rendered(self, found: Rendering, marks: tuple[str, str]) -> Content:
        if found.text is None:
            return Content.styled(display_safe(found.error or "", 1000), "$text-error")
        content = Content(printable(found.text))
        content = content.highlight_regex(
            r"<\|[^|<>\s]{1,40}\|>|</?[a-z_]{1,20}>|\[/?[A-Z_]{1,20}\]", style="bold $text-primary"
        )
        for mark in marks:
            start = content.plain.find(mark) if mark else -1
            while start >= 0:
                content = content.stylize("bold $text-primary", start, start + len(mark))
                start = content.plain.find(mark, start + len(mark))
        if found.note is not None:
            content = Content.styled(f"{found.note}\n\n", "$text-warning") + content
        return content

    def action_conversation(self) -> None:
        """Change between sample and chat."""
        self.from_chat = not self.from_chat
        self._draw()

    def action_generation(self) -> None:
        """Add or leave the beginning of the reply."""
        self.begun = not self.begun
        self._draw()

    def action_thinking(self) -> None:
        """Change what the template is told about thinking."""
        self.thinking = (self.thinking + 1) % len(_THINKING)
        self._draw()

    def action_source(self) -> None:
        """Show the template itself, or what it makes."""
        self.source = not self.source
        self._draw()
