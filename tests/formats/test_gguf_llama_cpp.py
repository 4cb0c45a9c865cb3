"""Our files read by llama.cpp's own reader, which knows Q2_0; the gguf package's release does not.

The library is the one that the package llama-cpp-python brings, or the file that GGML_LIBRARY names.
"""

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any

import gguf_samples as samples
import numpy as np
import pytest

from nanochat_tui.formats.gguf import read_gguf, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.model.shipped import shipped_model

pytestmark = pytest.mark.peer

# the types of other programs
FOREIGN = ("Q2_0_g128", "PQ2_0", "PTQ1_0", "STQ1_0", "Q1_0_g32", "I2_S")
MAINLINE = [name for name in TENSOR_TYPES if name not in FOREIGN]


def _library_path() -> Path | None:
    named = os.environ.get("GGML_LIBRARY")
    if named:
        return Path(named)
    found = importlib.util.find_spec("llama_cpp")
    for folder in (found.submodule_search_locations or []) if found else []:
        for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll"):
            if (Path(folder) / "lib" / name).exists():
                return Path(folder) / "lib" / name
    return None


class _Parameters(ctypes.Structure):
    """gguf_init_params: passed by value."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@pytest.fixture(scope="module")
def ggml() -> Any:
    path = _library_path()
    if path is None:
        pytest.skip("llama.cpp's library is not installed (llama-cpp-python, or GGML_LIBRARY)")
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("gguf_init_from_file", pointer, [ctypes.c_char_p, _Parameters]),
        ("gguf_free", None, [pointer]),
        ("gguf_get_version", ctypes.c_uint32, [pointer]),
        ("gguf_get_alignment", ctypes.c_size_t, [pointer]),
        ("gguf_get_data_offset", ctypes.c_size_t, [pointer]),
        ("gguf_get_n_kv", number, [pointer]),
        ("gguf_get_key", ctypes.c_char_p, [pointer, number]),
        ("gguf_get_kv_type", ctypes.c_int, [pointer, number]),
        ("gguf_get_n_tensors", number, [pointer]),
        ("gguf_get_tensor_name", ctypes.c_char_p, [pointer, number]),
        ("gguf_get_tensor_type", ctypes.c_int, [pointer, number]),
        ("gguf_get_tensor_offset", ctypes.c_size_t, [pointer, number]),
        ("gguf_get_tensor_size", ctypes.c_size_t, [pointer, number]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _same_as_llama_cpp(ggml: Any, path: Path) -> None:
    """Compare keys and every tensor's name, type, offset and size as llama.cpp and we read them."""
    file = ggml.gguf_init_from_file(os.fsencode(path), _Parameters(True, None))
    assert file, "llama.cpp refuses the file"
    try:
        with read_gguf(path) as ours:
            assert ggml.gguf_get_version(file) == 3
            assert ggml.gguf_get_alignment(file) == 32
            assert ggml.gguf_get_data_offset(file) == ours.data_start
            keys = [
                (ggml.gguf_get_key(file, i).decode(), ggml.gguf_get_kv_type(file, i))
                for i in range(ggml.gguf_get_n_kv(file))
            ]
            assert keys == [(key, value.type) for key, value in ours.metadata.items()]
            tensors = [
                (
                    ggml.gguf_get_tensor_name(file, i).decode(),
                    ggml.gguf_get_tensor_type(file, i),
                    ggml.gguf_get_tensor_offset(file, i) + ours.data_start,
                    ggml.gguf_get_tensor_size(file, i),
                )
                for i in range(ggml.gguf_get_n_tensors(file))
            ]
            assert tensors == [(t.name, t.type.id, t.offset, t.nbytes) for t in ours.tensors.values()]
    finally:
        ggml.gguf_free(file)


def test_llama_cpp_reads_what_we_write(ggml: Any, tmp_path: Path) -> None:
    path = tmp_path / "ours.gguf"
    write_gguf(path, samples.metadata(), samples.tensors(MAINLINE))
    _same_as_llama_cpp(ggml, path)


def test_llama_cpp_reads_the_shipped_model(ggml: Any) -> None:
    path = shipped_model()
    assert path is not None
    _same_as_llama_cpp(ggml, path)


@pytest.mark.parametrize("name", ["Q2_0", "TQ1_0", "TQ2_0", "Q1_0", "Q8_0"])
def test_llama_cpp_decodes_blocks_alike(ggml: Any, name: str) -> None:
    kind = TENSOR_TYPES[name]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (50, kind.block_bytes), dtype=np.uint8)
    scales = rng.uniform(-2, 2, (50, 1)).astype(np.float16).view(np.uint8)
    where = slice(-2, None) if name.startswith("TQ") else slice(0, 2)
    blocks[:, where] = scales
    out = np.empty((50, kind.block_elements), np.float32)
    decode = getattr(ggml, f"dequantize_row_{name.lower()}")
    decode.restype, decode.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decode(blocks.ctypes.data, out.ctypes.data, out.size)
    np.testing.assert_array_equal(kind.decode(blocks), out)
