"""The forecast agrees with what loading then takes, and a model that does not fit is refused with a way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support_architectures import CONTEXT, WRITERS, draft, finish, random_matrix, write_architecture

from nanochat_tui.engine.generate import memory_forecast as plan_memory
from nanochat_tui.engine.generate.memory_forecast import (
    RESERVE,
    available_memory,
    forecast,
    machine_memory,
    require_memory,
)
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import round_up
from nanochat_tui.engine.run.paging import PagePool
from nanochat_tui.engine.weights.load import load_weights, plan_weights
from nanochat_tui.engine.weights.screening import screen_bytes
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile, TensorData, read_gguf
from nanochat_tui.model.architectures import describe
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.serve.loading import ModelFiles, load_one


def small_bytes(file: GGUFFile, shape: Architecture) -> int:
    """Return the bytes of the tensors that are no matrices, as float32."""
    return sum(4 * file.tensor(part.name).elements for part in shape.parts() if part.role not in ("ternary", "table"))


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize(("kind", "table"), [("PQ2_0", "Q8_0"), ("Q2_0", "F16"), ("I2_S", "Q6_K")])
def test_weights_are_foretold(name: str, kind: str, table: str, tmp_path: Path) -> None:
    with read_gguf(write_architecture(tmp_path / "m.gguf", name, kind=kind, table=table)) as file:
        shape = describe(file)
        found = forecast(file, shape, 100)
        weights = load_weights(file, shape, as_float=False, bias=0, mhc=None)
        exact = forecast(file, shape, 100, as_float=True)
        floats = load_weights(file, shape, as_float=True, bias=0, mhc=None)
    assert weights.nbytes == found.weights - small_bytes(file, shape)
    assert floats.nbytes == exact.weights - small_bytes(file, shape)
    pages = PagePool(shape, 0).page_bytes * 3  # 100 tokens are two pages, and one more is kept
    assert found.cache == pages + 4 * 3 * shape.state_floats  # the state and two to come back to
    assert (shape.state_floats > 0) == (name == "qwen35")


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize(("kind", "table"), [("PQ2_0", "Q8_0"), ("TQ2_0", "BF16"), ("I2_S", "F16"), ("Q4_0", "F32")])
@pytest.mark.parametrize("as_float", [False, True])
def test_every_matrix_is_packed_as_it_was_planned(
    name: str, kind: str, table: str, as_float: bool, tmp_path: Path
) -> None:
    with read_gguf(write_architecture(tmp_path / "m.gguf", name, kind=kind, table=table)) as file:
        shape = describe(file)
        weights = load_weights(file, shape, as_float=as_float, bias=0, mhc=None)
        plan = plan_weights(file, shape, group=weights.group, as_float=as_float)
        planned = [(m.kind, m.nbytes) for m in plan.matrices]
        assert plan.nbytes == weights.nbytes
    assert (plan.head is plan.embedding) == (weights.head is weights.embedding)
    tables = [weights.embedding] if plan.head is plan.embedding else [weights.embedding, weights.head]
    made = [*tables, *(m for layer in weights.layers for m in layer.matrices)]
    assert sorted((m.kind, m.nbytes) for m in made) == sorted(planned)


@pytest.mark.parametrize("name", list(WRITERS))
def test_only_the_output_table_is_foretold_a_screen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with read_gguf(write_architecture(tmp_path / "m.gguf", name, table="Q8_0")) as file:
        shape = describe(file)
        without = forecast(file, shape, 100).weights
        monkeypatch.setattr(plan_memory, "is_screened", lambda kind, rows, columns: True)
        rows = round_up(shape.vocab_size, s.STATISTICS_BLOCK)
        assert forecast(file, shape, 100).weights - without == screen_bytes(rows, shape.dim)


STACKS = ("attn_q.", "attn_k.", "attn_v.", "ffn_gate.", "ffn_up.")


@pytest.mark.parametrize(
    "kinds",
    [
        {"attn_v.": "Q6_K", "ffn_up.": "Q6_K"},  # as mixed recipes of llama-quantize leave them
        {"attn_k.": "TQ2_0", "ffn_gate.": "PQ2_0"},  # ternary types stay together
        {"attn_q.": "I2_S", "ffn_up.": "I2_S"},
        dict.fromkeys(STACKS, "Q8_0"),
        dict.fromkeys(STACKS, "Q5_0"),
        dict.fromkeys(STACKS, "Q5_1"),
        dict.fromkeys(STACKS, "Q4_K"),
        dict.fromkeys(STACKS, "F16"),
        dict.fromkeys(STACKS, "BF16"),
        {"attn_v.": "F32", "ffn_up.": "BF16"},
    ],
    ids=str,
)
def test_a_stack_of_mixed_types_is_foretold_as_it_is_packed(kinds: dict[str, str], tmp_path: Path) -> None:
    d = draft("llama")
    for index, tensor in enumerate(d.tensors):
        kind = next((kind for part, kind in kinds.items() if part in tensor.name), None)
        if kind is not None:
            made = random_matrix(d.rng, tensor.shape, kind, 0.05)
            d.tensors[index] = TensorData(tensor.name, made.shape, made.type, made.data)
    with read_gguf(finish(d, tmp_path / "m.gguf")) as file:
        shape = describe(file)
        found = forecast(file, shape)
        weights = load_weights(file, shape, as_float=False, bias=0, mhc=None)
    assert weights.nbytes == found.weights - small_bytes(file, shape)


def test_a_model_that_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    with read_gguf(write_architecture(tmp_path / "m.gguf", "qwen3")) as file:
        shape = describe(file)
        whole = forecast(file, shape)
        assert whole.context == CONTEXT
        enough = forecast(file, shape, available=whole.total + RESERVE)
        assert enough.fits and enough.largest_context == CONTEXT
        require_memory(enough, asked=True)
        page = PagePool(shape, 0).page_bytes
        tight = forecast(file, shape, available=whole.total + RESERVE - page)
        assert not tight.fits and tight.largest_context == CONTEXT - 64
        with pytest.raises(UserError, match=f"largest context that fits is {CONTEXT - 64} tokens"):
            require_memory(tight, asked=True)
        none = forecast(file, shape, available=whole.weights)
        for asked in (True, False):
            with pytest.raises(UserError, match="choose a smaller model"):
                require_memory(none, asked=asked)
    assert "GB weights" in str(whole)


def test_a_refusal_names_the_smaller_cache_where_that_would_fit(tmp_path: Path) -> None:
    with read_gguf(write_architecture(tmp_path / "m.gguf", "qwen3")) as file:
        shape = replace(describe(file), context_length=8192)
        room = forecast(file, shape, kv="int8").total + RESERVE
        half, small = (forecast(file, shape, kv=kind, available=room) for kind in ("f16", "int8"))
        assert small.fits and not half.fits
        with pytest.raises(UserError, match=r"tokens, or give --kv int8$"):
            require_memory(half, asked=True, smaller=small)
        less = forecast(file, shape, kv="int8", available=room - 1)
        with pytest.raises(UserError, match=r"tokens$"):
            require_memory(half, asked=True, smaller=less)


def test_a_servers_cache_is_foretold_beyond_one_context(tmp_path: Path) -> None:
    with read_gguf(write_architecture(tmp_path / "m.gguf", "qwen35")) as file:
        shape = describe(file)
        page = PagePool(shape, 0).page_bytes
        one, many = forecast(file, shape), forecast(file, shape, kv_tokens=10 * CONTEXT, sequences=5)
        assert many.context == 10 * CONTEXT > shape.context_length
        states = 4 * 3 * shape.state_floats
        assert many.cache - one.cache == 9 * CONTEXT // 64 * page + 4 * states
        tight = forecast(file, shape, kv_tokens=10 * CONTEXT, sequences=5, available=many.total + RESERVE - page)
        assert tight.largest_context == 10 * CONTEXT - 64
        with pytest.raises(UserError, match=f"largest key-value cache that fits is {10 * CONTEXT - 64} tokens"):
            require_memory(tight, asked=True, what="key-value cache")


def test_a_servers_cache_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "m.gguf", "qwen3")
    with pytest.raises(UserError, match=r"largest key-value cache that fits is \d+ tokens"):
        load_one(ModelFiles(path, kv_tokens=1 << 40), lambda line: None)
    said: list[str] = []
    batcher = load_one(ModelFiles(path, kv_tokens=256, kv="int8"), said.append)
    assert batcher.model.kv == "int8"
    assert any("for 256 tokens of context" in line for line in said)
    batcher.close()
    batcher.model.close()


GROUP_FILES = {
    2: ("memory.max", "memory.current", "memory.stat", ""),
    1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
}


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_control_group_counts(version: int, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    limit, usage, statistics, prefix = GROUP_FILES[version]
    free = available_memory(tmp_path)
    assert free > 1 << 20
    (tmp_path / usage).write_text("700000\n")
    (tmp_path / statistics).write_text(f"anon 1\n{prefix}inactive_file 20000\n{prefix}active_file 3000\n")
    (tmp_path / limit).write_text("1000000\n")
    assert available_memory(tmp_path) == 323_000  # what files take goes when it is needed
    (tmp_path / statistics).unlink()
    assert available_memory(tmp_path) == 300_000
    (tmp_path / limit).write_text("max\n" if version == 2 else f"{(1 << 63) - 4096}\n")  # there is none
    assert available_memory(tmp_path) == pytest.approx(free, rel=0.2)


def test_the_limits_of_all_groups_that_enclose_a_process_count(tmp_path: Path) -> None:
    own, groups = tmp_path / "own", tmp_path / "groups"
    own.write_text("0::/outer/inner\n")
    for name, limit, used in (("", "max", 9), ("outer", "1000000", 600000), ("outer/inner", "900000", 100000)):
        folder = groups / name
        folder.mkdir()
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(f"{used}\n")
    assert available_memory(groups, own) == 400_000
    own.write_text("0::/outer/inner\n3:memory:/batch\n")
    (groups / "memory" / "batch").mkdir(parents=True)
    (groups / "memory" / "batch" / "memory.limit_in_bytes").write_text("300000")
    (groups / "memory" / "batch" / "memory.usage_in_bytes").write_text("100000")
    assert available_memory(groups, own) == 200_000


@pytest.mark.parametrize(
    "text",
    [
        "MemTotal: 1000 kB\n",
        "MemTotal: 1000 kB\nMemAvailable: 0 kB\n",
        "MemTotal: 1000 kB\nMemAvailable: 2000 kB\n",
        "MemTotal: 1000 kB\nMemAvailable: much\n",
        "MemTotal:\n",
        "",
        None,
    ],
)
def test_the_machines_memory_is_psutils_where_the_systems_count_is_odd(text: str | None, tmp_path: Path) -> None:
    statistics = tmp_path / "meminfo"
    if text is not None:
        statistics.write_text(text)
    assert machine_memory(statistics) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_the_machines_memory_is_what_the_system_says(tmp_path: Path) -> None:
    statistics = tmp_path / "meminfo"
    statistics.write_text("MemTotal:   1000 kB\nMemFree: 7 kB\nMemAvailable:    900 kB\nHugePages_Total: 0\n")
    assert machine_memory(statistics) == 900 * 1024
    assert machine_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
