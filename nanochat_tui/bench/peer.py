"""llama.cpp, through llama-cpp-python's low-level bindings, as an engine to be measured next to ours.

Only `llama_decode` and an argmax over its logits are timed: no sampler, no log-probabilities, no text.
"""

from __future__ import annotations

import ctypes
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

PEER = "llama-cpp-python"
BATCH = 512


def peer_version() -> str:
    """Return the installed version. Raises UserError if it is not installed."""
    try:
        return version("llama_cpp_python")
    except PackageNotFoundError:
        raise UserError(
            "llama-cpp-python is not installed; install it compiled for this processor: "
            'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python --no-binary llama-cpp-python'
        ) from None


def _head_width(api: Any, model: Any) -> int:
    """Return the components of one key head: what the file says, or the width divided by the heads."""

    def said(key: str) -> str:
        text = ctypes.create_string_buffer(128)
        found = api.llama_model_meta_val_str(model, key.encode(), text, len(text))
        return text.value.decode(errors="replace") if found > 0 else ""

    width = said(said("general.architecture") + ".attention.key_length")
    if width.isdigit():
        return int(width)
    return int(api.llama_model_n_embd(model)) // max(1, int(api.llama_model_n_head(model)))


class PeerRunner:
    """A model in llama.cpp; see `measurement_worker.Runner`."""

    drafts = (0, 0)

    def __init__(self, path: Path, threads: int, positions: int = 4096, *, exact: bool = False) -> None:
        """Load a model with room for so many positions. exact: attention in float32 throughout.

        Raises UserError if the library is missing or refuses the file, with its first complaint.
        """
        self.kernel = f"{PEER} {peer_version()}"
        import llama_cpp

        self._api: Any = llama_cpp
        said: list[str] = []

        def listen(level: int, text: bytes, _: object) -> None:
            if level >= 3:  # warnings and errors
                said.append(text.decode(errors="replace").strip())

        self._listener = llama_cpp.llama_log_callback(listen)  # kept, because C calls it later
        llama_cpp.llama_log_set(self._listener, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not model:
            reason = next((line for line in said if line), "no reason given")
            raise UserError(f"it does not load {display_safe(path.name)} ({display_safe(reason)})")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = positions
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = threads
        if exact:
            settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
            settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise UserError(f"it makes no context for {display_safe(path.name)}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.bytes_per_token = int(llama_cpp.llama_model_size(model))
        heads = llama_cpp.llama_model_n_head_kv(model)
        width = _head_width(llama_cpp, model)
        self.kv_bytes = 2 * 2 * llama_cpp.llama_model_n_layer(model) * heads * width
        self._held: list[int] = []

    def _feed(self, ids: list[int]) -> None:
        """Compute ids behind what is held, in batches; the last token's logits are kept."""
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            tokens = (self._api.llama_token * len(part))(*part)
            if self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(part))):
                raise UserError("llama_decode failed; the context may be too short")

    def _choose(self) -> int:
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())

    def logits(self, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the logits after every token of a text, float32 [len(ids), vocabulary], one token at a time."""
        self._api.llama_memory_clear(self._memory, False)
        self._held = []
        rows = []
        for token in ids:
            self._feed([token])
            found = self._api.llama_get_logits_ith(self._context, -1)
            rows.append(np.ctypeslib.as_array(found, (self.vocabulary,)).copy())
        return np.stack(rows)

    def prompt(self, ids: list[int]) -> float:
        """See `Runner`."""
        self._api.llama_memory_clear(self._memory, False)
        self._held = list(ids)
        began = time.perf_counter()
        self._feed(ids)
        self._choose()
        return time.perf_counter() - began

    def decode(self, ids: list[int], tokens: int) -> tuple[int, float]:
        """See `Runner`; ids that were read before are kept."""
        if self._held != ids or not self._api.llama_memory_seq_rm(self._memory, 0, len(ids) - 1, -1):
            self._api.llama_memory_clear(self._memory, False)
            self._feed(ids[:-1])
            self._held = list(ids)
        self._feed(ids[-1:])
        token = self._choose()
        began = time.perf_counter()
        for _ in range(tokens):
            self._feed([token])
            token = self._choose()
        return tokens, time.perf_counter() - began
