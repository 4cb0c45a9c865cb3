"""Products in tile registers: the same bits as without, on any processor; and AMX is used only where all allow it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from kernel_support import EVERY_NAME, Kernels, kernels_for
from support import TINY
from test_kernels import activations_of, lay_out
from tile_model import ModelledAmx, ModelledPortable, ModelledTiles

from nanochat_tui.engine.compile import amx_check as amx
from nanochat_tui.engine.compile import amx_self_check as tile_check
from nanochat_tui.engine.compile import cache as compile_cache
from nanochat_tui.engine.compile import choose, targets
from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.kernels import blocked
from nanochat_tui.engine.kernels.blocked import TOKENS
from nanochat_tui.engine.layout import kinds
from nanochat_tui.engine.layout.memory import aligned, round_up
from nanochat_tui.engine.run.tables import CHUNK
from nanochat_tui.engine.simd.amx import configuration
from nanochat_tui.engine.simd.isa import ISAS
from nanochat_tui.engine.simd.library import Target, compile_assembly, compile_object, load_object
from nanochat_tui.engine.simd.objects import symbol
from nanochat_tui.engine.weights.pack import Packed, pack_ternary
from nanochat_tui.errors import UserError

F32 = np.float32
NAMES = [f"{name}_tiles" for name in kinds.TERNARY_NAMES.values()]
TERNARY = frozenset(kinds.TERNARY_NAMES)
HAS_AMX = targets.cpu_features() >= amx.FEATURES
needs_avx512 = pytest.mark.skipif("avx512-vnni" not in EVERY_NAME, reason="needs AVX-512 VNNI")
needs_no_amx = pytest.mark.skipif(HAS_AMX, reason="shows what happens on a processor without AMX")


@cache
def modelled(isa: str, group: int) -> Kernels:
    """Return this processor's kernels with tile registers, which are modelled in software."""
    made = ModelledAmx() if isa == "avx512" else ModelledPortable()
    features = targets.cpu_name(), targets.cpu_feature_text()
    target = Target(made, group, *features, TERNARY)
    return Kernels(made, group, load_object(target, compile_object(target, NAMES), [symbol(name) for name in NAMES]))


class Case:
    """A random matrix and random tokens."""

    def __init__(self, kind: int, group: int, rows: int, groups: int, tokens: int, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, rows, groups, tokens])
        columns = group * groups
        codes = rng.integers(0, 4, (rows, columns)).astype(np.uint8)
        self.packed = pack_ternary(codes, rng.uniform(0.01, 0.2, (rows, groups)).astype(np.float16), group)
        if kind == kinds.TERNARY_ROW:
            scales = aligned(round_up(rows, 16), F32, 0.0)
            scales[:rows] = rng.uniform(0.01, 0.2, rows)
            self.packed = Packed(self.packed.weights, scales, rows, columns)
        self.kind, self.group, self.groups = kind, group, groups
        self.x = rng.integers(-127, 128, (tokens, columns)).astype(np.int8)
        each = 1 if kind in kinds.PER_TOKEN else columns // kinds.ACTIVATION_BLOCK
        self.x_scale = rng.uniform(0.001, 0.1, (tokens, each)).astype(F32)

    @property
    def name(self) -> str:
        return kinds.TERNARY_NAMES[self.kind]

    def run(self, k: Kernels, parts: int = 1, shares: int = 1) -> np.ndarray:
        """Multiply by the widest kernel: row blocks in `parts` calls, tiles in `shares` calls, as threads would."""
        tile, tiled = k.isa.tile, k.isa.tiles is not None
        blocks, tiles = self.packed.weights.shape[0], round_up(len(self.x), tile) // tile
        y = aligned((tiles * tile, 16 * blocks), F32, np.nan)
        fourth, scale = activations_of(k, self.kind, self.x, self.x_scale, tile)
        if tiled:
            fourth = np.full(kinds.tile_scratch(self.x.shape[1]) + 64, 0x7F, np.uint8)
        kernel = getattr(k, f"{self.name}_tiles" if tiled else f"{self.name}_{tile}")
        arrays = (self.packed.weights, self.packed.scales, lay_out(self.x, tile), fourth, scale, y)
        for part in range(parts):
            rows = blocks * part // parts, blocks * (part + 1) // parts
            for share in range(shares):
                kernel(*arrays, *rows, self.groups, y.strides[0], share, tiles, shares)
        if tiled:
            assert (fourth[-64:] == 0x7F).all(), "what is behind the scratch is somebody else's"
        return y[: len(self.x), : self.packed.rows].view(np.int32)


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("kind", sorted(TERNARY))
@pytest.mark.parametrize("isa", [pytest.param("avx512", marks=needs_avx512), "portable"])
def test_the_same_bits_as_without_tile_registers(isa: str, kind: int, group: int) -> None:
    """One and several of everything: row blocks, groups, tiles of tokens, full and not, more than go together."""
    k, plain = modelled(isa, group), kernels_for(EVERY_NAME[-1] if HAS_AMX else EVERY_NAME[0], group)
    rng = np.random.default_rng(group + kind)
    shapes = [(16, 1, 16), (3, 5, 17), (33, 2, 48), (64, 3, 129), (48, 1, 300)]
    shapes += [tuple(map(int, rng.integers(1, [90, 9, 180]))) for _ in range(12)]
    for rows, groups, tokens in shapes:
        case = Case(kind, group, rows, groups, tokens)
        wanted = case.run(plain)
        for parts, shares in ((1, 1), (3, 1), (1, 2), (2, 5)):
            np.testing.assert_array_equal(case.run(k, parts, shares), wanted, f"{rows, groups, tokens, parts, shares}")


