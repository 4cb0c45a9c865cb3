"""What the commands of `nanochat-tui eval` share: the model, the documents, and the progress line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import check_threads, find_model
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from nanochat_tui.evaluate.held_out import Document, HeldOut
    from nanochat_tui.evaluate.scoring import LogitsModel


@dataclass(frozen=True)
class Measured:
    """A model ready to be measured."""

    path: Path
    model: LogitsModel
    tokenizer: Tokenizer
    context: int
    vocab_size: int
    kind: str
    """"GGUF" or "checkpoint"."""


def open_model(given: str | None, tokenizer: Path | None, threads: int | None) -> Measured:
    """Open a GGUF file on the engine, or a checkpoint folder of the trainer in PyTorch.

    Raises:
        UserError: there is no such model, or PyTorch is missing for a checkpoint.
    """
    check_threads(threads)
    folder = Path(given) if given is not None else None
    if folder is not None and (folder / "state.json").is_file():
        return _open_checkpoint(folder, tokenizer, threads)
    path = find_model(given)
    from nanochat_tui.engine.generate.model import load

    # the cache as the trainer has it, so that both kinds of model agree
    model = load(path, tokenizer=tokenizer, threads=threads, kv="f32")
    return Measured(path, model, model.tokenizer, model.config.context_length, model.config.vocab_size, "GGUF")


def _open_checkpoint(folder: Path, tokenizer: Path | None, threads: int | None) -> Measured:
    try:
        import torch
    except ImportError:
        raise UserError("measuring a checkpoint needs PyTorch; pip install 'nanochat-tui[train]'") from None
    from tokenizers import Tokenizer

    from nanochat_tui.export.checkpoint import TERNARY
    from nanochat_tui.model.config import ModelConfig
    from nanochat_tui.model.shipped import shipped_tokenizer
    from nanochat_tui.train.checkpoint import load_checkpoint
    from nanochat_tui.train.model import NanochatModel

    if threads is not None:
        torch.set_num_threads(threads)
    weights, _, state = load_checkpoint(folder)
    try:
        shape = ModelConfig(**state["model"])
        network = NanochatModel(shape)
        network.use_ternary(bool(state.get(TERNARY, True)))
        network.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"the checkpoint {display_safe(str(folder))} cannot be read: {error}") from None
    named = tokenizer or shipped_tokenizer()
    if named is None or not named.is_file():
        raise UserError("no tokenizer is known for the checkpoint; give one with --tokenizer")

    class Network:
        @torch.no_grad()
        def logits(self, ids: NDArray[np.int64], /) -> NDArray[np.float32]:
            found: NDArray[np.float32] = network.logits(torch.from_numpy(ids)[None])[0].numpy()
            return found

    return Measured(
        folder, Network(), Tokenizer.from_file(str(named)), shape.context_length, shape.vocab_size, "checkpoint"
    )


def whitespace_ids(tokenizer: Tokenizer, vocab: int) -> NDArray[np.bool_]:
    """Mark the ids whose text is white space alone, bool [vocab]."""
    known = min(vocab, tokenizer.get_vocab_size())
    texts = tokenizer.decode_batch([[i] for i in range(known)], skip_special_tokens=False)
    flags = np.zeros(vocab, bool)
    flags[:known] = [bool(text) and text.isspace() for text in texts]
    return flags


def check_fits(held_out: HeldOut, measured: Measured) -> None:
    """Raise `UserError` if the data was made with ids the model does not have."""
    if held_out.vocab_size > measured.vocab_size:
        raise UserError(
            f"the data was tokenised with {held_out.vocab_size:,} ids, the model has {measured.vocab_size:,}; "
            "prepare it with the model's tokenizer"
        )


def documents_to_measure(measured: Measured, data: Path | None) -> tuple[list[Document], HeldOut | None]:
    """Return held-out documents: those of a folder that prepare-data wrote, with it, or Rust files, by default those
    that come along.

    Raises:
        UserError: the data cannot be read, was made for another vocabulary, or is plain text for a checkpoint, which
            does not say how text becomes its ids.
    """
    from nanochat_tui.evaluate.held_out import Document, open_held_out
    from nanochat_tui.evaluate.rust_items import read_sources, shipped_sources

    if data is not None and (not data.exists() or (data / "dataset.json").is_file()):
        held_out = open_held_out(data)
        check_fits(held_out, measured)
        return list(held_out.documents), held_out
    sources = shipped_sources() if data is None else read_sources(data)
    from nanochat_tui.engine.generate.model import Model

    model = measured.model
    if not isinstance(model, Model):
        raise UserError("a checkpoint is measured on a folder made by nanochat-train prepare-data; name one as DATA")
    codec = model.codec
    first = [codec.bos] if codec.bos is not None else sorted(codec.end_ids)[:1]
    documents = []
    for source in sources:
        ids = np.array([*first, *codec.encode(source.text, bos=False)], np.int64)
        documents.append(Document(ids, len(source.text.encode()), source.path, source.path))
    return documents, None


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr; the function given back takes what is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


def figure(value: float, error: float, digits: int = 4) -> str:
    """Write a value with its standard error, where one is known."""
    return f"{value:.{digits}f}" if math.isnan(error) else f"{value:.{digits}f} ± {error:.{digits}f}"


def print_json(value: Mapping[str, Any]) -> None:
    """Print an object for scripts."""
    import typer

    typer.echo(json_text(value))
