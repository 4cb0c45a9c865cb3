"""A loaded model: `load` a GGUF file, then `encode`, `logits`, `generate`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.cache import CacheType, KVCache
from nanochat_tui.engine.compile_cache import Progress, load_entry, load_screen
from nanochat_tui.engine.dispatch import choose_kernel
from nanochat_tui.engine.executor import Executor
from nanochat_tui.engine.paging import KINDS
from nanochat_tui.engine.plan import CHUNK
from nanochat_tui.engine.plan_memory import Forecast, forecast, require_memory
from nanochat_tui.engine.processors import default_threads
from nanochat_tui.engine.session import FinishReason, Session, Stats, Token
from nanochat_tui.engine.speculation import Mode
from nanochat_tui.engine.weights import Weights, load_weights
from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.formats.gguf import metadata_string
from nanochat_tui.formats.i2_s_layouts import LAYOUTS, Layout
from nanochat_tui.model.chat_families import chat_format
from nanochat_tui.model.shards import open_model
from nanochat_tui.model.support import ModelShape, require_described, require_vocabulary
from nanochat_tui.model.tokenizer import TextCodec, codec_from_gguf, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Generation", "Model", "Token", "load"]

Activations = Literal["int8", "float"]
MAX_THREADS = 256
WORTH_TELLING = 1 << 30
"""Bytes from which on a forecast of memory is shown before loading."""


class Generation(Iterator[Token]):
    """An iterator over a reply's tokens that knows, when it is over, why: `finish_reason`."""

    def __init__(self, session: Session, tokens: Iterator[Token]) -> None:
        self._session = session
        self._tokens = tokens

    def __next__(self) -> Token:
        return next(self._tokens)

    @property
    def finish_reason(self) -> FinishReason:
        """Why the reply ended: "stop", "length" or "cancelled"."""
        return self._session.finish_reason

    @property
    def stats(self) -> Stats:
        """Token counts and seconds of this reply."""
        return self._session.stats


