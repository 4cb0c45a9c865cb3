"""Files that fool other programs, each small and with its one fault, and what is to be said of them."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
from support_architectures import add_rotation, draft, finish, write_architecture

from nanochat_tui.formats.gguf import GGUFValue, TensorData, array, boolean, i32, read_gguf, string, u32, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES

FORMATS = Path(__file__).parents[1] / "formats"


def originals() -> ModuleType:
    """The builder of the original system's files, which lives with the tests of their importer."""
    if str(FORMATS) not in sys.path:
        sys.path.append(str(FORMATS))
    spec = importlib.util.spec_from_file_location("gugf_files", FORMATS / "test_gugf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rewritten(
    path: Path, change: Callable[[dict[str, GGUFValue]], None], tensors: list[TensorData] | None = None
) -> Path:
    """Write a file again with other keys, or other tensors."""
    with read_gguf(path) as file:
        metadata = dict(file.metadata)
        change(metadata)
        kept = [TensorData(n, i.shape, i.type, file.raw(n).copy()) for n, i in file.tensors.items()]
    write_gguf(path, metadata, kept if tensors is None else tensors)
    return path


def group_128(folder: Path) -> Path:
    return write_architecture(folder / "m.gguf", "qwen3", kind="Q2_0_g128", table="Q2_0_g128")


def rotated(folder: Path) -> Path:
    d = draft("qwen3", kind="Q2_0", table="Q2_0")
    add_rotation(d)
    return finish(d, folder / "m.gguf")


def rotated_wrongly(change: Callable[[dict[str, GGUFValue]], object]) -> Callable[[Path], Path]:
    """A rotated model whose keys were changed."""

    def make(folder: Path) -> Path:
        d = draft("qwen3", kind="Q2_0", table="Q2_0")
        add_rotation(d)
        change(d.plain_keys)
        return finish(d, folder / "m.gguf")

    return make


def mislabelled_by_name(folder: Path) -> Path:
    """BitNet b1.58 2B4T's widths under the name that stands for SiLU; one layer of zeros is enough to be told."""
    kind, dim, hidden = TENSOR_TYPES["TQ2_0"], 2560, 6912
    path = write_architecture(folder / "m.gguf", "bitnet", kind="TQ2_0")
    shapes = {"attn_q": (dim, dim), "attn_k": (640, dim), "attn_v": (640, dim), "attn_output": (dim, dim)}
    shapes |= {"ffn_gate": (hidden, dim), "ffn_up": (hidden, dim), "ffn_down": (dim, hidden)}
    tensors = [
        TensorData(f"blk.0.{name}.weight", shape, kind, np.zeros(kind.nbytes(shape[0] * shape[1]), np.uint8))
        for name, shape in shapes.items()
    ]
    norms = {f"blk.0.{name}.weight": dim for name in ("attn_norm", "ffn_norm", "attn_sub_norm")}
    norms |= {"output_norm.weight": dim, "blk.0.ffn_sub_norm.weight": hidden}
    for name, width in norms.items():
        tensors.append(TensorData(name, (width,), TENSOR_TYPES["F32"], np.ones(width, np.float32).view(np.uint8)))
    table = TENSOR_TYPES["Q8_0"]
    tensors.append(TensorData("token_embd.weight", (300, dim), table, np.zeros(table.nbytes(300 * dim), np.uint8)))

    def widths(metadata: dict[str, GGUFValue]) -> None:
        for key, value in {
            "block_count": 1, "embedding_length": dim, "feed_forward_length": hidden, "attention.head_count": 20,
            "attention.head_count_kv": 5,
        }.items():  # fmt: skip
            metadata[f"bitnet.{key}"] = u32(value)

    return rewritten(path, widths, tensors)


def mislabelled_by_key(folder: Path) -> Path:
    d = draft("bitnet-b1.58", kind="I2_S", table="F16")
    d.keys["hidden_activation"] = string("silu")
    return finish(d, folder / "m.gguf")


