"""The interpreter and the compiler that run problems, as a sandbox needs them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nanochat_tui.errors import UserError

LEAST_RUSTC = (1, 85)
"""The first release with edition 2024."""


@dataclass(frozen=True)
class Toolchain:
    """A program and the folders that it needs, apart from the system's."""

    program: str
    folders: tuple[Path, ...]
    version: str


def _outside(folder: Path) -> tuple[Path, ...]:
    """Return a folder if the system's programs are not in it anyway."""
    return () if folder.is_relative_to("/usr") or folder == Path("/") else (folder,)


@lru_cache(maxsize=1)
def python() -> Toolchain:
    """Return the interpreter that this program runs on, without its virtual environment."""
    base = Path(sys.base_prefix).resolve()
    named = base / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return Toolchain(str(named), _outside(base), sys.version.split()[0])


@lru_cache(maxsize=1)
def rustc() -> Toolchain:
    """Return the Rust compiler on PATH, without the rustup that may stand before it.

    Raises:
        UserError: there is none, it does not run, or it does not know edition 2024.
    """
    found = shutil.which("rustc")
    if found is None:
        raise UserError(
            "rustc is missing; install Rust 1.85 or later (https://rustup.rs, or the package rustc of your system)"
        )
    try:
        words = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=120, check=True).stdout
        done = subprocess.run([found, "--print", "sysroot"], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        raise UserError(f"{found} does not run; install rustc 1.85 or later") from None
    version = re.match(r"rustc (\d+)\.(\d+)(\S*)", words)
    if version is None or (int(version[1]), int(version[2])) < LEAST_RUSTC:
        raise UserError(f"{words.split('(')[0].strip() or found} is too old; install rustc 1.85 or later")
    root = Path(done.stdout.strip())
    program = root / "bin" / "rustc"
    # a compiler that is started by another name than its sysroot's is the system's
    return Toolchain(str(program if program.is_file() else found), _outside(root), words.strip())
