"""Which kernel is chosen, where compiled code is kept, and what a start costs."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import TINY, write_model

from nanochat_tui.engine.compile import cache as compile_cache
from nanochat_tui.engine.compile import choose, targets
from nanochat_tui.engine.compile.choose import available_kernels, choose_kernel
from nanochat_tui.engine.compile.targets import KERNELS
from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.simd.isa import ISAS
from nanochat_tui.errors import UserError

ROOT = Path(__file__).parents[2]


def test_the_fastest_usable_kernel_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has AMX in addition is in test_amx."""
    monkeypatch.delenv(choose.ENVIRONMENT, raising=False)
    wide = next(kernel for kernel in KERNELS if kernel.name == "avx512-vnni").cpu_features
    for features, wanted in (
        (set(), "portable"),
        ({"avx2", "fma"}, "portable"),
        ({"avx2", "fma", "f16c"}, "avx2"),
        (set(wide) - {"avx512vl"}, "avx2"),
        (set(wide), "avx512-vnni"),
    ):
        monkeypatch.setattr(targets, "cpu_features", lambda features=features: frozenset(features))
        assert choose_kernel().name == wanted
        assert [k.name for k in available_kernels()][-1] == "portable"


def test_a_kernel_the_processor_lacks_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset({"avx2", "fma", "f16c"}))
    monkeypatch.setenv(choose.ENVIRONMENT, "avx512-vnni")
    with pytest.raises(UserError, match=r"needs avx512f.* lacks; it can run: avx2, portable"):
        choose_kernel()
    assert choose_kernel("avx2").name == "avx2"
    monkeypatch.setenv(choose.ENVIRONMENT, "neon\x1b")
    with pytest.raises(UserError, match=r"no kernel called neon\\x1b"):
        choose_kernel()


def test_numbas_own_switches_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NUMBA_ENABLE_AVX", "0"), ("NUMBA_CPU_NAME", "generic")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            targets.cpu_features.cache_clear()
            assert [k.name for k in available_kernels()] == ["portable"]
    targets.cpu_features.cache_clear()


def test_environment_reaches_the_model(make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.ENVIRONMENT, "portable")
    assert make_model(TINY, threads=1).kernel == "portable"


def test_cache_directory_falls_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    monkeypatch.setenv(compile_cache.ENVIRONMENT, str(chosen))
    assert compile_cache.cache_directory() == chosen
    chosen.chmod(0o777)
    assert compile_cache.cache_directory() is None, "code is not loaded from where others can write"
    monkeypatch.delenv(compile_cache.ENVIRONMENT)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = compile_cache.cache_directory()
    assert found is not None
    assert found.is_relative_to(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="folders have owners and modes on POSIX")
def test_the_shared_temporary_folder_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.delenv(compile_cache.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ours = tmp_path / f"nanochat-tui-{os.geteuid()}"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kernels").mkdir(mode=0o700, parents=True)
    ours.symlink_to(elsewhere)
    assert compile_cache.cache_directory() is None, "whoever made the link says where it leads"
    ours.unlink()
    ours.mkdir()
    (ours / "kernels").symlink_to(elsewhere / "kernels")
    assert compile_cache.cache_directory() is None
    (ours / "kernels").unlink()
    (ours / "kernels").mkdir(mode=0o700)
    ours.chmod(0o777)
    assert compile_cache.cache_directory() is None, "whoever can write to the parent can put another in its place"
    ours.chmod(0o700)
    assert compile_cache.cache_directory() == ours / "kernels"


def test_cache_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.o"
    assert compile_cache.read(path) is None
    compile_cache.write(path, b"some object code")
    assert compile_cache.read(path) == b"some object code"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert compile_cache.read(path) is None
    path.write_bytes(b"short")
    assert compile_cache.read(path) is None
    compile_cache.write(tmp_path / "absent" / "a.o", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.o"]


START = """
import json, sys
from nanochat_tui.engine.generate.model import load
said = []
model = load(sys.argv[1], threads=2, progress=said.append)
ids = [t.id for t in model.generate("fn main", max_tokens=8, temperature=0)]
print(json.dumps({"said": said, "ids": ids, "modules": list(sys.modules), "kernel": model.kernel}))
"""
NEEDLESS = {"numba", "psutil", "pydantic", "jinja2", "typer", "rich", "textual", "torch", "gguf", "sqlite3", "secrets"}
"""What a start with a filled cache has no use for: each takes 4 to 300 ms to import."""


TRY_TO_WRITE = """
import os
assert not os.access(".", os.W_OK), "the folder is to be closed"
"""


def start(path: Path, cache: Path, **environment: str) -> dict[str, object]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), compile_cache.ENVIRONMENT: str(cache), **environment}
    done = subprocess.run(
        [sys.executable, "-c", START, str(path)], capture_output=True, text=True, env=env, check=True, timeout=300
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_cold_and_warm_start(tmp_path: Path) -> None:
    path, cache = write_model(tmp_path / "m.gguf"), tmp_path / "cache"
    cold = start(path, cache)
    assert any("compiling" in line for line in cold["said"])  # type: ignore[attr-defined]
    warm = start(path, cache)
    assert not any("compiling" in line for line in warm["said"])  # type: ignore[attr-defined]
    needless = NEEDLESS | {"nanochat_tui.engine.simd.library", "nanochat_tui.engine.simd.isa"}
    assert not needless.intersection(warm["modules"])  # type: ignore[call-overload]
    assert warm["ids"] == cold["ids"]
    (only,) = cache.glob("*.o")
    only.write_bytes(only.read_bytes()[:-100])
    assert start(path, cache)["ids"] == cold["ids"]
    # code made for another processor is another file, and a processor without AVX gives the same answer
    other = start(path, cache, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="+sse2")
    assert other["kernel"] == "portable"
    assert other["ids"] == cold["ids"]
    assert len(list(cache.glob("*.o"))) == 2


@pytest.mark.slow
def test_two_processes_may_start_at_once_on_an_empty_cache(tmp_path: Path) -> None:
    """Both compile, and whoever writes last replaces a whole file by an equal one."""
    path, cache = write_model(tmp_path / "m.gguf"), tmp_path / "cache"
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: start(path, cache), range(2))
    assert any("compiling" in line for line in first["said"] + second["said"])  # type: ignore[operator]
    assert first["ids"] == second["ids"]
    (only,) = cache.glob("*.o")
    assert {file.suffix for file in cache.iterdir()} <= {".o", ".verdict"}, "no part of a file is left"
    assert compile_cache.read(only) is not None
    warm = start(path, cache)
    assert not any("compiling" in line for line in warm["said"])  # type: ignore[attr-defined]
    assert warm["ids"] == first["ids"]


