"""Files of the original nanochat-rs-ternary: put together here by its own rules, and converted."""

import copy
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf_samples as samples
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import TINY, tiny_tokenizer

from nanochat_tui.engine.generate.model import load
from nanochat_tui.export.original import Imported, convert_gugf, import_gugf
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import read_gguf, string
from nanochat_tui.formats.mhc import write_mhc
from nanochat_tui.inspection.summary import inspect_file
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.support import require_described
from nanochat_tui.model.tokenizer import END_OF_TEXT, to_gguf_metadata

CONFIG = ModelConfig(
    dim=128, n_layers=2, n_heads=2, n_kv_heads=2, hidden_dim=256, vocab_size=40, context_length=64, rope_theta=10_000.0
)
NAMES = {
    "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv", "attn_output": "attention.wo",
    "ffn_gate": "ffn.w_gate", "ffn_up": "ffn.w_up", "ffn_down": "ffn.w_down",
}  # fmt: skip
CODES = {0: 0b00, 1: 0b01, -1: 0b11}


def pack(trits: np.ndarray) -> bytes:
    """Q1_58's codes, four to a byte, by counting."""
    out = bytearray()
    flat = [int(t) for t in trits.reshape(-1)]
    for start in range(0, len(flat), 4):
        out.append(sum(CODES[t] << (2 * i) for i, t in enumerate(flat[start : start + 4])))
    return bytes(out)


