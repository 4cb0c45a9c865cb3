"""`nanochat-tui eval card`: one command from a model and its data to the model's card."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_tui.cli.evaluate_rust import complete_functions, in_words
from nanochat_tui.cli.evaluation import Measured, check_fits, open_model, progress, whitespace_ids
from nanochat_tui.cli.evaluation_text import load_tokenizer, measure_baselines
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.card import Card, count_licences, draw_samples, render, to_json
from nanochat_tui.evaluate.copies import mark_copies, overlaps, token_sizes, without_copies
from nanochat_tui.evaluate.held_out import Document, HeldOut, choose, open_held_out
from nanochat_tui.evaluate.scoring import Scored, Windows, score_documents
from nanochat_tui.evaluate.summary import Summary, summarise
from nanochat_tui.files import atomic_write_text
from nanochat_tui.runs.directory import RunDirectory, read_json

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

SAMPLE_TOKENS = 256
FUNCTION_TOKENS = 128


def make_card(
    name: str,
    data: Path,
    *,
    tokens: int | None,
    by_file: Path | None,
    others: Sequence[str],
    run: Path | None,
    functions: int,
    training_tokens: int,
    threads: int | None,
) -> tuple[str, dict[str, Any]]:
    """Measure and return the card as Markdown, and its figures. Raises UserError."""
    from nanochat_tui.engine.generate.model import Model, load

    measured = open_model(name, None, threads)
    model = measured.model
    if not isinstance(model, Model):
        raise UserError("a card is made of a GGUF file; export the checkpoint first with nanochat-train export")
    held_out = open_held_out(data)
    check_fits(held_out, measured)
    named = load_tokenizer(None, held_out)
    documents = choose(held_out.documents, tokens)
    training = _training(run) if run is not None else ()
    licences = count_licences(data)
    _say("overlap with training text")
    covered = overlaps(data, held_out)
    copies = mark_copies(held_out, documents)
    scored, summary = _measure(measured, documents, "held-out crates")
    sizes = token_sizes(measured.tokenizer, measured.vocab_size, held_out.indentation)
    _say("samples")
    with load(measured.path, threads=threads) as used:  # as people run it, so that anyone can draw the same
        samples = draw_samples(used, held_out, SAMPLE_TOKENS)
    completed, _ = complete_functions(measured, held_out, named, functions, FUNCTION_TOKENS)
    _say("baselines")
    found, _ = measure_baselines(held_out, documents, named, training_tokens)
    card = Card(
        name=measured.path.stem,
        facts=_facts(model, held_out),
        held_out=summary,
        without=without_copies(scored, copies, sizes),
        crates_in_all=len({document.crate for document in held_out.documents}),
        by_file=_by_file(measured, by_file, tokens) if by_file is not None else None,
        others={other: _other(other, documents, held_out, threads) for other in others},
        baselines=found,
        overlaps=covered[1:],
        functions=in_words(completed),
        samples=samples,
        sampling=f"temperature 0.8, top-k 40, top-p 0.95, at most {SAMPLE_TOKENS} tokens",
        licences=licences,
        training=training,
    )
    return render(card), to_json(card)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _measure(measured: Measured, documents: Sequence[Document], label: str) -> tuple[list[Scored], Summary]:
    windows = Windows(measured.context, measured.context)
    with progress(label, sum(max(0, len(document.ids) - 1) for document in documents)) as tick:
        scored = score_documents(measured.model, documents, windows, tick)
    return scored, summarise(scored, windows.name, whitespace_ids(measured.tokenizer, measured.vocab_size))


def _by_file(measured: Measured, folder: Path, tokens: int | None) -> Summary:
    held_out = open_held_out(folder)
    check_fits(held_out, measured)
    return _measure(measured, choose(held_out.documents, tokens), "held-out files")[1]


def _other(name: str, documents: Sequence[Document], held_out: HeldOut, threads: int | None) -> Summary:
    other = open_model(name, None, threads)
    check_fits(held_out, other)
    return _measure(other, documents, Path(name).name)[1]


def _facts(model: Model, held_out: HeldOut) -> list[tuple[str, str]]:
    shape = model.config
    facts = [
        ("parameters", f"{shape.parameters:,}"),
        ("file", f"{model.path.name}, {model.path.stat().st_size:,} bytes"),
        ("context", f"{shape.context_length} tokens"),
        ("vocabulary", f"{shape.vocab_size:,}"),
    ]
    if model.codec.indentation:
        facts.append(("text", f"leading groups of {model.codec.indentation} spaces are tabs inside the model"))
    facts.append(("fills in the middle", "yes" if model.codec.infill is not None else "no"))
    if held_out.train is not None:
        facts.append(("data", f"{len(held_out.train):,} training tokens, {held_out.size:,} held-out bytes"))
    return [*facts, ("measured", time.strftime("%Y-%m-%d", time.gmtime()))]


def _training(path: Path) -> list[tuple[str, str]]:
    """What a run's own files say of it."""
    run = RunDirectory(path)
    record, checkpoints = run.config(), run.checkpoints()
    if not checkpoints:
        raise UserError("the run has no checkpoint yet; leave --run out")
    state, config, where = read_json(checkpoints[-1] / "state.json"), record["config"], record["environment"]
    seconds = max(1e-9, float(state["seconds"]))
    return [
        ("steps, tokens", f"{state['step']:,}, {state['tokens']:,}"),
        ("time", f"{seconds / 3600:.2f} h, {state['tokens'] / seconds:,.0f} tokens/s"),
        ("hardware", f"{where['device_name']}, {where['threads']} threads, {where['dtype']}, PyTorch {where['torch']}"),
        ("learning rates", f"Muon {config['muon_lr']}, table {config['embed_lr']}, scalars {config['scalar_lr']}"),
        ("decay", f"linear to zero over the last {config['decay_fraction']:.0%}"),
    ]


def write_card(path: Path | None, text: str) -> None:
    """Write the card to a file, or print it."""
    if path is None:
        print(text)
    else:
        atomic_write_text(path, text if text.endswith("\n") else text + "\n")
