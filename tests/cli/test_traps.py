"""Files that fool other programs: what a user of `inspect` and of `chat` is told about each.

The files are written here, small, each with its one fault. `chat` either answers (the trap is disarmed) or refuses in
one sentence that names the cause; printing garbage without a word is the one thing it must not do.
"""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support_architectures import add_rotation, draft, finish, write_architecture

from nanochat_tui.cli.app import dispatch
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFValue, TensorData, array, read_gguf, string, u32, write_gguf
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


def rotated_in_part(folder: Path) -> Path:
    d = draft("qwen3")
    add_rotation(d)
    del d.plain_keys["prism.hadamard.sign_values"]
    return finish(d, folder / "m.gguf")


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


def missing_pre(folder: Path) -> Path:
    """Llama 3's vocabulary without the name of its rules, as BitNet 2B4T was published."""
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
        metadata["tokenizer.ggml.tokens"] = array(tokens)
        metadata["tokenizer.ggml.token_type"] = array(np.ones(len(tokens), np.int32))

    return rewritten(path, damage, kept)


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


@dataclass(frozen=True)
class Case:
    """inspect: what its output must hold. refused: what `chat` says; None where it answers."""

    make: Callable[[Path], Path]
    inspect: tuple[str, ...]
    refused: str | None = None
    noted: str | None = None
    """What `chat` says on stderr while it answers."""


TRAPS = {
    "g128 under id 42": Case(group_128, ("Q2_0_g128", "nanochat-tui convert")),
    "rotated Q2_0": Case(rotated, ("Hadamard-rotated", "blocks of 64")),
    "rotation in part": Case(rotated_in_part, ("prism.hadamard",), refused="prism.hadamard"),
    "mislabelled BitNet, by name": Case(mislabelled_by_name, ("ReLU²",), noted="ReLU²"),
    "mislabelled BitNet, by key": Case(mislabelled_by_key, ("ReLU²",), noted="ReLU²"),
    "missing pre": Case(missing_pre, ("llama-bpe",), noted="llama-bpe"),
    "GUGF": Case(gugf, ("GUGF", "convert"), refused="nanochat-tui convert"),
    "GUGF, lost scales": Case(lost_scales, ("GUGF", "not zero"), refused="nanochat-tui convert"),
    "truncated shard": Case(truncated_shard, ("file 1 of 2",), refused="m-00002-of-00002.gguf"),
    "missing shard": Case(missing_shard, ("file 1 of 2",), refused="m-00002-of-00002.gguf is missing"),
    "unknown id": Case(lambda folder: with_type(folder, 777), ("type 777",), refused="type 777"),
    "STQ1_0 under 42": Case(sherry_under_42, ("STQ1_0", "id 42")),
    "TL1": Case(lambda folder: with_type(folder, 38), ("TL1",), refused="I2_S file of the same model"),
    "TL2": Case(lambda folder: with_type(folder, 39), ("TL2",), refused="I2_S file of the same model"),
}


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command as its user sees it: exit code, stdout, stderr with the error."""
    try:
        code = dispatch(words)
    except UserError as error:
        found = capsys.readouterr()
        assert "\n" not in str(error)
        return error.exit_code, found.out, f"{found.err}error: {error}"
    found = capsys.readouterr()
    return code, found.out, found.err


@pytest.mark.parametrize("name", TRAPS)
def test_inspect_names_the_trap(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = TRAPS[name]
    code, out, err = say(capsys, "inspect", str(case.make(tmp_path)))
    for words in case.inspect:
        assert words in out + err, (out, err)
    assert code in (0, 2)


@pytest.mark.parametrize("name", TRAPS)
def test_chat_answers_or_says_why_not(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = TRAPS[name]
    path = case.make(tmp_path)
    code, out, err = say(capsys, "chat", str(path), "-p", "Hello", "-n", "3", "--temperature", "0", "--raw", "--json")
    if case.refused is not None:
        assert code == 2
        assert case.refused in err
        assert not out
        return
    assert code == 0, err
    finished = json.loads(out.splitlines()[-1])
    assert finished["event"] == "finished"
    assert finished["prompt_tokens"] > 0
    if case.noted is not None:
        assert case.noted in err


def test_lost_scales_are_told_while_converting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = say(capsys, "convert", str(lost_scales(tmp_path)), str(tmp_path / "out.gguf"))
    assert code == 0
    assert "trained scales are lost" in err


def test_a_whole_split_model_is_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = shards(tmp_path)
    code, out, _ = say(capsys, "convert", str(first), str(tmp_path / "one.gguf"))
    assert code == 0
    assert "14 Q2_0_g128 tensors to Q2_0" in out
    with read_gguf(tmp_path / "one.gguf") as file:
        assert not any(key.startswith("split.") for key in file.metadata)
        assert len(file.tensors) == 20


def test_notes_stay_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    from nanochat_tui.cli.narration import Narration

    with Narration() as narrate:
        narrate("note: the rules 'llama-bpe' are used\x1b[2J")
        narrate("a step that nobody waits for")
    err = capsys.readouterr().err
    assert err.startswith("note: the rules 'llama-bpe' are used")
    assert "\x1b" not in err
    assert err.count("\n") == 1
