import errno
import os
import stat
from pathlib import Path

import pytest

from nanochat_tui.errors import WriteError
from nanochat_tui.files import atomic_write, atomic_write_text


def test_file_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with atomic_write(target) as handle:
        handle.write(b"new")
        handle.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_failure_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as handle:
        handle.write(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_missing_folder_and_folder_in_the_way_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "nowhere" / "a", tmp_path / "folder"):
        with pytest.raises(WriteError, match="could not be written") as caught:
            atomic_write_text(target, "x")
        assert caught.value.exit_code == 1
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_full_disk_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match=os.strerror(errno.ENOSPC)),
        atomic_write(tmp_path / "a"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert not list(tmp_path.iterdir())


def test_permissions_follow_the_umask_and_links_stay(tmp_path: Path) -> None:
    target = tmp_path / "a"
    link = tmp_path / "link"
    link.symlink_to(target)
    old = os.umask(0o027)
    try:
        atomic_write_text(link, "hé")
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "hé"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_full_disk_leaves_nothing_even_of_what_was_buffered(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(WriteError, match=os.strerror(errno.EFBIG)):
            atomic_write_text(tmp_path / "a", "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