@pytest.mark.parametrize("value", [-127, 127])
@pytest.mark.parametrize("code", [0, 3])
def test_extremes_are_exact(code: int, value: int) -> None:
    k, case = modelled("portable", 128), Case(kinds.TERNARY_ROW, 128, 16, 4, 16)
    case.packed.weights[...] = code * 0x55555555
    case.packed.scales[...], case.x[...], case.x_scale[...] = 1, value, 1
    np.testing.assert_array_equal(case.run(k).view(F32), np.full((16, 16), (code - 1) * value * 512, F32))


def test_a_job_is_multiplied_at_once_and_the_parts_of_the_scratch_lie_apart() -> None:
    assert kinds.TOGETHER * TOKENS == CHUNK
    assert blocked.TOTALS + kinds.TOGETHER * 2 * 1024 <= blocked.CODES
    assert blocked.CODES + 2 * 128 * 16 <= blocked.DOTS
    assert blocked.DOTS + 2 * kinds.FINE_SPAN // kinds.ACTIVATION_BLOCK * 4 * 1024 <= kinds.SCRATCH_FIXED


def test_the_configuration() -> None:
    """Intel's layout: palette, row to start at, then from byte 16 on columns in bytes and from 48 on rows."""
    wanted = bytearray(64)
    wanted[0] = 1
    for number in range(8):
        wanted[16 + 2 * number], wanted[48 + number] = 64, 16
    assert configuration() == bytes(wanted)
    wanted[16 + 2 * 4], wanted[48 + 6] = 32, 8
    assert configuration({4: (16, 32), 6: (8, 64)}) == bytes(wanted)


X86 = "x86_64-unknown-linux-gnu"
TILE_INSTRUCTIONS = {"ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbssd"}
BASE = "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni,+bmi2"


