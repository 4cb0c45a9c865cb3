"""Files of an export appear together, once they were verified; a refused export leaves nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.text import display_safe


@contextmanager
def staged(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Give a temporary place, of the same file name, for each target; all are moved when the block ends well.

    Raises UserError when a folder cannot be written; any exception leaves the targets as they were.
    """
    folders: list[Path] = []
    try:
        real = [target.resolve() if target.is_symlink() else target for target in targets]
        try:
            for target in real:
                target.parent.mkdir(parents=True, exist_ok=True)
                folders.append(Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)))
        except OSError as error:
            shown = display_safe(str(error.filename or targets[0].parent))
            raise UserError(f"{shown} cannot be written: {plain_reason(error)}; name another place") from None
        places = [folder / target.name for folder, target in zip(folders, targets, strict=True)]
        yield places
        for place, target in zip(places, real, strict=True):
            place.replace(target)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
