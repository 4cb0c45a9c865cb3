"""Whether this process may use AMX: what the processor says, what the system says, and what a try says.

An illegal instruction would end the application and a wrong result would be believed, so before the kernels with tile
registers are chosen for the first time on a machine, a child process multiplies some random numbers with them. It has
to come back with the avx512-vnni kernel's bits, sooner than that. The verdict is kept next to the compiled code, under
a key of the same kind, so that an update, another compiler or another processor is tried again.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat_tui.engine.compile import cache, targets
from nanochat_tui.engine.layout import kinds
from nanochat_tui.locks import ProcessLock

FEATURES = frozenset({"amx-tile", "amx-int8"})
"""LLVM's names; the system's have underscores."""
CPUINFO = Path("/proc/cpuinfo")
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
"""Linux's number of the system call on x86-64, ARCH_REQ_XCOMP_PERM, and the processor's number of the registers."""
ANY_GROUP = 0
KINDS = frozenset({kinds.TERNARY, kinds.TERNARY_ROW})
SECONDS = 120
"""Time for a self-check, which takes three; one that does not end is not tried again."""
OUTER_SIGNALS = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU"})
"""What ends a process from outside, and says nothing about what it did."""
_verdicts: dict[str, Verdict] = {}
_lock = ProcessLock()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether AMX is to be used, and why or why not, as a clause."""

    usable: bool
    reason: str


def system_flags(path: Path = CPUINFO) -> frozenset[str]:
    """Return the features of the first processor as the system lists them; none where it has no such list."""
    try:
        with path.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, _, flags = line.partition(":")
                if name.strip() == "flags":
                    return frozenset(flags.split())
    except OSError:
        pass
    return frozenset()


def request_permission() -> str | None:
    """Ask Linux to lend this process, with all its threads, the tile registers; return None, or why it does not.

    They are larger than what all other registers take together, so no process gets them unasked.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return "this system cannot be asked for its registers"
    call.restype = ctypes.c_long
    if call(*map(ctypes.c_long, (ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA))) == 0:
        return None
    return f"the system does not lend its registers ({os.strerror(ctypes.get_errno())})"


def verdict(progress: cache.Progress | None = None) -> Verdict:
    """Return whether this process may use AMX; the first time on a machine that takes some seconds.

    A processor without it costs a comparison of names. progress: called with one line before anything that takes
    seconds.
    """
    if not targets.cpu_features() >= FEATURES:
        return Verdict(False, "nothing says that this processor has it")
    if sys.platform != "linux":
        return Verdict(False, "only Linux is known to lend its registers")
    if not {name.replace("-", "_") for name in FEATURES} <= system_flags():
        return Verdict(False, f"{CPUINFO} does not list amx_tile and amx_int8")
    refusal = request_permission()
    if refusal is not None:
        return Verdict(False, refusal)
    with _lock:
        return _tried(progress)


def in_words(chosen: targets.KernelInfo) -> str:
    """Return in a sentence whether the chosen kernel uses AMX, and why or why not."""
    found = verdict()
    if chosen.name == targets.TILES:
        return f"used for prompts; {found.reason}"
    return f"not used; {found.reason if not found.usable else f'the kernel {chosen.name} was asked for'}"


def _tried(progress: cache.Progress | None) -> Verdict:
    """Return the verdict of the self-check, as it was kept or of a new one."""
    info = next(kernel for kernel in targets.KERNELS if kernel.name == targets.TILES)
    made_for = targets.compiled_for(info)
    wanted = cache.Wanted(targets.TILES, ANY_GROUP, *made_for, KINDS, frozenset(), root="tile_check")
    name = cache.verdict_name(wanted)
    if name not in _verdicts:
        folder = cache.cache_directory()
        kept = cache.read(folder / name) if folder else None
        if kept is not None:
            found = json.loads(kept)
            _verdicts[name] = Verdict(found["usable"], found["reason"])
        else:
            if progress:
                progress(f"trying the {targets.TILES} kernels in a process of their own (once, a few seconds)")
            _verdicts[name], lasting = self_check(*made_for)
            if folder and lasting:
                cache.write(folder / name, json.dumps(asdict(_verdicts[name])).encode())
    return _verdicts[name]


def self_check(cpu: str, features: str) -> tuple[Verdict, bool]:
    """Run `amx_self_check` in a child process; return the verdict, and whether another try would say the same.

    cpu, features: LLVM's names of what code is made for.
    """
    import subprocess

    if not sys.executable:
        return Verdict(False, "there is no interpreter to run its self-check with"), False
    # -P: as for compiling, the working directory is not to be imported from
    command = [sys.executable, "-P", "-m", "nanochat_tui.engine.compile.amx_self_check"]
    command += [cpu, features, cache.SOURCES]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=cache.child_environment(),
            check=False,
            timeout=SECONDS,
        )
    except OSError as error:
        return Verdict(False, f"its self-check could not be started ({error.strerror})"), False
    except subprocess.TimeoutExpired:
        return Verdict(False, f"its self-check did not end within {SECONDS} seconds"), True
    if done.returncode < 0:
        name = _signal_name(-done.returncode)
        return Verdict(False, f"its self-check was ended by {name}"), name not in OUTER_SIGNALS
    if done.returncode != 0:
        return Verdict(False, "its self-check failed"), False
    return _judged(json.loads(done.stdout)), True


def _judged(measured: dict[str, float]) -> Verdict:
    """Return the verdict on what `amx_self_check.measure` found."""
    speed = measured["speed"]
    if not measured["equal"]:
        return Verdict(False, "its self-check gave other numbers than the avx512-vnni kernel")
    if speed < 1:
        return Verdict(False, f"in its self-check it had {speed:.2f} times the speed of the avx512-vnni kernel")
    return Verdict(True, f"its self-check gave the avx512-vnni kernel's numbers at {speed:.1f} times the speed")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
