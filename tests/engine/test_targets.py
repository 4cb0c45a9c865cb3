"""Code for processors that are not here: every instruction set, cross-compiled, and its instructions looked at."""

from __future__ import annotations

import re

import pytest
from kernel_support import BASIC

from nanochat_tui.engine.compile import cache as compile_cache
from nanochat_tui.engine.compile import targets
from nanochat_tui.engine.compile.lower import lowered
from nanochat_tui.engine.layout import kinds
from nanochat_tui.engine.simd.isa import ISAS
from nanochat_tui.engine.simd.library import (
    KERNELS,
    Target,
    compile_assembly,
    functions_assembly,
    symbol,
)
from nanochat_tui.engine.simd.objects import ENTRY_NAME

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
SOME = ("ternary_1", "ternary_4", "ternary_16", "q8_1", "q4_0_1", "rms_norm", "quantise", "silu_multiply")
KINDS = BASIC | {kinds.Q4_0}

TARGETS = {
    "avx512-amx": (X86, "sapphirerapids", "", [r"vpdpbusd\s.*%zmm", r"prefetcht0", r"prefetcht1"], [r"\{vex\}"]),
    "avx512-vnni": (X86, "icelake-server", "", [r"vpdpbusd\s.*%zmm", r"prefetcht0", r"prefetcht1"], [r"\{vex\}"]),
    "avx-vnni": (X86, "alderlake", "", [r"\{vex\}\s+vpdpbusd\s.*%ymm"], [r"zmm", r"%k[0-7]", r"%xmm1[6-9]"]),
    "avx2": (X86, "haswell", "", [r"vpmaddubsw\s.*%ymm", r"vfmadd"], [r"zmm", r"vpdpbusd", r"%k[0-7]"]),
    "portable": (X86, "x86-64", "", [r"pmullw|pmaddwd"], [r"%[yz]mm", r"vpdpbusd", r"\tv[a-z]"]),
    "neon-dotprod": (
        ARM,
        "generic",
        "+neon,+dotprod",
        [r"\bsdot\s+v\d+\.4s, v\d+\.16b", r"fmla\s+v", r"prfm"],
        [r"%zmm"],
    ),
    "portable on arm": (ARM, "generic", "+neon", [r"\b(smlal|mla|mul)2?\s+v", r"fmla\s+v"], [r"\b[su]dot\b"]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_instructions(name: str) -> None:
    triple, cpu, features, expected, forbidden = TARGETS[name]
    target = Target(ISAS[name.split(maxsplit=1)[0]], 128, cpu, features, KINDS, triple)
    assembly = compile_assembly(target, SOME)
    # one line per label and instruction; directives name files and symbols
    code = "\n".join(line for line in assembly.splitlines() if not line.startswith("\t."))
    for pattern in expected:
        assert re.search(pattern, code), f"{name}: no {pattern}"
    for pattern in forbidden:
        found = re.search(rf".*{pattern}.*", code)
        assert found is None, f"{name}: {found and found.group()}"


WIDE = "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni"


@pytest.mark.parametrize(
    ("name", "features", "forbidden"),
    [
        ("avx512-vnni", f"{WIDE},+amx-tile,+amx-int8", ["tmm", "tile"]),
        ("avx2", f"{WIDE},+amx-tile,+amx-int8", ["[zt]mm", r"%k[0-7]", "vpdpbusd"]),
        ("avx2", WIDE, ["zmm", r"%k[0-7]", "vpdpbusd"]),
        ("avx2", f"{WIDE},+avxvnni", ["zmm", r"%k[0-7]", "vpdpbusd"]),
        ("avx-vnni", f"{WIDE},+avxvnni", ["zmm", r"%k[0-7]", r"%xmm1[6-9]"]),
        ("avx-vnni", f"{WIDE},-avxvnni", ["zmm"]),
        ("portable", WIDE, ["[yz]mm", r"\tv[a-z]"]),
    ],
)
def test_a_lesser_kernel_has_only_its_own_instructions(
    name: str, features: str, forbidden: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor with everything: what runs under the name of AVX2 is what a processor with AVX2 runs."""
    for switch in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setattr(targets, "cpu_name", lambda: "sapphirerapids")
    monkeypatch.setattr(targets, "cpu_feature_text", lambda: features)
    monkeypatch.setattr(targets, "cpu_features", lambda: {f[1:] for f in features.split(",") if f.startswith("+")})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    made_for = compile_cache._wanted(name, 128, KINDS, frozenset())
    target = Target(ISAS[made_for.kernel], 128, made_for.cpu, made_for.features, KINDS, X86)
    code = "\n".join(line for line in compile_assembly(target, SOME).splitlines() if not line.startswith("\t."))
    for pattern in forbidden:
        found = re.search(rf".*{pattern}.*", code)
        assert found is None, f"{name}: {found and found.group()}"
    monkeypatch.setattr(targets, "cpu_feature_text", lambda: "")
    monkeypatch.setattr(targets, "cpu_name", lambda: "x86-64-v3")
    other = compile_cache._wanted(name, 128, KINDS, frozenset())
    assert (compile_cache._file_name(other) == compile_cache._file_name(made_for)) == (name == "portable")


@pytest.mark.slow
def test_the_whole_program_for_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward pass, sampler, steps and waiting loops: one visible function, whose atomics are the processor's."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")  # where the waiting loop has no word for waiting
    target = Target(ISAS["neon-dotprod"], 128, "generic", "+neon,+dotprod,+lse", kinds.ALL, ARM)
    functions = lowered("work", "work", target.known)
    assembly = functions_assembly(target, functions, "work")
    assert {"next_piece", "end_step", "wait_for_pass", "sample", "run_pass", "run_job"} <= {
        function.name for function in functions
    }
    code = [line.split("//")[0].split() for line in assembly.splitlines() if not line.startswith("\t.")]
    instructions = {words[0] for words in code if words}
    assert instructions & {"ldar", "ldapr"}, "the count of finished pieces is read before what they wrote"
    assert "stlr" in instructions, "and written after it"
    assert "ldaddal" in instructions, "pieces are counted in one instruction, in one order"
    assert "casal" in instructions, "and taken in one"
    assert not instructions & {"pause", "mfence", "call", "callq", "lock"}
    assert re.findall(r"\t\.globl\t(\S+)", assembly) == [ENTRY_NAME]
    called = set(re.findall(r"\tbl\s+([A-Za-z_]\w*)", assembly))
    assert "syscall" in called
    present = {symbol(kernel.name) for kernel in KERNELS.values() if kernel.is_in(target)}
    inside = set(re.findall(r"^(\w+):", assembly, re.MULTILINE))
    assert called - inside - present <= {
        "syscall",
        "memset",
        "memcpy",
        "memmove",
        "log",
        "exp",
        "expf",
        "logf",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("system", "sleeps"), [("linux", "syscall"), ("darwin", "usleep")])
def test_a_thread_that_waits_sleeps_as_its_system_has_it(
    system: str, sleeps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    target = Target(ISAS["portable"], 128, "generic", "", kinds.ALL, ARM)
    assembly = functions_assembly(target, lowered("work", "end_step", target.known), "end_step")
    called = set(re.findall(r"\tbl\s+([A-Za-z_]\w*)", assembly))
    assert sleeps in called and not called & ({"syscall", "usleep"} - {sleeps})


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_every_kernel_compiles_and_needs_only_mathematics(name: str) -> None:
    """What a target lacks LLVM calls by name: only functions of the C library, which every process has."""
    triple, cpu, features, _, forbidden = TARGETS[name]
    target = Target(ISAS[name.split(maxsplit=1)[0]], 128, cpu, features, kinds.ALL, triple)
    assembly = compile_assembly(target)
    called = set(re.findall(r"\t(?:callq?|bl)\s+([A-Za-z_]\w*)", assembly))
    outside = {symbol for symbol in called if not symbol.startswith("nanochat_")}
    assert outside <= {"fmaf", "rintf", "memset", "memcpy", "expf", "sqrtf"}, outside
    assert all(f"nanochat_{kernel.name}:" in assembly for kernel in KERNELS.values() if kernel.is_in(target))
    code = "\n".join(line for line in assembly.splitlines() if not line.startswith("\t."))
    assert not any(re.search(pattern, code) for pattern in forbidden)
