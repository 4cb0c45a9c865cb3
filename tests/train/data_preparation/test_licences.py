"""Licences: what is permissive, and which statement speaks for a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat_tui.train.data_preparation.licence_expressions import is_permissive
from nanochat_tui.train.data_preparation.licences import UNKNOWN, Dep5Copyright, file_licence


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "MIT OR Apache-2.0",
        "MIT or  apache-2.0",
        "MIT/Apache-2.0",
        "Expat or Apache-2.0 or ISC",
        "GPL-2+ or MIT",
        "MIT OR Apache-2.0 OR LGPL-2.1-or-later",
        "Apache-2.0 WITH LLVM-exception",
        "Apache-2.0-with-LLVM-exception or MIT",
        "Apache-2.0 with LLVM exception and (Apache-2.0 or MIT)",
        "(MIT OR GPL-3.0) AND BSD-3-Clause",
        "MIT License",
        "GPL-2+ or Artistic, or MIT",
    ],
)
def test_permissive(expression: str) -> None:
    assert is_permissive(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "GPL-3+",
        "LGPL-2.1+",
        "MPL-2.0",
        "EUPL-1.2",
        "OpenSSL License",
        "CC-BY-SA-3.0",
        "MIT AND GPL-2.0",
        "MIT and GPL-2+ or GPL-3+",
        "MIT OR Apache-2.0 AND",
        "(MIT",
        "MIT)",
        "MIT WITH Commons-Clause",
        "GPL-3.0 WITH LLVM-exception",
        "GPL-2+ or MIT, and LGPL-2+",
        "SomethingNew-1.0",
        "MIT Apache-2.0",
    ],
)
def test_not_permissive(expression: str) -> None:
    assert not is_permissive(expression)


DEP5 = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: example
# Files: none
#  a comment

Files: *
Copyright: 2020 Somebody
License: MIT or Apache-2.0

Files:
 vendor/left-*/*
 vendor/right/?.rs
Copyright: 2021 Another
License: GPL-3+
 The long text, which does not count: MIT

Files: vendor/left-pad/free.rs
Copyright: 2021 Another
License: ISC

License: MIT
 Permission is hereby granted
"""


@pytest.mark.parametrize(
    ("path", "licence"),
    [
        ("src/lib.rs", "MIT or Apache-2.0"),
        ("vendor/left-pad/src/deep/lib.rs", "GPL-3+"),
        ("vendor/left-pad/free.rs", "ISC"),
        ("vendor/right/a.rs", "GPL-3+"),
        ("vendor/right/ab.rs", "MIT or Apache-2.0"),
    ],
)
def test_dep5_last_matching_stanza_holds(path: str, licence: str) -> None:
    match = Dep5Copyright(DEP5).match(path)
    assert match is not None
    assert match.licence == licence


def test_dep5_without_stanzas_says_nothing() -> None:
    assert Dep5Copyright("This package was debianised by somebody.\n\nLicence: see upstream\n").match("a.rs") is None
    assert Dep5Copyright("Files: src/*\nLicense: MIT\n").match("other/a.rs") is None


def test_dep5_globs_take_only_star_and_question_mark() -> None:
    dep5 = Dep5Copyright("Files: a[1].rs b\\*.rs\nLicense: MIT\n")
    assert dep5.match("a[1].rs") is not None
    assert dep5.match("a1.rs") is None
    assert dep5.match("b*.rs") is not None
    assert dep5.match("bx.rs") is None


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_nearest_manifest_speaks(tmp_path: Path) -> None:
    write(
        tmp_path / "Cargo.toml",
        '[workspace]\n[workspace.package]\nlicense = "ISC"\n[package]\nlicense = "MIT/Apache-2.0"\n',
    )
    write(tmp_path / "inner/Cargo.toml", '[package]\nlicense = "MPL-2.0"\n')
    write(tmp_path / "inherits/Cargo.toml", "[package]\nlicense.workspace = true\n")
    write(tmp_path / "silent/Cargo.toml", '[package]\nname = "silent"\n')
    write(tmp_path / "broken/Cargo.toml", "[package\n")

    def licence(path: str) -> tuple[str, bool]:
        found = file_licence(tmp_path, path, "", None)
        return found.name, found.permissive

    assert licence("src/lib.rs") == ("MIT OR Apache-2.0", True)
    assert licence("inner/src/lib.rs") == ("MPL-2.0", False)
    assert licence("inherits/lib.rs") == ("ISC", True)
    assert licence("silent/lib.rs") == (UNKNOWN, False)
    assert licence("broken/lib.rs") == ("MIT OR Apache-2.0", True)


def test_every_statement_must_be_permissive_and_the_most_specific_is_recorded(tmp_path: Path) -> None:
    write(tmp_path / "copyright", DEP5)
    write(tmp_path / "crate/bench/Cargo.toml", '[package]\nlicense = "MPL-2.0"\n')
    write(tmp_path / "crate/tool/Cargo.toml", '[package]\nlicense = "BSD-3-Clause"\n')
    write(tmp_path / "crate/vendor/left-pad/Cargo.toml", '[package]\nlicense = "MIT"\n')

    def licence(path: str, head: str = "") -> tuple[str, bool]:
        found = file_licence(tmp_path / "crate", path, head, tmp_path / "copyright")
        return found.name, found.permissive

    # the whole package is said to be MIT, but the crate in it says otherwise
    assert licence("bench/lib.rs") == ("MPL-2.0", False)
    assert licence("tool/lib.rs") == ("BSD-3-Clause", True)
    # the crate says MIT, but its packager found otherwise
    assert licence("vendor/left-pad/lib.rs")[1] is False
    assert licence("tool/lib.rs", "// SPDX-License-Identifier: GPL-2.0\n") == ("GPL-2.0", False)
    assert licence("tool/lib.rs", "/* SPDX-License-Identifier: Zlib */\n") == ("Zlib", True)
    # a program about licences is not thereby under one
    assert licence("tool/lib.rs", 'const A: &str = "SPDX-License-Identifier: GPL-2.0";\n') == ("BSD-3-Clause", True)
    assert licence("tool/lib.rs", '    "SPDX-License-Identifier: GPL-2.0"\n') == ("BSD-3-Clause", True)