@dataclass
class Original:
    """What goes into a file of the original; tests change it before it is put together."""

    config: ModelConfig = CONFIG
    magic: bytes = b"GUGF"
    embedding: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        c, rng = self.config, np.random.default_rng(1)
        for key, number in (
            ("dim", c.dim), ("n_layers", c.n_layers), ("n_heads", c.n_heads), ("n_kv_heads", c.n_kv_heads),
            ("vocab_size", c.vocab_size), ("max_seq_len", c.context_length), ("group_size", c.group_size),
            ("mhc_n_streams", c.n_streams), ("weight_tied", int(c.tied)),
        ):  # fmt: skip
            self.number(key, number)
        self.keys["nanochat.rope_theta"] = samples.key("nanochat.rope_theta", 6, struct.pack("<f", c.rope_theta))
        self.keys["nanochat.ffn_mult"] = samples.key("nanochat.ffn_mult", 6, struct.pack("<f", 2.0))
        self.text("general.architecture", "nanochat-ternary")
        self.plain("tok_embed.weight", rng.standard_normal((c.vocab_size, c.dim)), self.embedding)
        for layer in range(c.n_layers):
            for ours, theirs in NAMES.items():
                shape = nanochat.parts(c)[f"blk.{layer}.{ours}.weight"].shape
                trits = rng.integers(-1, 2, shape).astype(np.int8)
                scales = rng.uniform(0.01, 0.1, (shape[0], shape[1] // c.group_size)).astype(np.float32)
                self.ternary(f"blocks.{layer}.{theirs}.weight", trits, scales)
            for norm in ("attn", "ffn"):
                self.plain(f"blocks.{layer}.norm_{norm}.weight", rng.uniform(0.5, 1.5, c.dim))
        self.plain("norm_final.weight", rng.uniform(0.5, 1.5, c.dim))
        if not c.tied:
            self.plain("lm_head.weight", rng.standard_normal((c.vocab_size, c.dim)))

    def number(self, key: str, value: int) -> None:
        self.keys[f"nanochat.{key}"] = samples.key(f"nanochat.{key}", 4, struct.pack("<I", value))

    def text(self, key: str, value: str) -> None:
        self.keys[key] = samples.key(key, 8, samples.text(value))

    def plain(self, name: str, values: np.ndarray, kind: int = 0) -> None:
        stored = values.astype("<f2" if kind else "<f4")
        self.values[name] = stored.astype(np.float32)
        self.tensors[name] = (values.shape, kind, stored.tobytes())

    def ternary(self, name: str, trits: np.ndarray, scales: np.ndarray) -> None:
        self.values[name] = (trits, scales)
        self.tensors[name] = (trits.shape, 100, pack(trits) + scales.astype("<f4").tobytes())

    def bytes(self) -> bytes:
        infos, data = [], b""
        for name, (shape, kind, content) in self.tensors.items():
            infos.append(samples.info(name, shape, kind, len(data)))  # outermost dimension first
            data += content + bytes(-len(content) % 32)
        return samples.container(keys=list(self.keys.values()), infos=infos, data=data, magic=self.magic)


def sidecar(folder: Path, config: ModelConfig = CONFIG) -> Path:
    width = {2: 9, 4: 40}[config.n_streams]
    records = np.random.default_rng(2).standard_normal((2 * config.n_layers, width))
    write_mhc(folder / "m.mhc", config.n_streams, records)
    return folder / "m.mhc"


SMALL = Original(CONFIG.with_(n_streams=1, n_layers=1))


def plain_residual() -> Original:
    """A small model that needs no sidecar; what a test changes in it stays its own."""
    found = copy.copy(SMALL)
    found.values, found.keys, found.tensors = dict(SMALL.values), dict(SMALL.keys), dict(SMALL.tensors)
    return found


SOUND = SMALL.bytes()
HEADER = len(SOUND) - sum(-(-len(data) // 32) * 32 for _, _, data in SMALL.tensors.values())


def arrays(found: Imported) -> dict[str, np.ndarray]:
    return {
        tensor.name: tensor.type.decode(tensor.data.reshape(-1, tensor.type.block_bytes)).reshape(tensor.shape)
        for tensor in found.tensors
    }


def expected_matrix(trits: np.ndarray, scales: np.ndarray) -> np.ndarray:
    wide = np.repeat(scales.astype(np.float16).astype(np.float32), trits.shape[1] // scales.shape[1], axis=1)
    return trits * wide


@pytest.mark.parametrize("magic", [b"GUGF", b"GGUF"])
@pytest.mark.parametrize(
    ("ternary", "embedding", "changes"),
    [
        ("Q2_0", "F16", {}), ("PQ2_0", "Q8_0", {"n_streams": 4}), ("PQ2_0", "F16", {"tied": False, "n_streams": 1}),
        ("Q2_0", "Q8_0", {"group_size": 64}),
    ],
)  # fmt: skip
def test_a_converted_file_is_a_model_that_runs(
    tmp_path: Path, magic: bytes, ternary: Any, embedding: Any, changes: dict[str, Any]
) -> None:
    original = Original(CONFIG.with_(**changes), magic)
    (tmp_path / "old.gguf").write_bytes(original.bytes())
    mhc = sidecar(tmp_path, original.config) if original.config.n_streams > 1 else None
    found = convert_gugf(
        tmp_path / "old.gguf", tmp_path / "new.gguf", mhc, ternary=ternary, embedding=embedding,
        extra={"general.description": string("old")},
    )  # fmt: skip
    assert found.notes == ()
    assert 0 < found.scale_error <= 2.0**-11
    with read_gguf(tmp_path / "new.gguf") as file:
        require_described(file)
        assert nanochat.from_metadata(file.metadata, file.tensors) == original.config
        # the same keys and tensors as the project's own files have
        assert nanochat.to_metadata(original.config).items() <= file.metadata.items()
        assert list(file.tensors) == list(nanochat.parts(original.config))
        assert file.metadata["general.name"].value == "old"
        assert file.metadata["general.description"].value == "old"
        for name, part in nanochat.parts(original.config).items():
            assert file.tensors[name].shape == part.shape
            block, _, rest = name.removeprefix("blk.").partition(".")
            stem = rest.removesuffix(".weight")
            if stem in NAMES:
                trits, scales = original.values[f"blocks.{block}.{NAMES[stem]}.weight"]
                np.testing.assert_array_equal(file.array(name), expected_matrix(trits, scales))
                assert file.tensors[name].type.name == ternary
            elif stem.endswith("_norm"):
                expected = original.values[f"blocks.{block}.norm_{stem.removesuffix('_norm')}.weight"]
                np.testing.assert_array_equal(file.array(name), expected)
        np.testing.assert_array_equal(file.array("output_norm.weight"), original.values["norm_final.weight"])
        table = original.values["tok_embed.weight"]
        tolerance = np.abs(table).max() * (2.0**-11 if embedding == "F16" else 1 / 250)
        np.testing.assert_allclose(file.array("token_embd.weight"), table, rtol=0, atol=tolerance)
    summary = inspect_file(tmp_path / "new.gguf", mhc)
    assert summary.mhc is None or summary.mhc.error is None
    assert "tokenizer" in str(summary.reason)  # nothing but that is missing


def test_the_written_out_byte_of_the_original() -> None:
    trits = np.tile(np.array([1, 0, -1, 1], np.int8), 32).reshape(1, 128)
    assert pack(trits) == b"\x71" * 32
    original = plain_residual()
    shape = (128, 128)
    original.tensors["blocks.0.attention.wq.weight"] = (
        shape, 100, b"\x71" * (128 * 32) + struct.pack("<f", 0.5) * 128,
    )  # fmt: skip
    values = arrays(import_gugf(original.bytes()))["blk.0.attn_q.weight"]
    np.testing.assert_array_equal(values, np.tile(np.array([0.5, 0, -0.5, 0.5], np.float32), (128, 32)))


def test_an_embedding_in_f16_is_kept_exactly() -> None:
    original = Original(CONFIG.with_(n_streams=1), embedding=1)
    found = arrays(import_gugf(original.bytes()))
    np.testing.assert_array_equal(found["token_embd.weight"], original.values["tok_embed.weight"])


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), ternary=st.sampled_from(["Q2_0", "PQ2_0"]), exact=st.booleans())
def test_trits_are_exact_and_scales_the_nearest_float16(seed: int, ternary: Any, exact: bool) -> None:
    rng = np.random.default_rng(seed)
    original = plain_residual()
    trits = rng.integers(-1, 2, (128, 128)).astype(np.int8)
    scales = np.exp(rng.uniform(-9, 5, (128, 1))).astype(np.float16 if exact else np.float32).astype(np.float32)
    for name, (_, kind, _) in list(original.tensors.items()):
        if kind == 100:
            before = original.values[name]
            original.ternary(name, before[0], before[1].astype(np.float16))
    original.ternary("blocks.0.attention.wk.weight", trits, scales)
    found = import_gugf(original.bytes(), ternary=ternary)
    np.testing.assert_array_equal(arrays(found)["blk.0.attn_k.weight"], expected_matrix(trits, scales))
    assert found.scale_error == 0 if exact else found.scale_error <= 2.0**-11


def test_what_a_person_should_know_is_said() -> None:
    grouped = Original(CONFIG.with_(n_streams=1, n_kv_heads=1))
    assert ["another pairing" in note for note in import_gugf(grouped.bytes()).notes] == [True]
    mistaken, small = plain_residual(), plain_residual()
    for name, (_, kind, _) in list(mistaken.tensors.items()):
        if kind == 100:
            trits, scales = mistaken.values[name]
            counts = np.count_nonzero(trits.reshape(*scales.shape, -1), axis=-1)
            mistaken.ternary(name, trits, (counts / 128).astype(np.float32))
            small.ternary(name, trits, np.full(scales.shape, 3.1e-7, np.float32))
    found = import_gugf(mistaken.bytes())
    assert found.scale_error == 0
    assert ["by mistake until" in note for note in found.notes] == [True]
    found = import_gugf(small.bytes())
    assert found.scale_error > 0.01
    assert ["too small for float16" in note for note in found.notes] == [True]


def refused(data: bytes, reason: str, mhc: Path | None = None, **options: Any) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        import_gugf(data, mhc, **options)
    assert "\n" not in str(caught.value)


def test_the_sidecar_must_belong_to_the_model(tmp_path: Path) -> None:
    data = Original().bytes()
    refused(data, "has 2 residual streams, whose parameters are in an .mhc file; give it too")
    refused(data, "has 2 records of 2 streams and the data needs 4 of 2", sidecar(tmp_path, CONFIG.with_(n_layers=1)))
    refused(data, "has 4 records of 4 streams", sidecar(tmp_path, CONFIG.with_(n_streams=4)))
    refused(SOUND, "leave it away", sidecar(tmp_path))
    refused(data, "cannot be read", tmp_path / "none.mhc")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("dim", 64, "shape"), ("dim", 2**31, "outside 1 to"), ("n_layers", 0, "outside 1 to"),
        ("n_layers", 1000, "it has 11 tensors, and a model of 1000 blocks has 9002"), ("n_heads", 3, "cannot have 3"),
        ("n_heads", 128, "cannot have 128 heads"), ("n_kv_heads", 4, "outside 1 to 2"), ("vocab_size", 41, "shape"),
        ("group_size", 32, "cannot hold"), ("group_size", 256, "no whole number of groups"),
        ("group_size", 64, "takes 5120 bytes and has 4608"),
        ("mhc_n_streams", 3, "3 residual streams"), ("weight_tied", 2, "neither 0 nor 1"),
        ("weight_tied", 0, "has 11 tensors, and a model of 1 blocks has 12"),
        ("n_experts", 8, "forward pass"), ("loop.loop_count", 4, "forward pass"), ("rope_scale", 8, "forward pass"),
    ],
)  # fmt: skip
def test_other_shapes_are_refused(key: str, value: int, reason: str) -> None:
    original = plain_residual()
    original.number(key, value)
    refused(original.bytes(), reason)


def test_a_neutral_key_of_another_model_does_no_harm() -> None:
    original = plain_residual()
    original.number("n_experts", 0)
    original.number("rope_scale", 1)
    original.keys["nanochat.gated_attention"] = samples.key("nanochat.gated_attention", 7, b"\0")
    original.keys["nanochat.weight_tied"] = samples.key("nanochat.weight_tied", 7, b"\1")
    original.keys["model.group_size"] = samples.key("model.group_size", 4, struct.pack("<I", 128))
    del original.keys["nanochat.group_size"]
    assert len(import_gugf(original.bytes()).tensors) == 11


def test_damage_is_refused(tmp_path: Path) -> None:
    gate = "blocks.0.ffn.w_gate.weight"
    for name, tensor, reason in (
        ("norm_final.weight", ((128,), 0, struct.pack("<f", np.nan) * 128), "NaN"),
        ("norm_final.weight", ((128,), 8, bytes(136)), "type id 8 and should be F32 or F16"),
        ("norm_final.weight", ((64, 2), 0, bytes(512)), "should have"),
        ("tok_embed.weight", ((128, 40), 0, bytes(128 * 40 * 4)), "should have .40, 128."),
        (gate, ((256, 128), 0, bytes(256 * 128 * 4)), "should be Q1_58"),
        (gate, ((255, 128), 100, bytes(255 * 36)), "should have"),
        (gate, ((128,), 100, bytes(32)), "should have"),
        (gate, ((256, 128), 100, b"\x02" + bytes(256 * 36 - 1)), "a code that no trit has"),
        (gate, ((256, 128), 100, bytes(256 * 32) + struct.pack("<f", np.inf) * 256), "NaN or infinite"),
        (gate, ((256, 128), 100, bytes(256 * 32) + struct.pack("<f", 1e6) * 256), "beyond float16"),
        (gate, ((256, 128), 100, bytes(256 * 36 - 64)), "takes 9216 bytes"),
        (gate, ((256, 128), 100, bytes(256 * 36 + 64)), "takes 9216 bytes"),
    ):
        original = plain_residual()
        original.tensors[name] = tensor
        refused(original.bytes(), reason)
    original = plain_residual()
    original.tensors["blocks.0.engram.w_k.weight"] = original.tensors.pop(gate)
    refused(original.bytes(), "no tensor blocks.0.ffn.w_gate.weight")
    original = plain_residual()
    original.text("general.architecture", "nanochat")
    refused(original.bytes(), "its architecture is nanochat and not")
    original.keys["general.architecture"] = samples.key("general.architecture", 9, struct.pack("<IQ", 4, 0))
    refused(original.bytes(), "array of u32")
    for data in (b"", b"GUGF", b"GUG", b"!CHm" + bytes(100), SOUND[:40], SOUND[:4] + struct.pack("<I", 4) + SOUND[8:]):
        refused(data, "not a model of|not a sound file")
    with pytest.raises(FormatError, match="cannot be read"):
        import_gugf(tmp_path / "none.gguf")
    (tmp_path / "old.gguf").write_bytes(SOUND)
    with pytest.raises(FormatError, match=r"begins with GUGF.*nanochat-tui convert"):
        read_gguf(tmp_path / "old.gguf")
    with pytest.raises(FormatError):
        convert_gugf(tmp_path / "old.gguf", tmp_path / "new.gguf", sidecar(tmp_path))
    assert not (tmp_path / "new.gguf").exists()


def test_every_truncation_is_refused() -> None:
    padding = 32
    assert len(import_gugf(SOUND).tensors) == 11
    for length in (*range(0, HEADER, 3), *range(HEADER, len(SOUND) - padding, 1499)):
        refused(SOUND[:length], "not a model of|not a sound file")


@settings(max_examples=150)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, HEADER + 32),
            st.sampled_from([1, 4, 8]),
            st.integers(0, 2**64 - 1) | st.integers(0, 300) | st.integers(0, 64).map(lambda n: (1 << n) - 1),
        ),
        min_size=1,
        max_size=3,
    ),
    cut=st.none() | st.integers(0, len(SOUND)),
)
def test_a_changed_file_is_read_or_refused(changes: list[tuple[int, int, int]], cut: int | None) -> None:
    data = bytearray(SOUND)
    for place, width, value in changes:
        data[place : place + width] = (value % (1 << (8 * width))).to_bytes(width, "little")
    try:
        found = import_gugf(bytes(data[:cut]))
    except FormatError as error:
        assert "\n" not in str(error)
    else:
        assert len(found.tensors) == 11


