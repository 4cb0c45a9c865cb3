"""What goes wrong with files, said in one sentence."""

from __future__ import annotations

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe


class FormatError(UserError):
    """A file, or what should become one, is not what its format demands. Exit code 2."""


def unreadable(path: object, error: OSError | ValueError) -> FormatError:
    """Return the FormatError for a file that the system would not open or read (ValueError: a NUL in the path)."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return FormatError(f"{display_safe(str(path))} cannot be read ({reason}); check the path and its permissions")
