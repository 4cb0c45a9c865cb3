"""What each token of a conversation is for: `train.roles.bin` and `val.roles.bin`, a byte to a token."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import FormatError, unreadable
from nanochat_tui.text import display_safe

GIVEN: Final = 0
"""Part of a prompt: read, not learned."""
LEARNED: Final = 1
"""Part of an answer, with the token that ends it."""
FIRST: Final = 2
"""Begins a conversation: given, too."""


def roles_path(folder: Path, split: str) -> Path:
    """Where the roles of a split's tokens are."""
    return folder / f"{split}.roles.bin"


def open_roles(folder: Path, split: str, tokens: int) -> NDArray[np.uint8]:
    """Map the roles of a split: uint8 [tokens]. Raises FormatError when they are missing or of another number."""
    path = roles_path(folder, split)
    try:
        roles: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if roles.size != tokens or int(roles.max(initial=0)) > FIRST:
        raise FormatError(
            f"{display_safe(str(path))} does not belong to the tokens next to it; prepare the conversations again"
        )
    return roles