def with_pre(folder: Path, pre: str | None) -> Path:
    """Llama 3's vocabulary without the name of its rules, as BitNet 2B4T was published, or with another's."""
    path = write_architecture(folder / "m.gguf", "bitnet-b1.58", kind="I2_S", table="F16")
    with read_gguf(path) as file:
        table = file.array("token_embd.weight")
        kept = [
            TensorData(n, i.shape, i.type, file.raw(n).copy())
            for n, i in file.tensors.items()
            if n != "token_embd.weight"
        ]
        tokens = list(file.metadata["tokenizer.ggml.tokens"].value)  # type: ignore[arg-type]
    rows = np.zeros((128_256, table.shape[1]), np.float16)
    rows[: len(table)] = table
    kept.append(TensorData("token_embd.weight", rows.shape, TENSOR_TYPES["F16"], rows.view(np.uint8)))
    tokens += [f"[PAD{index}]" for index in range(len(tokens), 128_256)]
    tokens[128_000], tokens[128_009] = "<|begin_of_text|>", "<|eot_id|>"

    def damage(metadata: dict[str, GGUFValue]) -> None:
        del metadata["tokenizer.ggml.pre"], metadata["tokenizer.ggml.add_bos_token"]
        if pre is not None:
            metadata["tokenizer.ggml.pre"] = string(pre)
        metadata["tokenizer.ggml.tokens"] = array(tokens)
        metadata["tokenizer.ggml.token_type"] = array(np.ones(len(tokens), np.int32))

    return rewritten(path, damage, kept)


