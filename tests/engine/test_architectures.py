"""Every architecture against its float64 reference, and against itself in every way of running it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from references.common import F64
from references.dense import dense
from references.maple import maple
from references.qwen35 import qwen35
from support_architectures import VOCAB, WRITERS, add_rotation, draft, finish, random_matrix, write_architecture

from nanochat_tui.engine.generate import scheduler as batching
from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.formats.gguf import TensorData, read_gguf, u32

REFERENCES: dict[str, Callable[..., F64]] = {"qwen35": qwen35, "maple": maple}
IDS = [int(i) for i in np.random.default_rng(1).integers(0, VOCAB, 45)]


def reference(path: Path, ids: list[int], **options: bool) -> F64:
    with read_gguf(path) as file:
        name = str(file.metadata["general.architecture"].value)
        return REFERENCES.get(name, dense)(file, ids, **options)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("architectures")
    made: dict[str, Path] = {}

    def write(name: str, *, rotated: int = 0, **options: Any) -> Path:
        key = repr((name, rotated, options))
        if key not in made:
            d = draft(name, **options)
            if rotated:
                add_rotation(d, rotated)
            made[key] = finish(d, folder / f"{len(made)}.gguf")
        return made[key]

    return write


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in WRITERS),
    ("llama", {"tied": False}),
    *((name, {"rotated": 64}) for name in ("llama", "qwen3", "qwen35")),
    ("qwen3", {"rotated": 256, "tied": False}),
    # pairs of types as published files have them
    ("llama", {"kind": "TQ1_0", "table": "Q4_0", "tied": False}),
    ("llama", {"kind": "I2_S", "table": "F16", "tied": False}),
    ("qwen3", {"kind": "Q2_0_g128", "table": "Q2_0_g128"}),
    ("qwen3", {"kind": "Q1_0", "table": "Q1_0"}),
    ("qwen3", {"kind": "Q8_0", "table": "BF16"}),
    ("bitnet-b1.58", {"kind": "I2_S", "table": "Q6_K"}),
    ("bitnet", {"kind": "STQ1_0", "table": "Q6_K"}),
    ("qwen35", {"kind": "PTQ1_0", "table": "PTQ1_0", "rotated": 128}),
    ("maple", {"kind": "TQ2_0", "table": "Q4_K"}),
]
ids_of = [f"{name}-{options}" for name, options in CASES]


TYPES: list[tuple[str, dict[str, Any]]] = [
    # matrices of every type that is no ternary one: mixed recipes leave some layers in them
    *(("llama", {"kind": kind}) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16")),
    *(("qwen3", {"table": table, "tied": False}) for table in ("Q4_1", "Q5_0", "Q5_1", "Q5_K")),
    *((name, {"kind": "PQ2_0", "table": "PQ2_0"}) for name in ("llama", "qwen35", "maple")),
    ("qwen3", {"kind": "TQ2_0", "table": "Q5_0"}),
    ("bitnet-25", {"kind": "TQ1_0", "table": "F16"}),
    ("maple", {"kind": "TQ1_0", "table": "Q5_K"}),
    ("maple", {"kind": "I2_S", "table": "Q4_1"}),
    *((name, {"rotated": 64}) for name in ("bitnet", "bitnet-b1.58")),
    # the widths of heads and states in published hybrids, and their types
    ("qwen35", {"width": 256, "gdn_width": 128}),
    ("qwen35", {"width": 256, "gdn_width": 128, "kind": "PQ2_0", "table": "PQ2_0", "rotated": 256}),
]
EVERY = [*CASES, *TYPES]
every_id = [f"{name}-{options}" for name, options in EVERY]


@pytest.mark.parametrize(("name", "options"), CASES, ids=ids_of)
def test_float_activations_agree_with_the_formulas(name: str, options: dict[str, Any], make: Any) -> None:
    path = make(name, **(options | {"twin": True, "table": "F32"}))
    model = load(path, threads=1, activations="float", kv="f32")
    wanted = reference(path, IDS)
    assert wanted.std() > 0.5
    np.testing.assert_allclose(model.logits(IDS), wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_window_of_every_layer_agrees_with_the_formulas(name: str, tmp_path: Path) -> None:
    d = draft(name, kind="Q2_0", table="F32")
    d.keys["attention.sliding_window"] = u32(5)
    path = finish(d, tmp_path / "m.gguf")
    wanted = reference(path, IDS)
    got = load(path, threads=1, activations="float", kv="f32").logits(IDS)
    np.testing.assert_allclose(got, wanted, atol=1e-3)
    without = write_architecture(tmp_path / "plain.gguf", name, kind="Q2_0", table="F32")
    assert np.abs(reference(without, IDS) - wanted)[5:].max() > 0.1


@pytest.mark.parametrize(("name", "options"), EVERY, ids=every_id)
def test_quantised_files_agree_while_activations_stay_float(name: str, options: dict[str, Any], make: Any) -> None:
    """Decoding and stacking of every type, against the formulas on what the file says its weights are."""
    path = make(name, **options)
    wanted = reference(path, IDS)
    assert wanted.std() > 0.5
    np.testing.assert_allclose(load(path, threads=1, activations="float", kv="f32").logits(IDS), wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen35", "maple"])
def test_stacks_of_mixed_types_agree_with_the_formulas(name: str, tmp_path: Path) -> None:
    """As recipes that keep some matrices finer leave them: what no kernel takes together is stacked as floats."""
    kinds = {"attn_v.": "Q6_K", "ffn_up": "Q5_K", "attn_gate.": "I2_S", "ffn_down": "Q8_0"}
    d = draft(name, kind="TQ2_0")
    for index, tensor in enumerate(d.tensors):
        kind = next((kind for part, kind in kinds.items() if part in tensor.name), None)
        if kind is not None:
            made = random_matrix(d.rng, tensor.shape, kind, 1.2 / np.sqrt(tensor.shape[-1]))
            d.tensors[index] = TensorData(tensor.name, made.shape, made.type, made.data)
    path = finish(d, tmp_path / "m.gguf")
    wanted = reference(path, IDS)
    assert wanted.std() > 0.5
    np.testing.assert_allclose(load(path, threads=1, activations="float", kv="f32").logits(IDS), wanted, atol=1e-3)
    # mixed stacks do not round what they read, and the formulas here round nothing
    got = load(path, threads=1).logits(IDS)
    assert np.sqrt(((got - wanted) ** 2).mean()) < 0.15 * wanted.std()


@pytest.mark.parametrize(("name", "options"), EVERY, ids=every_id)
def test_rounded_activations_agree_with_the_formulas(name: str, options: dict[str, Any], make: Any) -> None:
    path = make(name, **options)
    wanted = reference(path, IDS, rounded=True, half_cache=True)
    got = load(path, threads=1).logits(IDS)
    # a value on a rounding border may fall either way and then touches everything after it
    assert np.sqrt(((got - wanted) ** 2).mean()) < 0.04 * wanted.std()


def in_chunks(model: Model, ids: list[int], sizes: list[int]) -> np.ndarray:
    cache, start, rows = KVCache(model.config, len(ids), model.kv), 0, []
    for size in sizes:
        rows.append(model.executor.logits(cache, np.array(ids[start : start + size]), start))
        start += size
    return np.concatenate(rows)


@pytest.mark.parametrize(("name", "options"), CASES, ids=ids_of)
def test_decode_equals_prefill_with_any_threads(name: str, options: dict[str, Any], make: Any) -> None:
    path = make(name, **options)
    one = load(path, threads=1)
    wanted = in_chunks(one, IDS, [1] * len(IDS))
    for threads in (1, 2, 3):
        model = load(path, threads=threads)
        for sizes in ([len(IDS)], [1, 2, 3, 5, 8, 13, 13], [17, 28]):
            np.testing.assert_array_equal(in_chunks(model, IDS, sizes), wanted, err_msg=f"{threads} {sizes}")
        model.close()


FAMILIES = ["qwen35", "maple", "bitnet-b1.58"]
"""One with a recurrent state, one with windows and experts, one with neither."""


def reply(session: Session, ids: list[int], tokens: int = 12) -> list[int]:
    return [t.id for t in session.generate(ids, max_tokens=tokens, temperature=0.0)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_session_comes_back_to_what_it_knows(name: str, make: Any) -> None:
    """Going on, the same again, another ending, a fork: always what a session that knows nothing says."""
    model = load(make(name), threads=2)
    session, prompt = Session(model), IDS[:20]
    first = reply(session, prompt)
    assert first == reply(Session(model), prompt)
    longer = prompt + first[:6] + [7, 8]
    assert reply(session, longer) == reply(Session(model), longer)
    assert session.stats.reused_tokens == len(prompt) + 6 - (name == "qwen35") * 6
    assert reply(session, longer) == reply(Session(model), longer)
    other = [*prompt[:15], 9, 9, 9]
    fork = session.fork()
    assert reply(session, other) == reply(Session(model), other)
    assert reply(fork, [*longer, 3]) == reply(Session(model), [*longer, 3])
    assert fork.stats.reused_tokens > 0
    model.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_says_what_each_sequence_says_alone(name: str, make: Any) -> None:
    model = load(make(name), threads=2)
    prompts = [IDS[i : i + 5 + 4 * i] for i in range(4)]
    alone = [reply(Session(model), prompt) for prompt in prompts]
    batcher = Batcher(model, max_sequences=4)
    streams = [batcher.submit(prompt, max_tokens=12, temperature=0.0) for prompt in prompts]
    assert [[t.id for t in stream] for stream in streams] == alone
    batcher.close()
    model.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preempted_sequence_continues_as_if_it_had_not_been(
    name: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(make(name), threads=1)
    length = model.config.context_length
    prompts, tokens = [IDS[i : i + 9 + i] for i in range(3)], min(150, length - 16)
    alone = [reply(Session(model), prompt, tokens) for prompt in prompts]
    monkeypatch.setattr(batching, "RESERVED_TOKENS", 16)
    preempted: list[bool] = []
    preempt = Batcher._preempt
    monkeypatch.setattr(Batcher, "_preempt", lambda self, r: (preempted.append(r.resumed), preempt(self, r)))
    batcher = Batcher(model, max_sequences=3, kv_tokens=192)
    streams = [batcher.submit(prompt, max_tokens=tokens, temperature=0.0) for prompt in prompts]
    assert [[t.id for t in stream] for stream in streams] == alone
    assert any(preempted), "no request was preempted in the middle of a reply"
    batcher.close()
    model.close()


def test_a_recurrent_state_is_not_run_from_where_it_is_not(make: Any) -> None:
    model = load(make("qwen35"), threads=1)
    cache = KVCache(model.config, 20)
    model.executor.run(cache, np.array([1, 2, 3]), 0)
    with pytest.raises(ValueError, match="cannot go back"):
        model.executor.run(cache, np.array([1, 2, 3]), 0)
