"""The kernels and what each is compiled for: decided from the processor's features before anything is compiled.

Code for an instruction set the processor lacks would end the process in the compiler or at the first such
instruction, not raise an exception; so a kernel is compiled only after its features were found here.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache

from nanochat_tui.engine.simd import NARROW

TILES = "avx512-amx"
"""Name of the kernel that needs more than features: the system's permission and a self-check (see `amx_check`)."""


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A kernel family: `name`, what it is in words, and the processor features it needs (LLVM's names).

    tile, queries, q8_bias: as of its `simd.base.Isa`, which a start with compiled kernels does not import.
    or_features: others that do as well, if any.
    """

    name: str
    description: str
    cpu_features: tuple[str, ...]
    tile: int
    queries: int
    q8_bias: int
    or_features: tuple[str, ...] = ()

    def runs_on(self, features: frozenset[str]) -> bool:
        """Whether a processor with these features can run it."""
        wanted = (self.cpu_features, self.or_features) if self.or_features else (self.cpu_features,)
        return any(features.issuperset(some) for some in wanted)


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", *_AVX2)
KERNELS: tuple[KernelInfo, ...] = (
    KernelInfo(
        TILES,
        "512-bit integer dot products, and tiles of 16 x 16 of them for prompts (AMX)",
        ("amx-tile", "amx-int8", *_AVX512),
        tile=16,
        queries=8,
        q8_bias=128,
    ),
    KernelInfo("avx512-vnni", "512-bit integer dot products (AVX-512 VNNI)", _AVX512, tile=16, queries=8, q8_bias=128),
    KernelInfo(
        "avx-vnni",
        "256-bit integer dot products (AVX-VNNI)",
        ("avxvnni", *_AVX2),
        tile=4,
        queries=2,
        q8_bias=128,
        or_features=("avx512f", "avx512vl", "avx512vnni", *_AVX2),
    ),
    KernelInfo("avx2", "256-bit multiply-add of bytes (AVX2)", _AVX2, tile=4, queries=2, q8_bias=0),
    KernelInfo(
        "neon-dotprod",
        "128-bit integer dot products (AArch64)",
        ("neon", "dotprod"),
        tile=4,
        queries=4,
        q8_bias=0,
    ),
    KernelInfo("portable", "generic vector code for any processor", (), tile=4, queries=2, q8_bias=0),
)
"""All kernels, fastest first."""
_WIDE = ("avx512", "avx10", "amx")
_X86, _ARM = ("x86-64", ""), ("generic", "+neon")
_BASELINES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}
"""The least that a processor of a kind has."""


@cache
def cpu_features() -> frozenset[str]:
    """Return the features (LLVM's names) that compiled code may use, as Numba's own switches leave them."""
    from llvmlite import binding

    if os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES"):
        listed = os.environ.get("NUMBA_CPU_FEATURES", "").split(",")
        return frozenset(f[1:] for f in listed if f.startswith("+"))
    try:
        host = binding.get_host_cpu_features()
    except RuntimeError:
        host = {}
    if not host and str(binding.get_host_cpu_name()).startswith("apple-"):
        return frozenset({"neon", "dotprod"})  # every one of these has them, though LLVM cannot list them
    allow_avx = os.environ.get("NUMBA_ENABLE_AVX", "1") != "0"
    return frozenset(name for name, on in host.items() if on and (allow_avx or not name.startswith("avx")))


def cpu_feature_text() -> str:
    """Return the features in LLVM's form, those that are absent switched off by name: "+avx2,-avx512f"."""
    from llvmlite import binding

    if os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES"):
        return os.environ.get("NUMBA_CPU_FEATURES", "")
    try:
        known = binding.get_host_cpu_features()
    except RuntimeError:
        return ""
    have = cpu_features()
    return ",".join(f"{'+' if name in have else '-'}{name}" for name in sorted(known))


@cache
def cpu_name() -> str:
    """Return LLVM's name of the processor, e.g. "emeraldrapids"."""
    from llvmlite import binding

    return os.environ.get("NUMBA_CPU_NAME") or str(binding.get_host_cpu_name())


def compiled_for(kernel: KernelInfo) -> tuple[str, str]:
    """Return LLVM's names of the processor and of the features that a kernel's code is made for.

    No more than the kernel is named after: LLVM would use wider registers wherever they are, and a kernel that was
    chosen to compare with, or because the wide ones slow this processor down, would not be what it says.
    """
    cpu, features = cpu_name(), cpu_feature_text()
    listed = [feature for feature in features.split(",") if feature]
    if kernel.name == "portable" and not (os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES")):
        return _BASELINES.get(platform.machine().lower(), (cpu, features))
    if kernel.name == "avx2" or (kernel.name == "avx-vnni" and "avxvnni" in cpu_features()):
        beyond = _WIDE if kernel.name == "avx-vnni" else (*_WIDE, "avxvnni")
        kept = [feature for feature in listed if not feature[1:].startswith(beyond)]
        # the processor's name alone may stand for features that are not listed
        off = {f[1:] for f in listed if f[1:].startswith(beyond)} | {"avx512f"}
        return cpu, ",".join(kept + [f"-{name}" for name in sorted(off)])
    if kernel.name == "avx-vnni":
        return cpu, ",".join([*listed, NARROW])
    return cpu, features
