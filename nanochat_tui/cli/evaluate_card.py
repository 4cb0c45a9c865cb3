"""`nanochat-tui eval card`: one command from a model and its data to the model's card."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_tui.cli.evaluate_problems import Asked, Solved, evaluate_problems
from nanochat_tui.cli.evaluate_rust import RustAsked, RustFound, evaluate_rust
from nanochat_tui.cli.evaluation import (
    Measured as Opened,
)
from nanochat_tui.cli.evaluation import (
    check_fits,
    documents_to_measure,
    open_model,
    progress,
    whitespace_ids,
)
from nanochat_tui.cli.evaluation_run import kept_folder, open_backend
from nanochat_tui.cli.evaluation_text import load_tokenizer, measure_baselines
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.card import (
    Card,
    count_licences,
    draw_samples,
    render,
    render_without_corpus,
    to_json,
)
from nanochat_tui.evaluate.comparing import compare, compare_parts
from nanochat_tui.evaluate.copies import mark_copies, overlaps, token_sizes, without_copies
from nanochat_tui.evaluate.held_out import Document, HeldOut, choose, open_held_out
from nanochat_tui.evaluate.measured import Compared, Measured, Problems, render_measured, replace_section
from nanochat_tui.evaluate.problems import SetName
from nanochat_tui.evaluate.rust_items import PARTS
from nanochat_tui.evaluate.scoring import Scored, Windows, score_documents
from nanochat_tui.evaluate.solving import read_evaluation
from nanochat_tui.evaluate.summary import Summary, summarise
from nanochat_tui.files import atomic_write_text
from nanochat_tui.runs.directory import RunDirectory, read_json

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

SAMPLE_TOKENS = 256
SETS: tuple[SetName, ...] = ("python", "rust")
"""Sets of problems other than the small ones, which are a part of `eval rust`."""


@dataclass(frozen=True)
class CardAsked:
    """The command's options."""

    model: str
    data: Path | None
    tokens: int | None
    by_file: Path | None
    others: tuple[str, ...]
    run: Path | None
    items: int
    limit: int | None
    temperatures: Sequence[float]
    max_tokens: int
    training_tokens: int
    out: Path | None
    unsafe: bool
    threads: int | None


@dataclass(frozen=True)
class Made:
    """A card as Markdown, its section that needs no corpus, and the figures."""

    text: str
    section: list[str]
    figures: dict[str, Any]


@dataclass(frozen=True)
class _Evaluated:
    """One model on everything that needs no corpus."""

    name: str
    held_out: Summary
    rust: RustFound
    problems: list[Solved]


def make_card(asked: CardAsked) -> Made:
    """Measure and return the card. Raises UserError."""
    opened, model = _open(asked.model, asked.threads)
    training = _training(asked.run) if asked.run is not None else ()
    held_out = open_held_out(asked.data) if asked.data is not None else None
    if held_out is not None:
        check_fits(held_out, opened)
    measured = _measure_without_corpus(asked, opened)
    facts = _facts(model, held_out)
    if held_out is None or asked.data is None:
        text = render_without_corpus(opened.path.stem, facts, measured)
        return Made(text, render_measured(measured), measured.to_json())
    card = _with_corpus(asked, asked.data, held_out, opened, measured, facts, training)
    return Made(render(card), render_measured(measured), to_json(card))


def _open(name: str, threads: int | None) -> tuple[Opened, Model]:
    from nanochat_tui.engine.generate.model import Model

    opened = open_model(name, None, threads)
    if not isinstance(opened.model, Model):
        raise UserError("a card is made of a GGUF file; export the checkpoint first with nanochat-train export")
    return opened, opened.model


def _measure_without_corpus(asked: CardAsked, opened: Opened) -> Measured:
    own = _evaluated(asked, opened)
    others = [_evaluated(asked, _open(name, asked.threads)[0]) for name in asked.others]
    about = own.rust.about
    way = "asked by the chat template" if about["chat"] else "continued as text"
    conditions = (
        f"one sample each, greedy unless a temperature is named, at most {asked.max_tokens} tokens, {way}, "
        f"{about['tools']['rust']}, sandbox {about['isolation']}"
    )
    problems = [Problems(one.title, f"{one.report.problems}", one.report) for one in own.problems]
    return Measured(
        own.name,
        time.strftime("%Y-%m-%d", time.gmtime()),
        conditions,
        own.held_out,
        own.rust.reports,
        own.rust.left_out,
        problems,
        {other.name: other.held_out for other in others},
        [one for other in others for one in _compared(own, other)],
    )