class Model:
    """A model in memory. Made by `load`; may be used from several threads, which then take turns."""

    def __init__(
        self,
        path: Path,
        config: ModelShape,
        codec: TextCodec,
        executor: Executor,
        *,
        kernel: str,
        threads: int,
        kv: CacheType,
        name: str,
        chat_template: str | None,
        bytes_per_token: int,
        speculation: Mode = "auto",
        thinking: tuple[str, str] | None = None,
        context: int | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.codec = codec
        self.executor = executor
        self.kernel = kernel
        """Name of the kernel in use, e.g. "avx512-vnni"."""
        self.threads = threads
        self.kv = kv
        self.speculation: Mode = speculation
        """Whether new sessions guess tokens ahead, see `speculation.Speculator`."""
        self.name = name
        self.chat_template = chat_template
        """The file's Jinja template or its family's, or None for a model that only continues text."""
        self.thinking = thinking
        """The marks around what the model thinks before it answers, if it does."""
        self.context_length = min(context or config.context_length, config.context_length)
        """Tokens that memory was asked for, prompt and reply together; at most what the model was made for."""
        self._bytes_per_token = bytes_per_token

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights read for one decoded token, less what screening the output table spared lately."""
        screening = self.executor.screening
        return self._bytes_per_token - (screening.spared if screening is not None else 0)

    @property
    def tokenizer(self) -> Tokenizer:
        """The bare tokenizer, without BOS and the text conventions of `encode`."""
        return self.codec.tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text by the model's conventions: BOS, indentation."""
        return self.codec.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self.codec.decode(ids)

    def logits(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the logits after every token of a sequence, float32 [len(ids), vocab]; those of padding are -inf.

        Raises UserError if the sequence is empty, longer than the context or has an id outside the vocabulary.
        """
        limit, vocab = self.config.context_length, self.config.vocab_size
        try:
            tokens = np.ascontiguousarray(ids, dtype=np.int64).reshape(-1)
        except OverflowError as error:
            raise UserError(f"a token id is outside the vocabulary of {vocab}") from error
        if not 0 < len(tokens) <= limit:
            raise UserError(f"logits are computed for 1 to {limit} tokens, not {len(tokens)}")
        if tokens.min() < 0 or tokens.max() >= vocab:
            raise UserError(f"a token id is outside the vocabulary of {vocab}")
        cache = KVCache(self.config, len(tokens), self.kv)
        out = np.empty((len(tokens), vocab), np.float32)
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            out[start : start + len(part)] = self.executor.logits(cache, part, start)
        return out

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int = 0,
        logprobs: bool = True,
        cancel: threading.Event | None = None,
    ) -> Generation:
        """Return an iterator over the tokens of a continuation; a string is encoded first.

        See `sampling.Sampling` for the settings. Ends at an end token or stop string ("stop"), at max_tokens or the end
        of the context ("length"), or when `cancel` is set ("cancelled", looked at before every token).
        Raises UserError for a prompt longer than the context or impossible settings.
        """
        session = Session(self)
        tokens = session.generate(
            self.encode(prompt) if isinstance(prompt, str) else prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=seed,
            stop=stop,
            top_logprobs=top_logprobs,
            logprobs=logprobs,
            cancel=cancel,
        )
        return Generation(session, tokens)

    def settle(self) -> None:
        """Wait for what is made beside the first replies, so that what follows is measured at full speed."""
        if self.executor.screening is not None:
            self.executor.screening.settle()

    def close(self) -> None:
        """End the worker threads; the model cannot be used afterwards, and a reply in progress ends with UserError."""
        self.executor.close()


def load(
    path: str | os.PathLike[str],
    *,
    mhc: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    kernel: str | None = None,
    activations: Activations = "int8",
    kv: CacheType = "f16",
    speculation: Mode = "auto",
    context: int | None = None,
    kv_tokens: int | None = None,
    sequences: int = 1,
    i2s_layout: Layout = "x86",
    progress: Progress | None = None,
) -> Model:
    """Load a GGUF model, of several files if it is split.

    mhc: sidecar that must agree with the file. tokenizer: a tokenizer.json used in place of the one inside.
    threads: None uses every core. kernel: see `dispatch.KERNELS`; None is the fastest. activations: "float" never
    rounds them, for comparisons (slower). kv: type of the key-value cache. speculation: guess tokens ahead where that
    is faster ("auto"), always or never; the reply is the same. context: tokens that memory has to be there for, or the
    model is refused; None asks for room for a short one only, as memory is taken when it is used. kv_tokens, sequences:
    in place of a context, positions of a cache that so many replies will share (see `batching.Batcher`). i2s_layout:
    order of codes in I2_S tensors, "arm" or "1x4" if such a machine or build quantised them, which no file tells.
    progress: called with one line before anything that takes seconds, such as compiling kernels on the first start.
    Raises UserError if the file cannot be run, saying why.
    """
    if activations not in ("int8", "float") or kv not in KINDS:
        raise UserError(
            f"activations {activations!r} or kv {kv!r} is unknown; they are int8 or float, and {', '.join(KINDS)}"
        )
    if speculation not in ("auto", "on", "off"):
        raise UserError(f"speculation {speculation!r} is unknown; it is auto, on or off")
    if i2s_layout not in LAYOUTS:
        raise UserError(f"the I2_S layout {i2s_layout!r} is unknown; it is one of {', '.join(LAYOUTS)}")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UserError(f"{threads} threads make no sense; give 1 to {MAX_THREADS}")
    isa = choose_kernel(kernel, progress)
    file_path = Path(path)
    if progress:
        progress(f"reading {display_safe(file_path.name)}")
    with open_model(file_path) as file:
        shape = require_described(file)
        if i2s_layout != "x86":
            file.set_i2_s_layout(i2s_layout)
        if progress:
            for note in shape.notes:
                progress(note)
        codec = codec_from_gguf(file.metadata, load_tokenizer(Path(tokenizer)) if tokenizer else None)
        require_vocabulary(codec.tokenizer.get_vocab_size(), shape.vocab_size)
        as_float = activations == "float"
        if context is not None and context > shape.context_length:
            if progress:
                progress(f"note: the model was made for {shape.context_length} tokens, and so that is the context")
            context = shape.context_length
        asked = context is not None or kv_tokens is not None

        def foretell(kind: CacheType) -> Forecast:
            return forecast(file, shape, context, kind, as_float=as_float, kv_tokens=kv_tokens, sequences=sequences)

        memory = foretell(kv)
        if progress and (asked or memory.total >= WORTH_TELLING):
            progress(str(memory))
        smaller = None if kv == "int8" or memory.fits else foretell("int8")
        what = "key-value cache" if context is None and kv_tokens is not None else "context"
        require_memory(memory, asked=asked, smaller=smaller, what=what)
        shape = replace(shape, unnamed=shape.vocab_size - codec.named_rows(shape.vocab_size))
        sidecar = Path(mhc) if mhc else None
        weights: Weights = load_weights(file, shape, as_float=as_float, bias=isa.q8_bias, mhc=sidecar)
        name = metadata_string(file.metadata, "general.name", file_path.stem)
        talk = chat_format(file.metadata)
    for note in (*codec.notes, *([talk.note] if talk and talk.note else [])):
        if progress:
            progress(f"note: {note}")
    count = threads or default_threads()
    executor = Executor(
        shape,
        weights,
        lambda known: load_entry(isa, weights.group, progress, weights.kinds, known),
        threads=count,
        tile=isa.tile,
        queries=isa.queries,
        as_float=as_float,
        kv=kv,
        bias=isa.q8_bias,
        screen=lambda: load_screen(isa),
    )
    return Model(
        file_path,
        shape.config or shape,
        codec,
        executor,
        kernel=isa.name,
        threads=count,
        kv=kv,
        name=name,
        chat_template=talk.template if talk else None,
        thinking=talk.thinking if talk else None,
        context=context,
        bytes_per_token=weights.bytes_per_token,
        speculation=speculation,
    )
