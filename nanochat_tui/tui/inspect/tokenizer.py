"""The tokenizer: text to tokens and back, and the vocabulary searched."""

from __future__ import annotations

from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Input, Static

from nanochat_tui.errors import UserError
from nanochat_tui.inspection.vocabulary import TokenInfo, Vocabulary, parse_ids
from nanochat_tui.text import counted, display_safe, printable
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.inspect.opened import Opened
from nanochat_tui.tui.inspect.pane import Pane, Scroller

LONGEST = 20_000
"""Characters of a text that are encoded as one types."""
MOST = 300
"""Tokens that are listed."""
EXAMPLE = "fn main() {"
_GROUNDS = ("$primary-muted", "$secondary-muted", "$accent-muted")


def visible(info: TokenInfo) -> str:
    """Return a token's text with blanks that can be seen, safe to show."""
    text = info.bytes.decode("utf-8", "replace")
    if "\ufffd" in text:
        return info.bytes.hex(" ")
    shown = printable(text.replace("\n", "⏎").replace("\t", "⇥"))
    return shown if shown.strip() else shown.replace(" ", "␣")


def coloured(tokens: list[TokenInfo]) -> Content:
    """Return a text in which neighbouring tokens stand on different grounds."""
    parts = [
        Content.styled(visible(info), f"$text on {_GROUNDS[index % len(_GROUNDS)]}")
        for index, info in enumerate(tokens)
    ]
    return Content("").join(parts)


def table(tokens: list[TokenInfo]) -> list[Content]:
    """Return a line for each token: id, text, bytes, kind, score."""
    quiet = "$text 60%"
    lines = [Content.styled(f"{'id':>7}  {'token':<24} {'bytes':<30} kind", quiet)]
    for info in tokens[:MOST]:
        text = visible(info)
        hexed = info.bytes[:9].hex(" ") + (" …" if len(info.bytes) > 9 else "")
        kind = info.kind if info.score is None else f"{info.kind} {info.score:.3g}"
        lines.append(
            Content.assemble(
                (f"{info.id:>7}  ", "$text-primary"),
                Content(text[:24].ljust(24)),
                (f" {hexed:<30} ", quiet),
                (display_safe(kind, 40), quiet),
            )
        )
    if len(tokens) > MOST:
        lines.append(Content.styled(f"… and {len(tokens) - MOST:,} more", quiet))
    return lines


class TokenizerPane(Pane):
    """Two fields and what they find."""

    TITLE = "Tokens"
    HELP = """\
### Tokens
The first field turns text into tokens, with their ids and bytes (`\\n` and `\\t` may be written so). The second
searches the vocabulary, or turns ids such as `318 257` back into text. **{tokens.text|i}** goes to the first field,
**{tokens.search|/}** to the second, **Tab** from one to the other; **{inspect.back|Esc}** leaves a field, so that keys
are no longer text.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "text", "Text", id="tokens.text"),
        Binding("slash", "search", "Search", id="tokens.search"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.vocabulary: Vocabulary | None = None

    def compose(self) -> ComposeResult:
        """Fields above, results below."""
        yield Input(placeholder="text to tokens", id="tokens-text")
        yield Input(placeholder="search the vocabulary, or ids to text", id="tokens-search")
        with Scroller(can_focus=True):
            yield Static(id="tokens-result", markup=False)

    def focus_first(self) -> None:
        """The results take the keys; a field would take the numbers that change the tab."""
        self.query_one(Scroller).focus()

    def action_text(self) -> None:
        """Go to the field of text."""
        self.query_one("#tokens-text", Input).focus()

    def action_search(self) -> None:
        """Go to the search field."""
        self.query_one("#tokens-search", Input).focus()

    def action_leave(self) -> None:
        """Go from a field to the results, so that keys are no longer text."""
        self.query_one(Scroller).focus()

    def fill(self, opened: Opened | None) -> None:
        """See `Pane`."""
        self.vocabulary = None
        if opened is None:
            return
        if opened.file is None:
            self._show(Content("Files of the original nanochat-rs-ternary have no tokenizer inside."))
            return
        self._show(Content.styled("building the tokenizer …", "$text 60%"))

        def build(_job: Job[Any]) -> Vocabulary | None:
            made = opened.vocabulary
            if made is not None:
                made.search(EXAMPLE, 1)  # the first search spells all tokens
            return made

        self.start_job("vocabulary", build, self._built)

    def _built(self, vocabulary: Vocabulary | None) -> None:
        self.vocabulary = vocabulary
        field = self.query_one("#tokens-text", Input)
        if not field.value and vocabulary is not None and vocabulary.codec is not None:
            field.value = EXAMPLE  # which shows it
        else:
            self._encode()

    def _show(self, content: Content) -> None:
        self.query_one("#tokens-result", Static).update(content)

    @on(Input.Changed, "#tokens-text")
    @on(Input.Submitted, "#tokens-text")
    def _encode(self) -> None:
        vocabulary = self.vocabulary
        if vocabulary is None:
            return
        quiet = "$text 60%"
        text = self.query_one("#tokens-text", Input).value[:LONGEST].replace("\\n", "\n").replace("\\t", "\t")
        head = Content.styled(f"{len(vocabulary):,} tokens, {display_safe(vocabulary.kind, 40)}", quiet)
        if vocabulary.problem is not None:
            head += Content.styled(f"\n{vocabulary.problem}", "$text-warning")
        if not text or vocabulary.codec is None:
            self._show(head)
            return
        try:
            tokens = vocabulary.encode(text)
        except UserError as error:
            self._show(Content.styled(str(error), "$text-error"))
            return
        per = len(text) / max(1, len(tokens))
        count = Content.assemble(
            (counted(len(tokens), "token"), "bold"),
            (f" for {counted(len(text), 'character')}, {per:.2f} each", quiet),
        )
        self._show(Content("\n").join([coloured(tokens[:MOST]), count, Content(""), *table(tokens)]))

    @on(Input.Changed, "#tokens-search")
    @on(Input.Submitted, "#tokens-search")
    def _search(self) -> None:
        vocabulary, query = self.vocabulary, self.query_one("#tokens-search", Input).value
        if vocabulary is None:
            return
        if not query:
            self._encode()
            return
        ids = parse_ids(query)
        if ids is not None:
            found = [info for token in ids if (info := vocabulary.token(token)) is not None]
            unknown = [str(token) for token in ids if vocabulary.token(token) is None]
            lines = [Content(printable(vocabulary.decode(ids)))]
            if unknown:
                lines.append(Content.styled(f"outside of the vocabulary: {', '.join(unknown)}", "$text-warning"))
            more = vocabulary.search(query.strip(), 20)[0] if len(ids) == 1 else []
            lines += [Content(""), *table(found)]
            if more:
                lines += [Content(""), Content.styled("tokens with these digits", "$text 60%"), *table(more)]
            self._show(Content("\n").join(lines))
            return
        tokens, count = vocabulary.search(query.replace("\\n", "\n").replace("\\t", "\t"), MOST)
        head = Content.styled(f"{count:,} tokens hold it" if count else "no token holds it", "$text 60%")
        self._show(Content("\n").join([head, *(table(tokens) if tokens else [])]))
