"""`nanochat-tui eval rust`: held-out Rust, completed by a model and judged by parser, compiler, tests and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_tui.cli.evaluation_run import (
    absolute,
    chat_or_raw,
    following,
    kept_folder,
    model_argument,
    open_backend,
    print_found,
    problem_rows,
)
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.rust_items import PARTS, Item, Part, Source, make_items, read_sources, shipped_sources
from nanochat_tui.evaluate.rust_report import PartReport, part_reports, report_lines
from nanochat_tui.evaluate.rust_solving import Asking, infill_problem, wanted_of
from nanochat_tui.evaluate.rustc import compile_errors
from nanochat_tui.evaluate.sandbox.isolation import Isolation, isolation
from nanochat_tui.evaluate.sandbox.limits import Limits
from nanochat_tui.evaluate.solving import Evaluation, Task, work
from nanochat_tui.evaluate.summary import plain
from nanochat_tui.evaluate.toolchains import rustc
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.chat.backend import Backend


@dataclass(frozen=True)
class RustAsked:
    """The command's options."""

    model: str | None
    attach: str | None
    data: Path | None
    parts: Sequence[Part]
    items: int
    samples: int
    temperatures: Sequence[float]
    seed: int
    max_tokens: int
    chat: bool | None
    out: Path | None
    unsafe: bool
    threads: int | None

    def arguments(self, folder: Path) -> list[str]:
        """Return the arguments of `nanochat-tui` that continue it."""
        data = [str(self.data.absolute())] if self.data is not None else []
        options = absolute(
            {
                "--attach": self.attach,
                "--parts": ",".join(self.parts),
                "--items": self.items,
                "--samples": self.samples,
                "--temperatures": ",".join(f"{one:g}" for one in self.temperatures),
                "--seed": self.seed,
                "--max-tokens": self.max_tokens,
                "--chat": self.chat is True,
                "--raw": self.chat is False,
                "--out": folder,
                "--unsafe": self.unsafe,
                "--threads": self.threads,
            }
        )
        return ["eval", "rust", *model_argument(self.model, self.attach), *data, *options]


@dataclass(frozen=True)
class RustFound:
    """What the evaluation of a model found."""

    about: dict[str, Any]
    folder: Path
    reports: list[PartReport]
    missing: int
    left_out: dict[str, str]
    """Parts that could not be asked, with the reason."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for scripts."""
        return {
            **self.about,
            "folder": str(self.folder),
            "parts": [plain(asdict(one)) for one in self.reports],
            "unjudged": self.missing,
            "left_out": self.left_out,
        }


