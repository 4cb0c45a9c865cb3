"""The program made for one model says what the program for all models says, bit for bit."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from support import TINY
from support_architectures import VOCAB, Draft, add_rotation, draft, finish

from nanochat_tui.engine.compile import builders
from nanochat_tui.engine.compile import cache as compile_cache
from nanochat_tui.engine.compile.cache import GENERAL
from nanochat_tui.engine.compile.lower import kernels_of
from nanochat_tui.engine.compile.specialise import code_of, specialised
from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.generate.speculation import Mode
from nanochat_tui.engine.kernels import registry
from nanochat_tui.engine.kernels.table_check import READ
from nanochat_tui.engine.layout import kinds, slots
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.run import tables as plan
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.engine.run.paging import KINDS
from nanochat_tui.engine.simd.library import KERNELS
from nanochat_tui.engine.simd.objects import ENTRY_NAME

KNOWN_NAMES = {
    *plan.LAYER_OPTIONS, *plan.LAYER_CHOICES, *plan.MODEL_OPTIONS, *plan.MATRIX_OPTIONS, "STREAMS", "KV_KIND",
}  # fmt: skip
PROGRAM = {name: function for name, (function, _) in registry.PROGRAM.items()}

# ---- functions to be folded, run by Python itself


def get(table: list[int], slot: int) -> int:
    return table[slot]


def leaf(table: list[int], scale: int, shift: int, offset: int) -> int:
    if scale == 0:
        return offset
    return get(table, s.DIM) * scale + shift


def never(table: list[int]) -> int:
    return 1 // get(table, s.WINDOW)


def branches(table: list[int], n: int) -> int:
    total, some = 0, 8
    window, gated = get(table, s.WINDOW), get(table, s.GATED)
    for i in range(n):
        if window > 0 and i + never(table) > 0:
            total += never(table)
        elif gated == 1 or get(table, s.DIM) < 0:
            total += leaf(table, 2, 0, i)
        else:
            total -= leaf(table, 2, 0, n)
        while some > n - i:
            some //= 2
        total += some if window == 0 else never(table)
        limit = s.WINDOW * 2 - 1 if get(table, s.STREAMS) != 4 else get(table, s.STREAMS)
        if not total:
            continue
        total += limit if gated else -limit
    if get(table, s.GATED) == 0 and window == 0:
        once = 5
        return total + once
    return total


FUNCTIONS: dict[str, FunctionType] = {f.__name__: f for f in (leaf, never, branches)}  # type: ignore[misc]


def folded(known: dict[str, int]) -> tuple[FunctionType, set[str], str]:
    """Return the folded `branches`, the functions it still reaches, and its text."""
    trees = specialised(FUNCTIONS, "branches", known)
    space: dict[str, Any] = {"get": get, "s": s}
    for name, tree in trees.items():
        space[name] = code_of(FUNCTIONS[name], tree, space)
    return space["branches"], set(trees), ast.unparse(trees["branches"])


@pytest.mark.parametrize("gated", [0, 1])
@pytest.mark.parametrize("streams", [1, 4])
def test_folded_functions_return_the_same(gated: int, streams: int) -> None:
    table = [0] * s.LAYER_SLOTS
    table[s.GATED], table[s.STREAMS] = gated, streams
    known = {"WINDOW": 0, "GATED": gated, "STREAMS": streams}
    for names in ({"WINDOW"}, {"GATED"}, {"WINDOW", "GATED"}, set(known)):
        made, reached, text = folded({name: known[name] for name in names})
        assert ("never" in reached) == ("WINDOW" not in names), "what cannot happen is not compiled"
        assert "s." not in text
        for dim in (-3, 0, 3, 700):
            table[s.DIM] = dim
            for n in range(12):
                assert made(table, n) == branches(table, n), (names, dim, n)


def test_values_that_are_not_told_are_read() -> None:
    table = [0] * s.LAYER_SLOTS
    made, _, _ = folded({"WINDOW": 0})
    found = set()
    for gated in range(2):
        table[s.GATED] = gated
        found.add(made(table, 3))
        assert made(table, 3) == branches(table, 3)
    assert len(found) == 2
    told, _, _ = folded({"WINDOW": 0, "GATED": 0})
    assert told(table, 3) != branches(table, 3), "a value that is told is not read"


def test_the_original_functions_stay() -> None:
    before = ast.unparse(specialised(FUNCTIONS, "branches", {})["branches"])
    folded({"WINDOW": 0, "GATED": 1, "STREAMS": 1})
    assert ast.unparse(specialised(FUNCTIONS, "branches", {})["branches"]) == before


# ---- what the program may be told


def test_told_slots_have_one_meaning() -> None:
    """Folding goes by name: a name of two tables would be given the value of one of them."""
    for name in KNOWN_NAMES:
        assert isinstance(getattr(slots, name), int)
        assert not hasattr(kinds, name)
    others = {name for name in vars(slots) if name.isupper()}
    assert len(others & KNOWN_NAMES) == len(KNOWN_NAMES)


def test_the_program_never_writes_what_it_is_told() -> None:
    """Nor does it look for slots in a way that folding does not see."""
    for function in PROGRAM.values():
        tree = ast.parse(inspect.getsource(function).strip())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if not isinstance(call.func, ast.Name):
                continue
            if call.func.id == "put":
                assert not (isinstance(call.args[1], ast.Attribute) and call.args[1].attr in KNOWN_NAMES)
            if call.func.id == READ:
                assert isinstance(call.args[1], ast.Attribute | ast.Name)


def test_a_program_needs_fewer_functions_and_kernels() -> None:
    known = dict.fromkeys(KNOWN_NAMES, 0) | {"STREAMS": 4, "KV_KIND": s.KV_F16}
    everything, own = specialised(PROGRAM, "work", {}), specialised(PROGRAM, "work", known)
    apart = specialised(PROGRAM, "screened_logits", {})
    assert everything.keys() | apart.keys() == PROGRAM.keys(), "a function that nothing reaches can go"
    assert own.keys() < everything.keys()
    assert {"convolve_channels", "delta_heads", "experts_up", "choose_tokens"} & own.keys() == set()
    assert {"work", "run_pass", "mix_tokens", "attend_rows", builders.SAMPLER} < own.keys()
    needed = kernels_of("work", frozenset(known.items()))
    assert needed < kernels_of("work", frozenset()) <= KERNELS.keys()
    assert "mix_read_4" in needed
    assert not {"mix_read_1", "attend_1_int8", "delta_rule", "walsh_hadamard"} & needed
    assert ENTRY_NAME == "nanochat_work"


# ---- whole models

IDS = [int(i) for i in np.random.default_rng(5).integers(0, VOCAB, 70)]
MODELS: dict[str, Callable[[], Draft]] = {
    "maple": lambda: draft("maple"),
    "bitnet": lambda: draft("bitnet", kind="I2_S", table="Q6_K"),
    "llama": lambda: draft("llama", tied=False),
    "qwen35": lambda: rotated(draft("qwen35")),
}


def rotated(made: Draft) -> Draft:
    add_rotation(made, 64)
    return made


def everything_said(model: Model) -> list[Any]:
    """Run a model in every way: chunks, single tokens, samplers, guesses, batches."""
    said: list[Any] = []
    for sizes in ([len(IDS)], [1, 2, 3, 5, 8, 16, 35]):
        cache, start = KVCache(model.config, len(IDS), model.kv), 0
        for size in sizes:
            said.append(model.executor.logits(cache, np.array(IDS[start : start + size]), start).tobytes())
            start += size
    settings: list[tuple[Mode, dict[str, Any]]] = [
        ("on", {"temperature": 0.0, "top_logprobs": 3}),
        ("on", {"temperature": 1.0, "seed": 3, "top_k": 20, "repeat_penalty": 1.2}),
        ("off", {"temperature": 0.7, "seed": 4, "top_k": 0, "top_p": 0.8, "min_p": 0.01}),
    ]
    for speculation, options in settings:
        session = Session(model, speculation=speculation)
        said += [(t.id, t.logprob, t.top) for t in session.generate(IDS[:20], max_tokens=20, **options)]
    batcher = Batcher(model, max_sequences=3)
    streams = [batcher.submit(IDS[i : 9 + 5 * i], max_tokens=8, temperature=0.0) for i in range(3)]
    said += [[t.id for t in stream] for stream in streams]
    batcher.close()
    return said


def check(make: Callable[[], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GENERAL, "1")
    general = make()
    monkeypatch.delenv(GENERAL)
    own = make()
    assert own.executor._pool._shared.entry is not general.executor._pool._shared.entry
    before = own.executor._tables.known(KINDS[own.kv])
    assert everything_said(own) == everything_said(general)
    assert own.executor._tables.known(KINDS[own.kv]) == before
    own.close()
    general.close()


def test_the_shipped_family_in_both_programs(make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    check(lambda: make_model(TINY.with_(n_streams=4, group_size=128, dim=256), threads=2), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("streams", "kv"), [(1, "int8"), (2, "f32")])
def test_streams_and_kinds_of_caches(
    streams: int, kv: str, make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(lambda: make_model(TINY.with_(n_streams=streams), threads=2, kv=kv), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_other_families(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = finish(MODELS[name](), tmp_path / "model.gguf")
    check(lambda: load(path, threads=2), monkeypatch)


def test_models_with_different_tables_have_different_programs(make_model: Callable[..., Model]) -> None:
    known = [make_model(TINY.with_(n_streams=n)).executor._tables.known(KINDS["f16"]) for n in (1, 2, 4, 1)]
    assert len(set(known)) == 3
    names = {compile_cache._file_name(compile_cache._wanted("portable", 64, kinds.ALL, pairs)) for pairs in known}
    assert len(names) == 3


def test_a_job_with_another_kind_of_cache_is_refused(make_model: Callable[..., Model]) -> None:
    """The program was made for one kind; it would read the other's bytes as its own."""
    model = make_model(TINY, threads=1, kv="f16")
    with pytest.raises(ValueError, match="another kind of cache"):
        model.executor.run(KVCache(model.config, 16, "int8"), np.array([1, 2]), 0)