def test_changed_numbers_of_the_table_are_read_or_refused() -> None:
    rng = random.Random(5)
    refusals = 0
    for _ in range(600):
        original = plain_residual()
        name = rng.choice(list(original.tensors))
        shape, kind, content = original.tensors[name]
        what = rng.randrange(3)
        if what == 0:
            shape = tuple(rng.choice([0, 1, n, 2 * n, 1 << rng.randrange(64)]) for n in shape[: rng.randrange(1, 3)])
        elif what == 1:
            kind = rng.choice([0, 1, 2, 8, 42, 100, 2**32 - 1])
        else:
            content = content[: rng.randrange(len(content))]
        original.tensors[name] = (shape, kind, content)
        try:
            import_gugf(original.bytes())
        except FormatError:
            refusals += 1
    assert 200 < refusals < 600


def test_a_converted_model_with_a_tokenizer_runs(tmp_path: Path) -> None:
    original = Original(CONFIG.with_(vocab_size=TINY.vocab_size))
    tokenizer = tiny_tokenizer(TINY.vocab_size)
    end = tokenizer.token_to_id(END_OF_TEXT)
    (tmp_path / "old.gguf").write_bytes(original.bytes())
    convert_gugf(
        tmp_path / "old.gguf",
        tmp_path / "new.gguf",
        sidecar(tmp_path),
        extra=to_gguf_metadata(tokenizer, bos=end, eos=end, add_bos=True),
    )
    assert inspect_file(tmp_path / "new.gguf").runs
    logits = load(tmp_path / "new.gguf").logits([end, 5, 6])
    assert logits.shape == (3, TINY.vocab_size)
    assert np.isfinite(logits).all()
    assert logits.std() > 0