@pytest.mark.parametrize("group", [64, 128])
def test_instructions(group: int) -> None:
    """Made for a processor with what the kernel asks for and nothing else: LLVM refuses what would need more."""
    (info,) = (kernel for kernel in targets.KERNELS if kernel.name == targets.TILES)
    features = ",".join(f"+{name}" for name in info.cpu_features)
    some = TERNARY
    target = Target(ISAS[targets.TILES], group, "x86-64", features, some, X86)
    assembly = compile_assembly(target, ["matrix_product"])
    for name in NAMES:
        code = assembly.split(f"{symbol(name)}:")[1].split(".Lfunc_end")[0]
        lines = [line.split() for line in code.splitlines() if re.match(r"\t[a-z]", line)]
        instructions = [words[0] for words in lines]
        assert {word for word in instructions if "tile" in word or word.startswith("tdp")} == (
            TILE_INSTRUCTIONS - ({"tilezero"} if "row" in name else set())
        )
        assert next(word for word in instructions if "tile" in word) == "ldtilecfg"
        ways_out = re.findall(r"\ttilerelease\n(?:\t(?:addq|leaq|popq|vzeroupper)\b.*\n)+\tretq?\n", code)
        assert len(ways_out) == len(re.findall(r"\tretq?\n", code)) == instructions.count("tilerelease")
        assert instructions.count("ldtilecfg") == 1
        # four products of two tiles each: what is loaded is used twice
        order = " ".join(word for word in instructions if "tile" in word or word.startswith("tdp"))
        taken = re.sub("tile(zero|stored) ", "", order)
        assert re.search("tdpbssd tdpbssd (tileloadd )+tdpbssd tdpbssd", taken)
        late = "tdpbssd tdpbssd tilezero tilezero tileloadd tdpbssd tdpbssd (tileloadd |tdpbssd )*tilestored"
        assert re.search(late, order) or "row" in name, "products are stored after others have been begun"
        assert "call" not in instructions
        assert "vpdpbusd" not in instructions
    plain = Target(ISAS["avx512-vnni"], group, "x86-64", BASE, some, X86)
    with_tiles = {*re.findall(r"^nanochat_\w+", assembly, re.MULTILINE)}
    without = {*re.findall(r"^nanochat_\w+", compile_assembly(plain, ["matrix_product"]), re.MULTILINE)}
    wide = {symbol(f"{name}_16") for name in kinds.TERNARY_NAMES.values()}
    assert with_tiles - without == {symbol(name) for name in NAMES}
    assert without - with_tiles == wide, "what is never called is not made"


# ---- whether it is used


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this is not to be asked")


@pytest.fixture
def with_amx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make dispatch believe in a processor and a system with AMX; verdicts are kept in a folder of the test's."""
    flags = {"amx_tile", "amx_int8"}
    text = re.sub(r"-(amx-(?:tile|int8)\b)", r"+\1", targets.cpu_feature_text())
    have = targets.cpu_features() | amx.FEATURES
    monkeypatch.delenv(choose.ENVIRONMENT, raising=False)
    monkeypatch.setattr(targets, "cpu_features", lambda: have)
    monkeypatch.setattr(targets, "cpu_feature_text", lambda: text)
    monkeypatch.setattr(amx, "system_flags", lambda: frozenset(flags))
    monkeypatch.setattr(amx, "request_permission", lambda: None)
    monkeypatch.setattr(amx, "_verdicts", {})
    monkeypatch.setenv(compile_cache.ENVIRONMENT, str(tmp_path / "cache"))


def chosen_and_said() -> tuple[str, str]:
    info = choose.choose_kernel()
    return info.name, amx.in_words(info)


@pytest.mark.skipif(not HAS_AMX, reason="needs a processor with AMX")
def test_where_there_is_amx_its_numbers_are_right() -> None:
    """The system may keep it, and it may be slow; anything else is a fault of ours."""
    found = amx.verdict()
    assert found.usable or re.search("lend|list|times the speed", found.reason), found.reason


@needs_no_amx
def test_a_processor_without_amx_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("system_flags", "request_permission", "self_check"):
        monkeypatch.setattr(amx, name, refuse)
    monkeypatch.delenv(choose.ENVIRONMENT, raising=False)
    name, said = chosen_and_said()
    assert name == EVERY_NAME[0]
    assert said == "not used; nothing says that this processor has it"
    with pytest.raises(UserError, match=r"avx512-amx needs amx-tile, amx-int8.* which this processor lacks"):
        choose.choose_kernel(targets.TILES)


