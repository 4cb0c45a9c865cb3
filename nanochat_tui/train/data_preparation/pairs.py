"""Instruction pairs for fine-tuning, made of Rust functions: a request from comment and signature, the function.

A function is kept only if it compiles alone. Functions of held-out crates make up val.jsonl; no function of the same
text, or of the same name and parameters, is in train.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.rust_functions import RustFunction, free_functions, rust_parser
from nanochat_tui.evaluate.rustc import compile_errors
from nanochat_tui.evaluate.sandbox.isolation import isolation
from nanochat_tui.evaluate.toolchains import rustc
from nanochat_tui.files import atomic_folder
from nanochat_tui.train.data_preparation import filters
from nanochat_tui.train.data_preparation.crates import find_crate, plain_name
from nanochat_tui.train.data_preparation.licences import file_licence
from nanochat_tui.train.data_preparation.options import PrepareOptions, Progress, ProgressCallback
from nanochat_tui.train.data_preparation.output import check_output
from nanochat_tui.train.data_preparation.pipeline import find_sources, text_rules
from nanochat_tui.train.data_preparation.sources import FileRef, Source, in_skipped_folder, list_files
from nanochat_tui.train.data_preparation.split import path_fraction
from nanochat_tui.train.data_preparation.standalone import cannot_stand_alone

MOST_OF_CRATE = 300
"""Functions of one crate, so that generated ones do not fill the data."""
DESCRIPTION = "pairs.json"


@dataclass
class PairsReport:
    """What was written: numbers of functions."""

    output: Path
    files: int = 0
    functions: int = 0
    asked: int = 0
    """Distinct ones given to the compiler."""
    compiled: int = 0
    train: int = 0
    val: int = 0
    licences: dict[str, int] = field(default_factory=dict)
    crates: int = 0
    rustc: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    function: RustFunction
    crate: str
    licence: str
    held_out: bool

    @property
    def answer(self) -> str:
        """What the model is to write: declarations the function needs, then the function."""
        uses = "\n".join(self.function.uses)
        return f"{uses}\n\n{self.function.source}\n" if uses else f"{self.function.source}\n"


def prepare_pairs(options: PrepareOptions, progress: ProgressCallback | None = None) -> PairsReport:
    """Write train.jsonl, val.jsonl and pairs.json to `options.output`, all or nothing.

    Each line is {"prompt", "completion", "crate", "licence"}. Without `hold_out`, `validation_fraction` of the crates
    is held out, by a hash of their names. Raises UserError without rustc, tree-sitter or any function.
    """
    show = progress or (lambda _: None)
    compiler = rustc().version
    rust_parser()
    options.check()
    check_output(options.output, options.overwrite, DESCRIPTION)
    sources = find_sources(options)
    report = PairsReport(options.output, rustc=compiler)
    found = _limited(_distinct(_collect(options, sources, report, show)))
    report.asked = len(found)
    # the text of other people's crates: in the sandbox where one works; it is only looked at, never run
    errors = compile_errors(
        [one.answer for one in found],
        isolation(unsafe=True),
        lambda done, total: show(Progress("compiling", done, total)),
    )
    kept = [one for one, error in zip(found, errors, strict=True) if not error]
    report.compiled = len(kept)
    held = [one for one in kept if one.held_out]
    known = {_call(one.function) for one in held}
    train = [one for one in kept if not one.held_out and _call(one.function) not in known]
    if not train:
        raise UserError("no function compiles alone; name folders with more Rust code")
    report.train, report.val = len(train), len(held)
    report.crates = len({one.crate for one in train})
    for one in kept:
        report.licences[one.licence] = report.licences.get(one.licence, 0) + 1
    with atomic_folder(options.output) as folder:
        for name, part in (("train", train), ("val", held)):
            ordered = sorted(part, key=lambda one: path_fraction(one.answer, f"order-{options.seed}"))
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for one in ordered for row in _rows(one, name))
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / DESCRIPTION).write_text(json.dumps(_json(report), indent=1) + "\n", encoding="utf-8")
    return report


def _json(report: PairsReport) -> dict[str, Any]:
    licences = dict(sorted(report.licences.items(), key=lambda item: (-item[1], item[0])))
    return {"kind": "rustdoc"} | asdict(report) | {"output": str(report.output), "licences": licences}


def _collect(
    options: PrepareOptions, sources: Sequence[Source], report: PairsReport, show: ProgressCallback
) -> Iterable[_Found]:
    hold_out = {plain_name(name) for name in options.hold_out}
    rules = text_rules(options, {options.eot_token})
    refs = [ref for i, source in enumerate(sources) for ref in list_files(i, source, options.extensions)]
    for done, ref in enumerate(refs, 1):
        show(Progress("reading", done, len(refs)))
        source = sources[ref.source]
        text, licence = _permitted(ref, source, options, rules)
        if text is None:
            continue
        report.files += 1
        crate = find_crate(source.folder, PurePosixPath(ref.path).parent, source.name).name
        held = crate in hold_out if hold_out else path_fraction(crate, "held-out") < options.validation_fraction
        for function in free_functions(text):
            report.functions += 1
            if not cannot_stand_alone(function):
                yield _Found(function, crate, licence, held)


def _permitted(
    ref: FileRef, source: Source, options: PrepareOptions, rules: filters.TextRules
) -> tuple[str | None, str]:
    """The text of a file that may be used, else None; and its licence."""
    if in_skipped_folder(ref.path, options.skip_folders) or filters.check_size(ref.size, rules) is not None:
        return None, ""
    data = (source.folder / ref.path).read_bytes()
    head = data[:1000].decode("utf-8", "replace")
    licence = file_licence(source.folder, ref.path, head, source.copyright, source.licence)
    refused = (licence.known and not licence.permissive) or (not licence.known and options.require_licence)
    text = filters.decode(data)
    if text is None or (refused and not options.any_licence) or filters.check_text(text, rules) is not None:
        return None, licence.name
    return text, licence.name


def _distinct(found: Iterable[_Found]) -> list[_Found]:
    """One of each text, white space aside, held-out ones first; with a comment rather than without."""
    kept: dict[str, _Found] = {}
    for one in found:
        key = "".join(one.function.source.split())
        before = kept.get(key)
        better = before is None or (one.held_out, bool(one.function.documentation)) > (
            before.held_out,
            bool(before.function.documentation),
        )
        if better:
            kept[key] = one
    return sorted(kept.values(), key=lambda one: (one.crate, one.answer))


def _limited(found: Iterable[_Found]) -> list[_Found]:
    """At most `MOST_OF_CRATE` of each crate, chosen by a hash."""
    used: dict[str, int] = {}
    kept = []
    for one in sorted(found, key=lambda one: path_fraction(one.answer, "limit")):
        used[one.crate] = used.get(one.crate, 0) + 1
        if used[one.crate] <= MOST_OF_CRATE:
            kept.append(one)
    return kept


def _call(function: RustFunction) -> tuple[str, tuple[tuple[str, str], ...]]:
    return function.name, function.parameters


def _rows(one: _Found, part: str) -> list[dict[str, str]]:
    """One row of a held-out function; of another as many as there are ways to ask that suit it, two at most."""
    requests = request_texts(one.function, vague=part == "train")
    return [
        {"prompt": text, "completion": one.answer, "crate": one.crate, "licence": one.licence}
        for text in requests[: 1 if part == "val" else 2]
    ]


def summary_of(documentation: str) -> str:
    """The first paragraph of a documentation comment as plain text of at most 200 characters; "" for none."""
    paragraph = documentation.strip().split("\n\n")[0]
    if paragraph.startswith(("#", "```", "|", "-", "*")):
        return ""
    text = " ".join(paragraph.split("```")[0].split())
    text = re.sub(r"\[(`?[^\]`]+`?)\](\([^)]*\)|\[[^\]]*\])?", r"\1", text)
    if len(text) > 200:
        text = text[:200].rpartition(". ")[0]
    return text if not text or text.endswith((".", "!", "?", ":")) else text + "."


def request_texts(function: RustFunction, *, vague: bool = False) -> list[str]:
    """Ways to ask for a function, in an order that depends on its text.

    All name the function and its parameters, but with `vague` in a few cases the first, which only describes it or
    asks for any function.
    """
    about = summary_of(function.documentation)
    given = [f"`{name}: {kind}`" for name, kind in function.parameters]
    taking = f" that takes {', '.join(given)}" if given else " without parameters"
    returning = f" and returns `{function.returns}`" if function.returns else ""
    tail = f" {about}" if about else ""
    call = function.signature.removeprefix("const ").removeprefix("fn ")
    ways = [
        f"Write a Rust function `{function.signature}`.{tail}",
        f"Write a Rust function named `{function.name}`{taking}{returning}.{tail}",
        f"Implement this function in Rust: `{function.signature}`{tail}",
        f"{about or 'Complete this function.'}\n{function.signature}",
        f"Write a function `{call}` in Rust.{tail}",
    ]
    draw = hashlib.sha256(function.source.encode()).digest()
    start = draw[0] % len(ways)
    ordered = ways[start:] + ways[:start]
    if vague and draw[1] < 16 and about:
        ordered.insert(0, f"Write a Rust function. {about}")
    elif vague and draw[1] >= 246:
        ordered.insert(0, "Write a Rust function")
    return ordered
