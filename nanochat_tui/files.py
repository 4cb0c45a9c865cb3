"""Files and folders that appear whole or not at all: written next to their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nanochat_tui.errors import WriteError, reason_of
from nanochat_tui.text import display_safe


def _sync_folder(folder: Path) -> None:
    # the rename itself is only durable once the folder is; Windows cannot open folders and needs no such call
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], synced: bool = True) -> Iterator[BinaryIO]:
    """Open a new binary file that takes the place of `path` when the block ends without an exception.

    A reader sees the old file or the whole new one, never a part, even after a crash. A symbolic link is
    followed, so that its target is replaced and the link stays. synced: also after a power failure.
    Raises WriteError if the system refuses. Any exception leaves `path` as it was and no temporary file.
    """
    import secrets  # brings OpenSSL along, and every program that only reads imports this module

    target = Path(path)
    try:
        if target.is_symlink():
            target = target.resolve()
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        # mode "x" keeps the user's umask, which tempfile would override with 0600
        with temporary.open("xb") as handle:
            try:
                yield handle
                handle.flush()
                if synced:
                    os.fsync(handle.fileno())
            except BaseException:
                with contextlib.suppress(OSError):  # a full disk refuses what the buffer still holds once more
                    handle.close()
                temporary.unlink(missing_ok=True)
                raise
        try:
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if synced:
            _sync_folder(target.parent)
    except OSError as error:
        raise WriteError(
            f"{display_safe(str(path))} could not be written ({reason_of(error)}); check the folder and the free space"
        ) from error


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically. Raises WriteError."""
    with atomic_write(path) as handle:
        handle.write(text.encode())


@contextlib.contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder next to `output` that takes its place when the block ends without an error."""
    import shutil  # brings compressors along
    import tempfile

    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if output.exists():
            # A folder cannot be replaced in one step where it has contents: move the old one aside first.
            old = Path(tempfile.mkdtemp(prefix=f".{output.name}-old-", dir=output.parent))
            output.rename(old / output.name)
            try:
                temporary.rename(output)
            except BaseException:
                (old / output.name).rename(output)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