def test_a_start_without_amx_does_not_even_import_its_module() -> None:
    code = "import sys; from nanochat_tui.engine.compile import choose, targets\n"
    code += "targets.cpu_features = lambda: frozenset({'avx2'})\n"
    code += "choose.choose_kernel(); print('nanochat_tui.engine.compile.amx_check' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=compile_cache.child_environment(), check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("listed", [set(), {"amx_tile"}, {"amx_int8", "amx_bf16"}])
def test_the_system_must_list_it(with_amx: None, monkeypatch: pytest.MonkeyPatch, listed: set[str]) -> None:
    monkeypatch.setattr(amx, "system_flags", lambda: frozenset(listed))
    monkeypatch.setattr(amx, "request_permission", refuse)
    assert not amx.verdict().usable
    assert "/proc/cpuinfo does not list" in amx.verdict().reason


def test_flags_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile amx_int8\nbugs\t:\n\nflags : fpu\n")
    assert amx.system_flags(path) == {"fpu", "amx_bf16", "amx_tile", "amx_int8"}
    assert amx.system_flags(tmp_path / "absent") == set()
    path.write_bytes(b"Features\t: fp asimd\xff\n")
    assert amx.system_flags(path) == set()


@needs_no_amx
@pytest.mark.skipif(sys.platform != "linux", reason="the permission is Linux's")
def test_the_system_refuses_its_registers() -> None:
    """As it really does, on a machine that has none."""
    assert re.fullmatch(r"the system does not lend its registers \(.+\)", amx.request_permission() or "")


@needs_avx512
def test_without_permission_the_vnni_kernel_is_used(with_amx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "request_permission", lambda: "the system does not lend its registers (no)")
    monkeypatch.setattr(amx, "self_check", refuse)
    assert chosen_and_said() == ("avx512-vnni", "not used; the system does not lend its registers (no)")
    with pytest.raises(UserError, match=r"avx512-amx cannot be used: the system does not lend .* can run: avx512-vnni"):
        choose.choose_kernel(targets.TILES)


