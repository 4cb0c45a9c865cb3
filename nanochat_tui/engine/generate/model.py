"""A loaded model: `load` a GGUF file, then `encode`, `logits`, `generate`."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.arguments import ArgumentError, described, token_ids, whole
from nanochat_tui.engine.compile.cache import Progress
from nanochat_tui.engine.compile.choose import choose_kernel
from nanochat_tui.engine.generate.constraint import Grammars
from nanochat_tui.engine.generate.conversation import Generation, answering, begin_reply, prompt_ids
from nanochat_tui.engine.generate.memory_forecast import Forecast, forecast, require_memory
from nanochat_tui.engine.generate.reading import (
    Convention,
    Embedding,
    Pooling,
    Scores,
    checked_pooling,
    convention_of,
    one_or_several,
    run_readings,
)
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.generate.speculation import Mode
from nanochat_tui.engine.run.crew import Crew
from nanochat_tui.engine.run.executor import Executor
from nanochat_tui.engine.run.kv_cache import CacheType, KVCache
from nanochat_tui.engine.run.paging import KINDS
from nanochat_tui.engine.run.tables import CHUNK
from nanochat_tui.engine.weights.adapters import Adapters, LoraFile
from nanochat_tui.engine.weights.load import Weights, load_weights
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import metadata_string
from nanochat_tui.formats.i2_s_layouts import LAYOUTS, Layout
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.model.chat.families import ChatFormat, chat_format, completes_only
from nanochat_tui.model.chat.prompt import Message, PromptBuilder
from nanochat_tui.model.shards import open_model
from nanochat_tui.model.support import require_runnable
from nanochat_tui.model.tokenizer import TextCodec, load_tokenizer
from nanochat_tui.request import GenerationRequest, SamplingParams, Token, shows_settings
from nanochat_tui.system import default_threads
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Generation", "Model", "load"]

Activations = Literal["int8", "float"]
MAX_THREADS = 256
WORTH_TELLING = 1 << 30
"""Bytes from which on a forecast of memory is shown before loading."""


class Model:
    """A model in memory. Made by `load`; may be used from several threads, which then take turns."""

    def __init__(
        self,
        path: Path,
        config: Architecture,
        codec: TextCodec,
        executor: Executor,
        name: str,
        talk: ChatFormat | None,
        embedding: Convention,
        options: dict[str, Any],
    ) -> None:
        """talk: None for a model that only continues text. options: those of `load` other than `progress`."""
        self.path = path
        self.config = config
        self.codec = codec
        self.executor = executor
        self.kernel = executor.kernel.name
        """Name of the kernel in use, e.g. "avx512-vnni"."""
        self.threads = executor.crew.most
        self.kv: CacheType = executor.kv
        self.speculation: Mode = options["speculation"]
        """Whether new sessions use draft tokens, see `speculation.Speculator`."""
        self.name = name
        self.chat_template = talk.template if talk else None
        """The file's Jinja template or its family's, or None for a model that only continues text."""
        self.thinking = talk.thinking if talk else None
        """The marks around what the model thinks before it answers, if it does."""
        self.context_length = min(options["context"] or config.context_length, config.context_length)
        """Tokens that memory was asked for, prompt and reply together; at most what the model was made for."""
        self.embedding = embedding
        """How its file wants texts to be embedded."""
        self._options = options
        self.grammars = Grammars(codec, config.vocab_size)
        """Makes the rules of replies that follow a grammar."""

    def __repr__(self) -> str:
        return (
            f"<Model {self.name}: {self.config.name}, {self.config.parameters:,} parameters, context "
            f"{self.context_length}, kernel {self.kernel}, {self.threads} threads>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by path: the file is loaded again, with the same options, where the copy is made."""
        return _load_again, (str(self.path.resolve()), self._options)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights read for one decoded token, less what screening the output table spared lately."""
        screening = self.executor.screening
        return self.executor.bytes_per_token - (screening.spared if screening is not None else 0)

    @property
    def prompts(self) -> PromptBuilder:
        """What makes prompts of messages and tells thinking from answer in the replies."""
        return PromptBuilder(self.codec, self.chat_template, self.thinking)

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
        tokens, vocab = self._known_ids(ids, "logits"), self.config.vocab_size
        cache = KVCache(self.config, len(tokens), self.kv)
        out = np.empty((len(tokens), vocab), np.float32)
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            out[start : start + len(part)] = self.executor.logits(cache, part, start)
        return out

    def _known_ids(self, ids: object, what: str) -> NDArray[np.int64]:
        """Return token ids as int64 [n]. Raises UserError for an empty, too long or unknown sequence."""
        limit, vocab = self.config.context_length, self.config.vocab_size
        try:
            tokens = np.array(token_ids("ids", ids), np.int64)
        except OverflowError as error:
            raise UserError(f"a token id is outside the vocabulary of {vocab}") from error
        if not 0 < len(tokens) <= limit:
            raise UserError(f"{what} are computed for 1 to {limit} tokens, not {len(tokens)}")
        if tokens.min() < 0 or tokens.max() >= vocab:
            raise UserError(f"a token id is outside the vocabulary of {vocab}")
        return tokens

    def score(self, text: str | Sequence[int], *, start: int = 1, top: int = 0) -> list[Token]:
        """Return the tokens of a text from place `start` on, each with its natural log-probability after those before.

        text: encoded first, or ids; nothing precedes the first token, so `start` is 1 or more. top: so many of the
        likeliest tokens come with each as `Token.top`, likeliest first. A part of the logits is in memory at a time.
        Raises UserError as `logits` does, and for impossible numbers.
        """
        whole("start", start)
        whole("top", top)
        if start < 1 or top < 0:
            raise UserError("start is 1 or more: nothing precedes the first token; and top is 0 or more")
        ids = self._known_ids(self.encode(text) if isinstance(text, str) else text, "probabilities").tolist()
        scores = Scores(ids, start, top)
        if start < len(ids):
            run_readings(self.executor, [(ids, scores)])
        return scores.tokens(self.codec)

    def embedding_ids(self, text: str | Sequence[int]) -> list[int]:
        """Return the ids of a text to embed: by the model's conventions, with an end token if its file wants one.

        Ids are taken as they are. Raises UserError if there are none, too many or unknown ones.
        """
        ids = text if not isinstance(text, str) else self.encode(text)
        if (
            isinstance(text, str)
            and self.embedding.ends
            and self.codec.eos is not None
            and ids[-1:] != [self.codec.eos]
        ):
            ids = [*ids, self.codec.eos]
        return [int(token) for token in self._known_ids(ids, "embeddings")]

    def embed(
        self,
        texts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        *,
        pooling: Pooling | None = None,
        normalize: bool = True,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return embeddings: of one text (or its ids) float32 [dim], of several float32 [texts, dim], in their order.

        They are made of the states behind the final norm, which the output table reads. pooling: their mean, that of
        the last token or of the first one ("cls"), or "none": the states of all tokens, float32 [tokens, dim] of a
        text, a list of these of several. None is what the file's `pooling_type` says, and the mean if it says
        nothing. normalize: scaled to length 1. Short texts are computed together. Raises UserError for a text that is
        empty or longer than the context.
        """
        wanted = self.embedding.pooling if pooling is None else checked_pooling(pooling)
        single, found = one_or_several(texts)
        ids = [self.embedding_ids(each) for each in found]
        readings = [Embedding(len(each), wanted) for each in ids]
        run_readings(self.executor, list(zip(ids, readings, strict=True)))
        vectors = [reading.vector(normalize=normalize) for reading in readings]
        if single:
            return vectors[0]
        return vectors if wanted == "none" else np.array(vectors, np.float32).reshape(len(vectors), self.config.dim)

    @shows_settings
    def generate(
        self,
        prompt: str | Sequence[int],
        params: GenerationRequest | SamplingParams | None = None,
        *,
        suffix: str | None = None,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> Generation:
        """Return an iterator over the tokens of a continuation; a string is encoded first.

        suffix: the text that follows; the model writes what stands between prompt and suffix, if it has learnt to.
        settings: fields of `GenerationRequest` or `SamplingParams`, over those of `params`. Ends at an end token or
        stop string ("stop"), at max_tokens or the end of the context ("length"), or when `cancel` is set ("cancelled",
        looked at before every token). Raises UserError for a prompt longer than the context or impossible settings,
        ArgumentError for wrong types.
        """
        if suffix is not None:
            if not isinstance(prompt, str) or not isinstance(suffix, str):
                raise ArgumentError("with a suffix, prompt and suffix are both text")
            prompt, _ = self.codec.encode_infill(prompt, suffix)
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        return begin_reply(Session(self), ids, GenerationRequest.of(params, **settings), cancel)

    @shows_settings
    def chat(
        self,
        messages: Sequence[Message],
        params: GenerationRequest | SamplingParams | None = None,
        *,
        enable_thinking: bool | None = None,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> Generation:
        """Return the reply to messages ({"role": "system" | "user" | "assistant", "content": text}, oldest first).

        The model's chat template makes the prompt, in which marks in messages stay text. enable_thinking: for
        templates that ask; None is the template's own default. params, settings: as in `generate`. For a conversation
        of several turns `Chat` keeps what was read.
        Raises UserError if the model has no chat template, the template refuses, or the prompt does not fit.
        """
        ids = prompt_ids(self, messages, enable_thinking=enable_thinking)
        return begin_reply(Session(self), ids, answering(self, GenerationRequest.of(params, **settings), ids), cancel)

    def settle(self) -> None:
        """Wait for what is made during the first replies, so that what follows is measured at full speed."""
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
    adapts: bool | None = None,
    kernel: str | None = None,
    activations: Activations = "int8",
    kv: CacheType = "f16",
    speculation: Mode = "auto",
    context: int | None = None,
    kv_tokens: int | None = None,
    sequences: int = 1,
    i2s_layout: Layout = "x86",
    lora: Sequence[LoraFile] = (),
    progress: Progress | None = None,
) -> Model:
    """Load a GGUF model, of several files if it is split.

    mhc: sidecar that must agree with the file. tokenizer: a tokenizer.json used in place of the one inside.
    threads: None uses every core. adapts: whether fewer run while other programs want the processors; None says so
    of every core, and not of a number. kernel: see `targets.KERNELS`; None is the fastest. activations: "float"
    never rounds them, for comparisons (slower). kv: type of the key-value cache. speculation: use draft tokens
    where that is faster ("auto"), always or never; the reply is the same. context: tokens that memory has to be
    there for, or the model is refused; None asks for room for a short one only, as memory is taken when it is used.
    kv_tokens, sequences: in place of a context, positions of a cache that so many replies will share (see
    `scheduler.Batcher`). i2s_layout: order of codes in I2_S tensors, "arm" or "1x4" if such a machine or build
    quantised them, which no file tells. lora: adapter files that are applied, each with a factor of its scale.
    progress: called with one line before anything that takes seconds, such as compiling kernels on the first start.
    Raises UserError if the file cannot be run, saying why.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"the path of the model is {described(path)} and must be text or a Path")
    for name, count in (("threads", threads), ("context", context), ("kv_tokens", kv_tokens)):
        whole(name, count, optional=True)
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
        shape, codec = require_runnable(file, load_tokenizer(Path(tokenizer)) if tokenizer else None)
        if i2s_layout != "x86":
            file.set_i2_s_layout(i2s_layout)
        if progress:
            for note in shape.notes:
                progress(note)
        as_float = activations == "float"
        if context is not None and context > shape.context_length:
            if progress:
                progress(f"note: the model was made for {shape.context_length} tokens, and so that is the context")
            context = shape.context_length
        asked = context is not None or kv_tokens is not None
        adapters = Adapters(lora, file, shape) if lora else None

        def foretell(kind: CacheType) -> Forecast:
            return forecast(
                file, shape, context, kind, as_float=as_float, kv_tokens=kv_tokens, sequences=sequences,
                added=adapters.nbytes if adapters is not None else 0,
            )  # fmt: skip

        memory = foretell(kv)
        if progress and (asked or memory.total >= WORTH_TELLING):
            progress(str(memory))
        smaller = None if kv == "int8" or memory.fits else foretell("int8")
        what = "key-value cache" if context is None and kv_tokens is not None else "context"
        require_memory(memory, asked=asked, smaller=smaller, what=what)
        shape = replace(shape, unnamed=shape.vocab_size - codec.named_rows(shape.vocab_size))
        sidecar = Path(mhc) if mhc else None
        weights: Weights = load_weights(
            file, shape, as_float=as_float, bias=isa.q8_bias, mhc=sidecar, adapters=adapters
        )
        name = metadata_string(file.metadata, "general.name", file_path.stem)
        talk = chat_format(file.metadata)
        embedding = convention_of(file.metadata)
        assumed = talk.note if talk is not None else completes_only(file.metadata)
    for note in (*codec.notes, *([assumed] if assumed else [])):
        if progress:
            progress(f"note: {note}")
    crew = Crew(threads or default_threads(), adapts=threads is None if adapts is None else adapts)
    executor = Executor(shape, weights, isa, crew, as_float=as_float, kv=kv, progress=progress)
    options = {
        "mhc": None if mhc is None else str(Path(mhc).resolve()),
        "tokenizer": None if tokenizer is None else str(Path(tokenizer).resolve()),
        "threads": threads,
        "adapts": adapts,
        "kernel": kernel,
        "activations": activations,
        "kv": kv,
        "speculation": speculation,
        "context": context,
        "kv_tokens": kv_tokens,
        "sequences": sequences,
        "i2s_layout": i2s_layout,
        "lora": [LoraFile(Path(each.path).resolve(), each.scale) for each in lora],
    }
    return Model(file_path, shape, codec, executor, name, talk, embedding, options)


def _load_again(path: str, options: dict[str, Any]) -> Model:
    return load(path, **options)
