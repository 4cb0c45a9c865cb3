"""What the commands share that let a model write and judge it: the backend, the kept folder, the progress."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_tui.cli.evaluation import progress
from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import FileOptions, find_model
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.solving import Evaluation
from nanochat_tui.paths import evaluations_directory

if TYPE_CHECKING:
    from nanochat_tui.chat.backend import Backend

_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []
"""Folders of exported checkpoints, which go with the process."""


def open_backend(model: str | None, attach: str | None, threads: int | None, *, chat: bool = False) -> Backend:
    """Return a loaded model: a file on the engine, a checkpoint as the file it is exported to, or a server's.

    Raises UserError.
    """
    from nanochat_tui.cli.narration import Narration

    files = FileOptions(None, None, threads, None, None, None, None, None)
    backend: Backend
    if attach is not None:
        from nanochat_tui.chat.remote import RemoteBackend

        files.refuse_with_server()
        backend = RemoteBackend(attach, model)
    elif model is not None and (Path(model) / "state.json").is_file():
        backend = files.backend(_exported(Path(model)))
    else:
        backend = files.backend(find_model(model, chat=chat))
    with Narration() as narrate:
        backend.load(narrate)
    return backend


def _exported(checkpoint: Path) -> Path:
    """Return a file that computes what a checkpoint does: export is exact."""
    from nanochat_tui.export import export_model, tokenizer_for

    folder = tempfile.TemporaryDirectory(prefix="nanochat-eval-")
    _TEMPORARY.append(folder)
    place = checkpoint.resolve()
    gguf = Path(folder.name) / f"{place.parent.name}-{place.name}.gguf"
    vocabulary, _ = tokenizer_for(checkpoint, None)
    export_model(checkpoint, gguf, gguf.with_suffix(".mhc"), vocabulary)
    return gguf


def kept_folder(out: Path | None, which: str, model: str) -> Path:
    """Return the folder of an evaluation: the one asked for, or that of its name among the user's data."""
    if out is not None:
        return out
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in f"{which}-{model}")
    return evaluations_directory() / (kept.strip(".") or which)


def chat_or_raw(backend: Backend, chat: bool | None) -> bool:
    """Return whether a model is asked as a chat model. Raises UserError if it is none."""
    if chat and not backend.is_chat:
        raise UserError("this model has no chat template; leave --chat out")
    return backend.is_chat if chat is None else chat


def absolute(words: Mapping[str, Any]) -> list[str]:
    """Return options as arguments that mean the same in any folder: those that are None or False are left out."""
    found: list[str] = []
    for option, value in words.items():
        if value is None or value is False:
            continue
        found.append(option)
        if value is not True:
            found.append(str(value.absolute()) if isinstance(value, Path) else str(value))
    return found


def model_argument(model: str | None, attach: str | None) -> list[str]:
    """Return MODEL as an argument that means the same in any folder."""
    if model is None:
        return []
    return [model if attach is not None else str(Path(model).absolute())]


@contextmanager
def following(evaluation: Evaluation, total: int, label: str, *, lines: bool) -> Iterator[Callable[[int], None]]:
    """Show how far an evaluation is: a bar on stderr, or with `lines` a JSON object on stdout for each completion."""
    if not lines:
        with progress(label, total) as tick:
            yield tick
        return
    told = len(evaluation.rows)

    def tell(done: int) -> None:
        nonlocal told
        passed = sum(row.verdict == "passed" for row in evaluation.rows)
        for row in evaluation.rows[told:]:
            event = {"event": "sample", "done": done, "total": total, "passed": passed, **asdict(row)}
            print(json_text(event, indent=None), flush=True)
        told = len(evaluation.rows)

    first = {"event": "started", "done": told, "total": total, "folder": str(evaluation.folder.path)}
    print(json_text(first, indent=None), flush=True)
    yield tell


def print_found(answer: Mapping[str, Any], words: Callable[[], str], *, as_json: bool, lines: bool) -> None:
    """Print what was found: the last JSON line, an object, or words."""
    if lines:
        print(json_text({"event": "finished", **answer}, indent=None), flush=True)
    else:
        print(json_text(answer) if as_json else words())


def problem_rows(names: Sequence[str], prompts: Sequence[str], **more: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what was asked, as problems.jsonl holds it."""
    columns = {"problem": names, "prompt": prompts, **more}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