@needs_avx512
@needs_no_amx
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not tried")
def test_an_illegal_instruction_ends_the_self_check_only(
    with_amx: None, make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real kernels on this processor, which has no AMX: they end the child, and are not tried again."""
    said: list[str] = []
    assert choose.choose_kernel(None, said.append).name == "avx512-vnni"
    assert said == ["trying the avx512-amx kernels in a process of their own (once, a few seconds)"]
    folder = compile_cache.cache_directory()
    assert folder is not None
    (kept,) = folder.iterdir()
    assert compile_cache.own_files(folder) == ([kept], []), "`cache` counts and clears it"
    verdict = {"usable": False, "reason": "its self-check was ended by SIGILL"}
    assert json.loads(compile_cache.read(kept) or b"") == verdict
    monkeypatch.setattr(amx, "self_check", refuse)
    monkeypatch.setattr(amx, "_verdicts", {})
    assert chosen_and_said() == ("avx512-vnni", "not used; its self-check was ended by SIGILL")
    monkeypatch.delenv(compile_cache.ENVIRONMENT)  # where the program is compiled already
    monkeypatch.setattr(amx, "verdict", lambda _=None: amx.Verdict(**verdict))
    model = make_model(TINY, threads=1)
    assert model.kernel == "avx512-vnni"
    assert model.logits([1, 2, 3]).shape[0] == 3
    with pytest.raises(UserError, match="cannot be used: its self-check was ended by SIGILL; it can run: avx512-vnni"):
        make_model(TINY, threads=1, kernel=targets.TILES)


@needs_avx512
@pytest.mark.parametrize(
    ("measured", "kernel", "said"),
    [
        ({"equal": True, "speed": 2.04}, "avx512-amx", "used for prompts; .* numbers at 2.0 times the speed"),
        ({"equal": False, "speed": 2.0}, "avx512-vnni", "not used; its self-check gave other numbers"),
        ({"equal": True, "speed": 0.9}, "avx512-vnni", "not used; in its self-check it had 0.90 times the speed"),
    ],
)
def test_the_judgement(
    with_amx: None, monkeypatch: pytest.MonkeyPatch, measured: dict[str, float], kernel: str, said: str
) -> None:
    monkeypatch.setattr(amx, "self_check", lambda *_: (amx._judged(measured), True))
    name, sentence = chosen_and_said()
    assert name == kernel
    assert re.match(said, sentence)
    assert [k.name for k in choose.available_kernels()][:1] == [kernel]
    monkeypatch.setattr(amx, "self_check", refuse)
    monkeypatch.setattr(amx, "_verdicts", {})
    assert chosen_and_said() == (name, sentence), "it is kept"


@needs_avx512
def test_whoever_asks_for_another_kernel_waits_for_no_self_check(
    with_amx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amx, "verdict", refuse)
    assert choose.choose_kernel("avx512-vnni").name == "avx512-vnni"
    monkeypatch.setenv(choose.ENVIRONMENT, "avx2")
    assert choose.choose_kernel().name == "avx2"


@needs_avx512
def test_asked_for_another_kernel_the_doctor_says_so(with_amx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "self_check", lambda *_: (amx.Verdict(True, "fine"), True))
    monkeypatch.setenv(choose.ENVIRONMENT, "avx512-vnni")
    assert chosen_and_said() == ("avx512-vnni", "not used; the kernel avx512-vnni was asked for")


@pytest.mark.parametrize(
    ("program", "reason", "lasting"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its self-check was ended by SIGSEGV", True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "its self-check was ended by SIGKILL", False),
        ("import sys; sys.exit('no memory')", "its self-check failed", False),
        ("import time; time.sleep(60)", "its self-check did not end within 1 seconds", True),
    ],
)
def test_how_a_self_check_may_end(monkeypatch: pytest.MonkeyPatch, program: str, reason: str, lasting: bool) -> None:
    """What says something about the processor is kept, what may have been bad luck is tried again."""
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **options: run([sys.executable, "-c", program], **options))
    monkeypatch.setattr(amx, "SECONDS", 1)
    assert amx.self_check("cpu", "") == (amx.Verdict(False, reason), lasting)


def test_a_self_check_of_other_sources_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="other sources"):
        tile_check.main("cpu", "", "another hash")
    monkeypatch.setattr(sys, "executable", "/no/such/interpreter")
    refused = amx.Verdict(False, "its self-check could not be started (No such file or directory)")
    assert amx.self_check("cpu", "") == (refused, False)
    monkeypatch.setattr(sys, "executable", "")
    assert amx.self_check("cpu", "") == (
        amx.Verdict(False, "there is no interpreter to run its self-check with"),
        False,
    )


class WrongTiles(ModelledTiles):
    """A processor that adds every product twice."""

    def dot(self, total: int, left: int, right: int) -> None:
        super().dot(total, left, right)
        super().dot(total, left, right)


@needs_avx512
def test_the_self_check_notices_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_check, "SIZES", ((16, 128, 1),))
    monkeypatch.setattr(tile_check, "ROUNDS", 1)
    made = replace(ModelledAmx(), tiles=WrongTiles), 128, targets.cpu_name(), targets.cpu_feature_text()
    found = tile_check.measure([Target(*made, frozenset(tile_check.TERNARY_NAMES))])
    assert not found["equal"]
    assert "other numbers" in amx._judged(found | {"speed": 9.0}).reason


@needs_avx512
def test_what_the_self_check_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """With modelled registers: the bits agree, and that a model is slower than the processor is noticed."""
    monkeypatch.setattr(tile_check, "SIZES", ((48, 256, 3),))
    monkeypatch.setattr(tile_check, "ROUNDS", 1)
    target = Target(
        ModelledAmx(), 128, targets.cpu_name(), targets.cpu_feature_text(), frozenset(tile_check.TERNARY_NAMES)
    )
    found = tile_check.measure([target])
    assert found["equal"]
    assert not amx._judged(found).usable