def _evaluated(asked: CardAsked, opened: Opened) -> _Evaluated:
    name = opened.path.stem
    folder = kept_folder(asked.out / name if asked.out is not None else None, "card", name)
    documents, _ = documents_to_measure(opened, None)
    summary = _measure(opened, documents, f"{name}: held-out files")[1]
    backend = open_backend(str(opened.path), None, asked.threads)
    _say(f"{name}: Rust")
    rust = evaluate_rust(
        RustAsked(
            str(opened.path),
            None,
            None,
            tuple(PARTS),
            asked.items,
            1,
            asked.temperatures,
            1,
            asked.max_tokens,
            None,
            folder / "rust",
            asked.unsafe,
            asked.threads,
        ),
        backend=backend,
    )
    solved = []
    for chosen in SETS:
        _say(f"{name}: HumanEval, {chosen}")
        one = Asked(
            str(opened.path),
            None,
            chosen,
            None,
            asked.limit,
            1,
            0.0,
            1,
            asked.max_tokens,
            10.0,
            None,
            folder / f"humaneval-{chosen}",
            asked.unsafe,
            asked.threads,
        )
        solved.append(evaluate_problems(one, backend=backend))
    backend.close()
    return _Evaluated(name, summary, rust, solved)


def _compared(own: _Evaluated, other: _Evaluated) -> list[Compared]:
    """Compare two models, paired by item and temperature; parts of Rust that one could not be asked are left out."""
    own_rows, other_rows = (read_evaluation(one.rust.folder)[1] for one in (own, other))
    parts = compare_parts(own_rows, other_rows, tuple(PARTS))
    found = [Compared(other.name, f"Rust, {part}", comparison) for part, comparison in parts]
    for a, b in zip(own.problems, other.problems, strict=True):
        rows = [read_evaluation(one.folder)[1] for one in (a, b)]
        found.append(Compared(other.name, a.title, compare(*rows)))
    return found


def _with_corpus(
    asked: CardAsked,
    data: Path,
    held_out: HeldOut,
    opened: Opened,
    measured: Measured,
    facts: Sequence[tuple[str, str]],
    training: Sequence[tuple[str, str]],
) -> Card:
    from nanochat_tui.engine.generate.model import load

    named = load_tokenizer(None, held_out)
    documents = choose(held_out.documents, asked.tokens)
    licences = count_licences(data)
    _say("overlap with training text")
    covered = overlaps(data, held_out)
    copies = mark_copies(held_out, documents)
    scored, summary = _measure(opened, documents, "held-out crates")
    sizes = token_sizes(opened.tokenizer, opened.vocab_size, held_out.indentation)
    _say("samples")
    with load(opened.path, threads=asked.threads) as used:  # as people run it, so that anyone can draw the same
        samples = draw_samples(used, held_out, SAMPLE_TOKENS)
    _say("baselines")
    found, _ = measure_baselines(held_out, documents, named, asked.training_tokens)
    return Card(
        name=opened.path.stem,
        facts=facts,
        held_out=summary,
        without=without_copies(scored, copies, sizes),
        crates_in_all=len({document.crate for document in held_out.documents}),
        by_file=_by_file(opened, asked.by_file, asked.tokens) if asked.by_file is not None else None,
        others={other: _other(other, documents, held_out, asked.threads) for other in asked.others},
        baselines=found,
        overlaps=covered[1:],
        measured=measured,
        samples=samples,
        sampling=f"temperature 0.8, top-k 40, top-p 0.95, at most {SAMPLE_TOKENS} tokens",
        licences=licences,
        training=training,
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _measure(measured: Opened, documents: Sequence[Document], label: str) -> tuple[list[Scored], Summary]:
    windows = Windows(measured.context, measured.context)
    with progress(label, sum(max(0, len(document.ids) - 1) for document in documents)) as tick:
        scored = score_documents(measured.model, documents, windows, tick)
    return scored, summarise(scored, windows.name, whitespace_ids(measured.tokenizer, measured.vocab_size))


def _by_file(measured: Opened, folder: Path, tokens: int | None) -> Summary:
    held_out = open_held_out(folder)
    check_fits(held_out, measured)
    return _measure(measured, choose(held_out.documents, tokens), "held-out files")[1]


def _other(name: str, documents: Sequence[Document], held_out: HeldOut, threads: int | None) -> Summary:
    other = open_model(name, None, threads)
    check_fits(held_out, other)
    return _measure(other, documents, Path(name).name)[1]


def _facts(model: Model, held_out: HeldOut | None) -> list[tuple[str, str]]:
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
    if held_out is not None and held_out.train is not None:
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


def write_card(path: Path | None, made: Made) -> None:
    """Write the card to a file, or print it; of a file that has the command's marks only what is between them changes.

    Raises UserError if the marks are damaged.
    """
    if path is None:
        print(made.text)
        return
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = replace_section(old, made.section) or made.text
    atomic_write_text(path, text if text.endswith("\n") else text + "\n")
