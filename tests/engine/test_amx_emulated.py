"""The real AMX kernels run on a processor without AMX: each of their tile instructions is trapped and emulated.

`tile_emulator.c` is compiled and preloaded into a process. It decodes the instructions that LLVM made, so registers,
addresses and strides are those a processor would see, and it refuses what the manual says a processor refuses.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_support import EVERY_NAME
from support_architectures import write_architecture

from nanochat_tui.engine.compile import amx_check as amx
from nanochat_tui.engine.compile import cache as compile_cache
from nanochat_tui.engine.compile import targets
from nanochat_tui.engine.generate.model import load

PROMPT = 125
"""Tokens: seven full tiles and most of one."""
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64" or "avx512-vnni" not in EVERY_NAME,
        reason="needs Linux and a processor with AVX-512 VNNI",
    ),
    pytest.mark.skipif(targets.cpu_features() >= amx.FEATURES, reason="this processor needs no emulation"),
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler"),
]

BEGIN = """
import ctypes, json, re, sys
import numpy as np
from nanochat_tui.engine.compile import amx_check as amx, targets
features = re.sub(r"-(amx-(?:tile|int8)\\b)", r"+\\1", targets.cpu_feature_text())
have = targets.cpu_features() | amx.FEATURES
targets.cpu_features, targets.cpu_feature_text = lambda: have, lambda: features
amx.system_flags = lambda: frozenset({"amx_tile", "amx_int8"})
counts = (ctypes.c_long * 6).in_dll(ctypes.CDLL(None), "tile_operations")
"""
CHECK = """
from nanochat_tui.engine.compile import amx_self_check as tile_check
from nanochat_tui.engine.simd.isa import ISAS
from nanochat_tui.engine.simd.library import Target
tile_check.ROUNDS = 1
assert amx.request_permission() is None
kinds = frozenset(tile_check.TERNARY_NAMES)
wanted = [Target(ISAS["avx512-amx"], group, targets.cpu_name(), features, kinds) for group in (64, 128)]
print(json.dumps(tile_check.measure(wanted) | {"counts": list(counts)}))
"""
WHOLE = """
from nanochat_tui.engine.generate.model import load
found = amx.verdict()
amx.verdict = lambda progress=None: amx.Verdict(True, "for a test")
model = load(sys.argv[1], threads=int(sys.argv[2]))
ids = np.load(sys.argv[3])
np.save(sys.argv[4], model.logits(ids))
tokens = [t.id for t in model.generate(ids[:100].tolist(), max_tokens=6, temperature=0)]
print(json.dumps({"kernel": model.kernel, "said": found.reason, "tokens": tokens, "counts": list(counts)}))
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a process whose tile instructions are emulated, and its cache's folder."""
    folder = tmp_path_factory.mktemp("emulator")
    library, source = folder / "emulator.so", Path(__file__).with_name("tile_emulator.c")
    command = [str(COMPILER), "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    environment = compile_cache.child_environment() | {"LD_PRELOAD": str(library)}
    environment.pop("PYTHONFAULTHANDLER", None)  # would take the signal for itself
    # each model has a program of its own, as users' have
    return environment | {compile_cache.ENVIRONMENT: str(folder / "cache"), compile_cache.GENERAL: "0"}


def run(program: str, environment: dict[str, str], *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_the_kernels_pass_their_self_check(emulator: dict[str, str]) -> None:
    found = run(CHECK, emulator)
    assert found["equal"] is True
    counts = found["counts"]
    assert isinstance(counts, list)
    assert all(count > 0 for count in counts), "every kind of instruction was met"
    assert counts[0] == counts[1], "the registers are given back as often as they are taken"


@pytest.mark.parametrize(
    ("threads", "name", "options"),
    [
        (1, "qwen3", {"kind": "Q2_0", "table": "Q2_0"}),
        (3, "llama", {"kind": "PQ2_0", "table": "PQ2_0"}),
        (2, "bitnet-b1.58", {"kind": "I2_S"}),
    ],
)
def test_a_model_reads_a_prompt_as_without(
    emulator: dict[str, str], tmp_path: Path, threads: int, name: str, options: dict[str, str]
) -> None:
    """The compiled program as users run it, a verdict first: the emulation is slow, and is seen to be.

    Scales of groups of 64 and of 128, tables that are ternary as well, and scales of rows.
    """
    path, ids = write_architecture(tmp_path / "m.gguf", name, **options), np.arange(1, PROMPT + 1)  # type: ignore[arg-type]
    np.save(tmp_path / "ids.npy", ids)
    files = [str(tmp_path / name) for name in ("ids.npy", "logits.npy")]
    found = run(WHOLE, emulator, str(path), str(threads), *files)
    assert found["kernel"] == "avx512-amx"
    assert re.match(r"in its self-check it had 0\.0\d times the speed", str(found["said"]))
    counts = found["counts"]
    assert isinstance(counts, list)
    assert counts[0] == counts[1] > 0
    plain = load(path, threads=threads, kernel="avx512-vnni")
    np.testing.assert_array_equal(np.load(files[1]).view(np.int32), plain.logits(ids).view(np.int32))
    assert found["tokens"] == [t.id for t in plain.generate(ids[:100].tolist(), max_tokens=6, temperature=0)]


def test_without_emulation_it_ends_at_the_first_tile(emulator: dict[str, str]) -> None:
    """Which shows that the tests above ran what they say."""
    environment = {name: value for name, value in emulator.items() if name != "LD_PRELOAD"}
    program = CHECK.replace("assert amx.request_permission() is None", "").replace("list(counts)", "[]")
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.rsplit("counts", 1)[0] + program],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == -4
