"""Errors a person can act on."""

from __future__ import annotations

import errno

from nanochat_tui.text import display_safe


class UserError(Exception):
    """Bad input or a failure the user can fix; its text is one sentence saying what is wrong and what to do."""

    exit_code: int = 2
    """Process exit code: 2 for bad input or usage, 1 for a failure while working."""


class WriteError(UserError):
    """The system refused to write a file (disk full, no permission, no such folder). Exit code 1."""

    exit_code = 1


_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files may not grow that large here (see ulimit -f)",
    errno.EACCES: "there is no permission",
    errno.EPERM: "there is no permission",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "there is no such file or folder",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EISDIR: "it is a folder",
    errno.EEXIST: "it exists already",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links lead in a circle",
    errno.EIO: "the device reports an error",
    errno.ESTALE: "the network file system lost it",
    errno.EMFILE: "too many files are open",
}


def plain_reason(error: OSError) -> str:
    """Return why the system refused, in words a sentence can hold: "the disk is full"."""
    known = _REASONS.get(error.errno or 0)
    return known or reason_of(error).lower()


def reason_of(error: BaseException) -> str:
    """Return why the system refused, in its words and without its number, such as "No space left on device"."""
    strerror = getattr(error, "strerror", None)
    if isinstance(strerror, str) and strerror:
        return display_safe(strerror)
    words = "the connection was closed" if isinstance(error, EOFError) else "the system gave no reason"
    return display_safe(str(error)) if isinstance(error, UserError) else words
