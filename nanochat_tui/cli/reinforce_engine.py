"""Rollouts of a reinforcement run from the engine: the weights of each step go into a GGUF file that it loads.

Writing and loading d20 takes about a second, next to half a minute of decoding and training, and what draws is then the
model as people run it: the same file, kernels and roundings as after the export.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.engine.generate.scheduler import Batcher, Stream
from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.export.gguf_export import write_weights
from nanochat_tui.export.start import starting_metadata
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.request import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from nanochat_tui.train.reinforce.rollouts import Completion, Rolled, Weights

SEQUENCES = 16
"""Replies at once, as many as a batcher takes."""


class EngineRollouts:
    """Draws completions with the engine's batched decoding, from the whole distribution at a temperature.

    What ends a reply is a part of it: it is learned, and so its probability must be known. Close it when done.
    """

    def __init__(self, start: Path, *, max_tokens: int, temperature: float, threads: int | None = None) -> None:
        """`start` is the checkpoint or file whose tokenizer and shape the weights have. Raises UserError."""
        self._metadata = starting_metadata(start)
        self._max_tokens, self._temperature, self._threads = max_tokens, temperature, threads
        self._folder = tempfile.TemporaryDirectory(prefix="nanochat-rollouts-")

    def __call__(self, weights: Weights, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> Rolled:
        """Draw one completion of each prompt with these weights. Raises UserError when the disk is full."""
        from nanochat_tui.train.reinforce.rollouts import Rolled

        began = time.perf_counter()
        with self._loaded(weights) as model:
            loaded = time.perf_counter()
            completions = self._draw(model, prompts, seeds)
            return Rolled(completions, loaded - began, time.perf_counter() - loaded)

    @contextmanager
    def _loaded(self, weights: Weights) -> Iterator[Model]:
        path = Path(self._folder.name) / "weights.gguf"
        config = nanochat.from_metadata(self._metadata, weights).with_(nextn=0)
        try:
            write_weights(path, self._metadata, config, dict(weights))
        except OSError as error:
            raise UserError(f"the weights cannot be written for the engine: {plain_reason(error)}") from None
        with load(path, threads=self._threads, speculation="off") as model:
            path.unlink()
            yield model

    def _draw(self, model: Model, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Completion]:
        batcher = Batcher(model, max_sequences=SEQUENCES, max_waiting=len(prompts))
        try:
            streams = [
                batcher.submit(prompt, self._request(model, len(prompt), seed))
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            return [self._read(model, stream) for stream in streams]
        finally:
            batcher.close()

    def _request(self, model: Model, used: int, seed: int) -> GenerationRequest:
        sampling = SamplingParams(temperature=self._temperature, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        room = min(self._max_tokens, model.config.context_length - used)
        return GenerationRequest(sampling=sampling, max_tokens=max(1, room), ignore_eos=True)

    def _read(self, model: Model, stream: Stream) -> Completion:
        from nanochat_tui.train.reinforce.rollouts import Completion

        ids: list[int] = []
        log_probs: list[float] = []
        texts: list[str] = []
        for token in stream:
            assert token.id is not None and token.logprob is not None  # noqa: S101 - an engine's token has both
            ids.append(token.id)
            log_probs.append(token.logprob)
            if token.id in model.codec.end_ids:
                stream.cancel()  # what a burst has drawn behind it is left
                return Completion(ids, log_probs, "".join(texts), truncated=False)
            texts.append(token.text)
        return Completion(ids, log_probs, "".join(texts), truncated=True)

    def close(self) -> None:
        """Remove the temporary folder."""
        self._folder.cleanup()

    def __enter__(self) -> EngineRollouts:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
