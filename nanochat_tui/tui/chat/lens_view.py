"""The token lens on the screen: the ribbon under a reply, and the alternatives of the token under the cursor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.content import Content
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from nanochat_tui.chat.backend import Token
from nanochat_tui.tui.chat.lens import LEVELS, Cell, choices, is_same, layout, level, probability, spelled
from nanochat_tui.tui.messages import BranchChosen
from nanochat_tui.tui.numbers import percent

BAR = 24


class TokenRibbon(Widget, can_focus=True):
    """A reply token by token, coloured by probability. Draws line by line from cached styles."""

    HELP = """\
### Token lens
Every token of the reply, coloured by how likely it was: red is unlikely, green is certain. **{lens.before|←}
{lens.next|→}** (or **{lens.before|h} {lens.next|l}**) go from token to token, **{lens.ten_before|PageUp}
{lens.ten_on|PageDown}** by ten, **{lens.first|Home} {lens.last|End}** to the ends. **{lens.likelier|↑} {lens.less|↓}**
choose another token that might have stood there, and **{lens.branch|Enter}** branches: a new session in which the reply
continues from that token. **{chat.back|Esc}** closes.
"""

    DEFAULT_CSS = "TokenRibbon { height: auto; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "Before", show=False, id="lens.before"),
        Binding("right,l", "move(1)", "Next", show=False, id="lens.next"),
        Binding("pageup", "move(-10)", "Ten before", show=False, id="lens.ten_before"),
        Binding("pagedown", "move(10)", "Ten on", show=False, id="lens.ten_on"),
        Binding("home", "move(-1000000)", "First", show=False, id="lens.first"),
        Binding("end", "move(1000000)", "Last", show=False, id="lens.last"),
        Binding("up,k", "choose(-1)", "Likelier", id="lens.likelier"),
        Binding("down,j", "choose(1)", "Less likely", id="lens.less"),
        Binding("enter", "branch", "Branch here", priority=True, id="lens.branch"),
    ]

    class Moved(Message):
        """The cursor or the choice changed."""

        def __init__(self, ribbon: TokenRibbon) -> None:
            super().__init__()
            self.ribbon = ribbon

    cursor: reactive[int] = reactive(0, layout=False)
    choice: reactive[int] = reactive(0, layout=False)

    def __init__(
        self,
        turn: int,
        tokens: Sequence[Token],
        *,
        can_branch: bool = True,
        bytes_of: Callable[[int], bytes] | None = None,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self._bytes_of = bytes_of
        self.turn = turn
        self.can_branch = can_branch
        self.tokens: list[Token] = list(tokens)
        self._cells: list[Cell] = []
        self._width = 0
        self._styles: tuple[str, list[Style]] = ("", [])

    def show(self, tokens: Sequence[Token]) -> None:
        """Show the tokens of a reply that grew, or other ones."""
        same = len(tokens) >= len(self.tokens) and all(
            a is b for a, b in zip(self.tokens[-3:], tokens[len(self.tokens) - 3 : len(self.tokens)], strict=False)
        )
        self.tokens = list(tokens)
        if not same:
            self._cells = []
            self.cursor = min(self.cursor, max(0, len(tokens) - 1))
            self.reset_choice()
        self.refresh(layout=True)

    @property
    def token(self) -> Token | None:
        """The token under the cursor."""
        return self.tokens[self.cursor] if 0 <= self.cursor < len(self.tokens) else None

    @property
    def choices(self) -> list[Token]:
        """What could stand under the cursor."""
        return choices(self.token) if self.token is not None else []

    def reset_choice(self) -> None:
        """Choose the token that was taken."""
        token = self.token
        if token is not None:
            self.choice = next((i for i, other in enumerate(self.choices) if is_same(other, token)), 0)
        self.post_message(self.Moved(self))

    def spell(self, token: Token) -> str:
        """Return a token as it is written here: as its bytes, where it is a part of a character."""
        known = token.id is not None and self._bytes_of is not None
        return spelled(token.text, self._bytes_of(token.id) if known else b"")  # type: ignore[misc, arg-type]

    # Drawing

    def _lay_out(self, width: int) -> list[Cell]:
        if width != self._width or len(self._cells) > len(self.tokens):
            self._cells, self._width = [], width
        if len(self._cells) < len(self.tokens):
            self._cells = layout(self.tokens, max(8, width), self._cells, self.spell)
        return self._cells

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return as many rows as the tokens need."""
        cells = self._lay_out(width)
        return cells[-1].row + 1 if cells else 1

    def _level_styles(self) -> list[Style]:
        name = self.app.theme
        if self._styles[0] != name:
            variables = self.app.theme_variables
            ground, text = Color.parse(variables["background"]), Color.parse(variables["foreground"])
            low, middle, high = (Color.parse(variables[key]) for key in ("error", "warning", "success"))
            made = []
            for index in range(LEVELS):
                part = index / (LEVELS - 1)
                colour = low.blend(middle, part * 2) if part < 0.5 else middle.blend(high, part * 2 - 1)
                back = ground.blend(colour, 0.55 - 0.2 * part)
                made.append(Style(color=text.rich_color, bgcolor=back.rich_color))
            self._styles = (name, made)
        return self._styles[1]

    def render_line(self, y: int) -> Strip:
        """Draw one row."""
        width = self.size.width
        styles = self._level_styles()
        segments: list[Segment] = []
        column = 0
        for cell in self._row(y):
            style = styles[level(self.tokens[cell.index].logprob)]
            if cell.index == self.cursor:
                style += Style(reverse=True, bold=True)
            segments.append(Segment(cell.text, style))
            column += cell.width
        blank = self.rich_style
        segments.append(Segment(" " * max(0, width - column), blank))
        return Strip(segments).adjust_cell_length(width, blank)

    def _row(self, y: int) -> list[Cell]:
        cells = self._lay_out(self.size.width)
        low, high = 0, len(cells)
        while low < high:
            middle = (low + high) // 2
            if cells[middle].row < y:
                low = middle + 1
            else:
                high = middle
        end = low
        while end < len(cells) and cells[end].row == y:
            end += 1
        return cells[low:end]

    # Moving

    def watch_cursor(self, old: int, new: int) -> None:
        """Draw the two rows that changed, and bring the cursor into view."""
        cells = self._cells
        for index in (old, new):
            if index < len(cells):
                self.refresh(Region(0, cells[index].row, self.size.width, 1))
        if new < len(cells) and self.is_attached and self.parent is not None:
            row = Region(self.virtual_region.x, self.virtual_region.y + cells[new].row, 1, 1)
            self.parent.scroll_to_region(row, animate=False)  # type: ignore[attr-defined]
        self.reset_choice()

    def action_move(self, step: int) -> None:
        """Go some tokens further."""
        self.cursor = max(0, min(len(self.tokens) - 1, self.cursor + step))

    def action_choose(self, step: int) -> None:
        """Choose another token for this place."""
        self.choice = max(0, min(len(self.choices) - 1, self.choice + step))
        self.post_message(self.Moved(self))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer branching only where the reply can go on from the middle."""
        return self.can_branch if action == "branch" else True

    def action_branch(self) -> None:
        """Ask for the branch."""
        token = self.token
        if token is not None and self.choices:
            self.post_message(BranchChosen(self.turn, self.cursor, self.choices[self.choice]))

    def on_click(self, event: Click) -> None:
        """Go to the token that was pointed at."""
        self.focus()
        for cell in self._row(event.y):
            if cell.column <= event.x < cell.column + cell.width:
                self.cursor = cell.index


class Alternatives(Static):
    """What could have stood in the place of the token under the cursor. A fixed number of rows."""

    def show(self, ribbon: TokenRibbon, rows: int, note: str = "") -> None:
        """Write the rows again."""
        token = ribbon.token
        if token is None:
            self.update(Content("nothing yet"))
            return
        found = ribbon.choices
        head = Content.assemble(
            (f"token {ribbon.cursor + 1} of {len(ribbon.tokens)}  ", "$text 60%"),
            (f"“{ribbon.spell(token)}”", "bold"),
            (f"  {percent(probability(token.logprob))}", "$text-primary"),
            (f"  id {token.id}" if token.id is not None else "", "$text 60%"),
            (f"  {note}" if note else "", "$text-warning"),
        )
        start = max(0, min(ribbon.choice - rows + 1, len(found) - rows))
        lines = [head]
        for place, choice in list(enumerate(found))[start : start + rows]:
            taken = "●" if is_same(choice, token) else " "
            pointer = "›" if place == ribbon.choice else " "
            bar = "█" * round((probability(choice.logprob) or 0.0) * BAR)
            name, share = ribbon.spell(choice).replace(" ", "·")[:16], percent(probability(choice.logprob))
            line = f"{pointer}{taken} {name:<17}{share:>8} "
            lines.append(
                Content(line).stylize("bold" if place == ribbon.choice else "") + Content.styled(bar, "$accent")
            )
        self.update(Content("\n").join(lines))