def give_up_the_superusers_right() -> None:
    """Respect the modes of files from the next program on, which the superuser otherwise need not."""
    drop, write_anywhere = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
    ctypes.CDLL(None).prctl(drop, write_anywhere, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the superuser's rights are taken away as Linux does it")
def test_an_installation_that_is_read_only_and_no_cache_to_write_to(tmp_path: Path) -> None:
    """Such a start compiles, says the same, and leaves nothing behind."""
    site, path, closed = tmp_path / "site", write_model(tmp_path / "m.gguf"), tmp_path / "closed"
    shutil.copytree(ROOT / "nanochat_tui", site / "nanochat_tui", ignore=shutil.ignore_patterns("__pycache__"))
    closed.mkdir()
    folders = [closed, site, *(folder for folder in site.rglob("*") if folder.is_dir())]
    before = sorted(site.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    wanted = start(path, tmp_path / "cache")["ids"]
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    env |= {"PYTHONPATH": str(site), compile_cache.ENVIRONMENT: str(closed / "cache"), "TMPDIR": str(closed)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRY_TO_WRITE + START, str(path)],
            capture_output=True,
            text=True,
            env=env,
            check=False,
            timeout=300,
            cwd=closed,
            preexec_fn=give_up_the_superusers_right,
        )
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ids"] == wanted
    assert any("compiling" in line for line in found["said"])
    assert sorted(site.rglob("*")) == before
    assert not list(closed.iterdir())


def test_importing_the_library_imports_no_compiler() -> None:
    code = "import sys, nanochat_tui; print(sorted(m for m in ('numba', 'llvmlite', 'numpy') if m in sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"


def test_kernels_are_listed_with_what_their_instruction_sets_say() -> None:
    assert [kernel.name for kernel in KERNELS] == list(ISAS)
    for kernel in KERNELS:
        isa = ISAS[kernel.name]
        assert (kernel.tile, kernel.queries, kernel.q8_bias) == (isa.tile, isa.queries, isa.q8_bias)


def test_importing_the_engine_imports_nothing_that_a_start_has_no_use_for() -> None:
    code = "import sys, nanochat_tui.engine.generate.model; print(' '.join(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert not NEEDLESS.union({"llvmlite", "tempfile", "shutil"}).intersection(done.stdout.split())


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    now = time.time()
    others = [tmp_path / "main.o", tmp_path / "letter.tmp"]
    for path in others:
        path.write_bytes(b"somebody else's")
        os.utime(path, (now - 9000, now - 9000))
    for number in range(compile_cache.KEPT + 3):
        path = tmp_path / f"avx2-128-{number:024x}.o"
        compile_cache.write(path, b"code")
        os.utime(path, (now - 1000 + number, now - 1000 + number))
    left, fresh = (tmp_path / f".{path.name}.{end}.tmp" for end in ("0a", "0b"))
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (now - 7200, now - 7200))
    oldest = min(tmp_path.glob("avx2-*.o"), key=lambda path: path.stat().st_mtime)
    assert compile_cache.read(oldest) == b"code"
    last = tmp_path / f"avx2-128-{'f' * 24}.o"
    compile_cache.write(last, b"code")
    names = {path.name for path in tmp_path.iterdir()}
    assert len([name for name in names if name.startswith("avx2-")]) == compile_cache.KEPT
    assert {oldest.name, last.name, fresh.name, *(path.name for path in others)} <= names
    assert left.name not in names


def test_versions_without_importing_metadata() -> None:
    from importlib.metadata import version

    assert compile_cache._version("numba") == f"numba-{version('numba')}.dist-info"