def placeholder_template(folder: Path) -> Path:
    """BitNet 2B4T as Microsoft published it: its converter wrote a template that the model was not trained on."""
    template = (
        "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{% if message['role'] == 'user' %}"
        "{{ 'Human: ' + message['content'] + '\\n\\nBITNETAssistant: ' + eos_token }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    change = {"tokenizer.chat_template": string(template)}
    return rewritten(with_pre(folder, "llama-bpe"), lambda metadata: metadata.update(change))


def broken_template(folder: Path) -> Path:
    """A chat template that ends early, in a vocabulary without the marks of any family."""
    path = finish(draft("llama"), folder / "m.gguf")
    return rewritten(path, lambda m: m.update({"tokenizer.chat_template": string("{% if messages %}{{ messages")}))


def unknown_pre(folder: Path) -> Path:
    d = draft("llama")
    path = finish(d, folder / "m.gguf")
    return rewritten(path, lambda metadata: metadata.update({"tokenizer.ggml.pre": string("from-the-future")}))


def gugf(folder: Path) -> Path:
    (folder / "m.gguf").write_bytes(originals().Original().bytes())
    return folder / "m.gguf"


def lost_scales(folder: Path) -> Path:
    made = originals().plain_residual()
    for name, found in list(made.values.items()):
        if isinstance(found, tuple):
            trits, scales = found
            counts = np.count_nonzero(trits.reshape(*scales.shape, -1), axis=-1)
            made.ternary(name, trits, (counts / made.config.group_size).astype(np.float32))
    (folder / "m.gguf").write_bytes(made.bytes())
    return folder / "m.gguf"


def shards(folder: Path) -> list[Path]:
    whole = write_architecture(folder / "whole.gguf", "llama", kind="Q2_0_g128")
    with read_gguf(whole) as file:
        kept = [TensorData(n, i.shape, i.type, file.raw(n).copy()) for n, i in file.tensors.items()]
        metadata = dict(file.metadata)
    whole.unlink()
    parts = [kept[: len(kept) // 2], kept[len(kept) // 2 :]]
    paths = [folder / f"m-{number:05}-of-00002.gguf" for number in (1, 2)]
    for number, (path, part) in enumerate(zip(paths, parts, strict=True)):
        split = {"split.no": u32(number), "split.count": u32(2), "split.tensors.count": u32(len(kept))}
        write_gguf(path, (metadata if number == 0 else {}) | split, part)
    return paths


def truncated_shard(folder: Path) -> Path:
    first, second = shards(folder)
    second.write_bytes(second.read_bytes()[:-4096])
    return first


def missing_shard(folder: Path) -> Path:
    first, second = shards(folder)
    second.unlink()
    return first


def with_type(folder: Path, type_id: int) -> Path:
    """A sound file whose first matrix then claims another type."""
    path = write_architecture(folder / "m.gguf", "llama", kind="TQ2_0")
    data = bytearray(path.read_bytes())
    name = b"blk.0.attn_q.weight"
    place = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 16
    assert struct.unpack_from("<I", data, place) == (35,)
    struct.pack_into("<I", data, place, type_id)
    path.write_bytes(data)
    return path


def sherry_under_42(folder: Path) -> Path:
    path = write_architecture(folder / "m.gguf", "llama", kind="STQ1_0")
    with read_gguf(path) as file:
        kept = [TensorData(n, i.shape, i.type, file.raw(n).copy()) for n, i in file.tensors.items()]
    kept = [replace(t, type=replace(t.type, id=42)) if t.type.name == "STQ1_0" else t for t in kept]
    return rewritten(path, lambda metadata: None, kept)


def mixed_under_42(folder: Path) -> Path:
    """A sound file in groups of 64 with one matrix that has the size of groups of 128."""
    path = write_architecture(folder / "m.gguf", "llama", kind="PQ2_0", table="Q2_0")
    data = bytearray(path.read_bytes())
    for place in [p for p in range(len(data) - 8) if data[p : p + 4] == struct.pack("<I", 142)][:1]:
        struct.pack_into("<I", data, place, 42)
    path.write_bytes(data)
    return path


def truncated(folder: Path) -> Path:
    path = write_architecture(folder / "m.gguf", "qwen3", kind="TQ2_0")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def embedding_model(folder: Path) -> Path:
    d = draft("qwen3", kind="I2_S", table="F16")
    d.floats("blk.0.attn_q_norm_in.weight", np.ones(256), "F16")
    return finish(d, folder / "m.gguf")


def another_architecture(folder: Path) -> Path:
    d = draft("llama")
    d.name = "qwen35moe"
    return finish(d, folder / "m.gguf")


def another_tensor(folder: Path) -> Path:
    d = draft("llama")
    d.norm("blk.0.attn_q_norm.weight", 128)
    return finish(d, folder / "m.gguf")


def too_large(folder: Path) -> Path:
    """A terabyte of embedding, as a file with a hole: nothing of it is on the disk."""
    d = draft("llama", table="F16")
    d.tensors.append(d.tensors.pop(0))
    path = finish(d, folder / "m.gguf")
    with read_gguf(path) as file:
        start = file.tensors["token_embd.weight"].offset
    rows = 1 << 31
    with path.open("r+b") as handle:
        head = handle.read(start)
        name = b"token_embd.weight"
        handle.seek(head.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 8)
        handle.write(struct.pack("<Q", rows))
        handle.truncate(start + rows * 256 * 2)
    return path


def too_long(folder: Path) -> Path:
    """A model of 40 MB whose keys and values take half a megabyte a token, and that claims a million tokens."""
    heads, width, dim, hidden, kind = 256, 256, 256, 512, TENSOR_TYPES["TQ2_0"]
    path = write_architecture(folder / "m.gguf", "llama", kind="TQ2_0")
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v"), (heads * width, dim)) | {"attn_output": (dim, heads * width)}
    shapes |= {"ffn_gate": (hidden, dim), "ffn_up": (hidden, dim), "ffn_down": (dim, hidden)}
    zeros = [
        TensorData(f"blk.{layer}.{name}.weight", shape, kind, np.zeros(kind.nbytes(shape[0] * shape[1]), np.uint8))
        for layer in range(2)
        for name, shape in shapes.items()
    ]
    with read_gguf(path) as file:
        small = [TensorData(n, i.shape, i.type, file.raw(n).copy()) for n, i in file.tensors.items() if i.type != kind]

    def widths(metadata: dict[str, GGUFValue]) -> None:
        for key, value in {
            "context_length": 1 << 20, "attention.head_count": heads, "attention.head_count_kv": heads,
            "attention.key_length": width, "attention.value_length": width, "rope.dimension_count": width,
        }.items():  # fmt: skip
            metadata[f"llama.{key}"] = u32(value)

    return rewritten(path, widths, small + zeros)


@dataclass(frozen=True)
class Case:
    """inspect: what its output must hold. refused: what `chat` says; None where it answers, and inspect ends with 0."""

    make: Callable[[Path], Path]
    inspect: tuple[str, ...]
    refused: str | None = None
    noted: str | None = None
    """What `chat` says on stderr while it answers."""
    options: tuple[str, ...] = ()
    """Further words for `chat`."""
    linux: bool = False
    """Whether the file needs a file system with holes."""
    memory: bool = False
    """Whether only this machine's memory is too small, so that inspect ends with 0 all the same."""

    @property
    def code(self) -> int:
        """Exit code of `inspect`."""
        return 2 if self.refused is not None and not self.memory else 0


H = "prism.hadamard."
TRAPS = {
    "g128 under id 42": Case(group_128, ("Q2_0_g128", "nanochat-tui convert")),
    "g64 and g128 under id 42": Case(
        mixed_under_42, ("different types, of Q2_0, Q2_0_g128",), refused="of different types"
    ),
    "rotated Q2_0": Case(rotated, ("Hadamard-rotated", "blocks of 64", "print garbage")),
    "rotated, a key missing": Case(
        rotated_wrongly(lambda keys: keys.pop(H + "sign_values")),
        ("lacks prism.hadamard.sign_values",),
        refused="lacks prism.hadamard.sign_values",
    ),
    "rotated, wrong number of signs": Case(
        rotated_wrongly(lambda keys: keys.update({H + "sign_values": array(np.ones(700, np.int8))})),
        ("700 signs",),
        refused="700 signs for widths that take 768",
    ),
    "rotated, unknown version": Case(
        rotated_wrongly(lambda keys: keys.update({H + "version": u32(3)})), ("version 3",), refused="version 3"
    ),
    "rotated, a matrix left out": Case(
        rotated_wrongly(lambda keys: keys.update({H + "weight_names": array(["blk.0.attn_q.weight"])})),
        ("not blk.0.attn_k.weight",),
        refused="not blk.0.attn_k.weight",
    ),
    "rotated, a tied head unsaid": Case(
        rotated_wrongly(lambda keys: keys.update({H + "tied_output": boolean(False)})),
        ("does not say tied_output",),
        refused="does not say tied_output",
    ),
    "rotated by another vendor": Case(
        rotated_wrongly(lambda keys: keys.update({"onebit.hadamard_q4_0": i32(1)})),
        ("another vendor",),
        refused="onebit.hadamard",
    ),
    "mislabelled BitNet, by name": Case(mislabelled_by_name, ("ReLU²",), noted="ReLU²"),
    "mislabelled BitNet, by key": Case(mislabelled_by_key, ("ReLU²",), noted="ReLU²"),
    "BitNet embedding model": Case(embedding_model, ("*_norm_in",), refused="use Microsoft's bitnet.cpp"),
    "an architecture that is not run": Case(
        another_architecture, ("qwen35moe", "use llama.cpp"), refused="of Qwen3.5 only the dense models are implemented"
    ),
    "a tensor too many": Case(
        another_tensor, ("attn_q_norm.weight, which is not known for llama",), refused="take a file of the plain model"
    ),
    "missing pre": Case(lambda folder: with_pre(folder, None), ("llama-bpe",), noted="llama-bpe"),
    "wrong pre": Case(lambda folder: with_pre(folder, "qwen2"), ("“qwen2”", "llama-bpe"), noted="llama-bpe"),
    "placeholder chat template": Case(
        placeholder_template, ("a converter's placeholder", "BitNet b1.58 2B4T"), noted="a converter's placeholder"
    ),
    "broken template": Case(
        broken_template, ("is not valid Jinja and its family is not known",), noted="is not valid Jinja"
    ),
    "unknown pre": Case(unknown_pre, ("from-the-future",), refused="--tokenizer"),
    "GUGF": Case(gugf, ("GUGF", "convert"), refused="nanochat-tui convert"),
    "GUGF, lost scales": Case(lost_scales, ("GUGF", "not zero", "scales are lost"), refused="nanochat-tui convert"),
    "truncated file": Case(truncated, ("cut short",), refused="cut short"),
    "truncated shard": Case(
        truncated_shard, ("file 1 of 2", "m-00002-of-00002.gguf", "it is cut short"), refused="it is cut short"
    ),
    "missing shard": Case(
        missing_shard, ("file 1 of 2", "00002.gguf is missing"), refused="m-00002-of-00002.gguf is missing"
    ),
    "unknown id": Case(lambda folder: with_type(folder, 777), ("type 777",), refused="the unknown type 777"),
    "STQ1_0 under 42": Case(sherry_under_42, ("STQ1_0", "id 42")),
    "TL1": Case(lambda folder: with_type(folder, 38), ("TL1",), refused="I2_S file of the same model"),
    "TL2": Case(lambda folder: with_type(folder, 39), ("TL2",), refused="I2_S file of the same model"),
    "weights beyond memory": Case(
        too_large, ("it does not fit",), refused="choose a smaller model", linux=True, memory=True
    ),
    "context beyond memory": Case(
        too_long,
        ("the largest context that fits is",),
        refused="the largest context that fits is",
        options=("-c", "1048576"),
        memory=True,
    ),
}