def read_parts(text: str) -> list[Part]:
    """Read `--parts`. Raises UserError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise UserError(f"--parts takes {', '.join(PARTS)}, not {display_safe(unknown[0] if unknown else text)}")
    return [part for part in PARTS if part in names]


def read_temperatures(text: str) -> list[float]:
    """Read `--temperatures`: numbers from 0 to 10, each once, in order. Raises UserError."""
    try:
        found = sorted({float(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = []
    if not found or not all(0 <= one <= 10 for one in found):
        raise UserError(f"--temperatures takes numbers from 0 on, such as 0,0.2,0.8, not {display_safe(text)}")
    return found


def measure(asked: RustAsked, *, as_json: bool, lines: bool = False) -> None:
    """Complete the items, judge the completions and print rates by part and temperature."""
    found = evaluate_rust(asked, lines=lines)
    print_found(found.to_json(), lambda: in_words(found), as_json=as_json, lines=lines)


def evaluate_rust(asked: RustAsked, *, lines: bool = False, backend: Backend | None = None) -> RustFound:
    """Do the evaluation with a model, which is opened and closed unless it is handed in. Raises UserError."""
    kind, compiler = isolation(asked.unsafe), rustc().version  # what is missing is said before an hour of writing
    sources, title = read_held_out(asked.data)
    opened = backend or open_backend(asked.model, asked.attach, asked.threads)
    chat = chat_or_raw(opened, asked.chat)
    parts, left_out = list(asked.parts), dict[str, str]()
    if "infill" in parts and (problem := infill_problem(opened)):
        parts.remove("infill")
        left_out["infill"] = problem
    if not parts:
        raise UserError(f"nothing is left to ask: {left_out['infill']}")
    items = make_items(sources, parts, asked.items, asked.max_tokens, partial(compile_errors, kind=kind))
    asking = Asking(_task(asked, kind, chat=chat), asked.temperatures)
    about = {
        "set": f"Rust of {title}",
        "problems": len(items),
        "model": opened.name,
        "server": opened.kernel if asked.attach is not None else None,
        "parts": parts,
        "samples": asked.samples,
        "temperatures": list(asked.temperatures),
        "top_p": asking.task.request.sampling.top_p,
        "seed": asked.seed,
        "max_tokens": asked.max_tokens,
        "chat": chat,
        "isolation": kind.value,
        "tools": {"rust": compiler},
    }
    folder = kept_folder(asked.out, "rust", opened.name)
    evaluation = Evaluation(folder, about)
    samples = {one: asking.samples(one) for one in asked.temperatures}
    total = len(items) * sum(samples.values())
    evaluation.folder.describe(_rows(items), total)
    with (
        evaluation.folder.hold(asked.arguments(folder), len(evaluation.rows)),
        following(evaluation, total, "rust", lines=lines) as tick,
    ):
        work(evaluation, wanted_of(opened, items, asking), tick)
        reports, missing = part_reports(evaluation.rows, items, samples)
        found = RustFound(about, folder, reports, missing, left_out)
        evaluation.folder.finish(found.to_json())
    if backend is None:
        opened.close()
    return found


def read_held_out(data: Path | None) -> tuple[list[Source], str]:
    """Return held-out Rust files and what to call them: those that come along, plain files, or prepare-data's.

    Raises UserError.
    """
    if data is None:
        return shipped_sources(), "the held-out files that come along"
    if not data.exists():
        raise UserError(f"{display_safe(str(data))} is not there; give Rust files, or leave DATA out")
    if not (data / "dataset.json").is_file():
        return read_sources(data), data.name
    from nanochat_tui.cli.evaluation_text import document_text, load_tokenizer
    from nanochat_tui.evaluate.held_out import open_held_out

    held_out = open_held_out(data)
    named = load_tokenizer(None, held_out)
    texts = [(d.crate, d.path, document_text(d.ids, named, held_out.indentation)) for d in held_out.documents]
    return [Source(*one) for one in texts], data.name


def _task(asked: RustAsked, kind: Isolation, *, chat: bool) -> Task:
    from nanochat_tui.chat.backend import Request
    from nanochat_tui.request import SamplingParams

    sampling = SamplingParams(temperature=0.0, top_k=0, top_p=0.95, seed=asked.seed)
    request = Request(prompt="", max_tokens=asked.max_tokens, sampling=sampling)
    return Task(asked.samples, request, chat, kind, Limits())


def _rows(items: Sequence[Item]) -> list[dict[str, Any]]:
    return problem_rows(
        [item.name for item in items],
        [item.before for item in items],
        suffix=[item.after for item in items],
        reference=[item.reference for item in items],
        language=["rust"] * len(items),
    )


def in_words(found: RustFound) -> str:
    """Say what came of it."""
    about = found.about
    lines = [f"{display_safe(about['set'])}, {display_safe(about['model'])}, {about['tools']['rust']}"]
    if about["isolation"] == Isolation.NONE.value:
        lines.append("warning: compiler and programs ran without isolation")
    lines += report_lines(found.reports)
    lines += [f"{part}: left out, {display_safe(reason)}" for part, reason in found.left_out.items()]
    lines.append("95 % intervals: Wilson, or over items where there are several samples; ± is a standard error")
    if found.missing:
        lines.append(f"{found.missing} completions are missing; run the command again")
    lines.append(f"samples and verdicts: {display_safe(str(found.folder))}")
    return "\n".join(lines)
