"""Models of the published shapes next to llama.cpp: tokens per second and resident memory, as one table.

    python benchmarks/shapes.py [--cases bonsai-1.7b,…] [--folder DIR] [--threads 2] [--under CMD] [--json FILE]

Every model is synthetic: the widths, types and vocabulary of the published file, random weights. It is written once
into the folder and loaded once, so that kernels are compiled; then each measurement is a process of its own of
less than a minute, in which both engines take turns on the same file. --under puts a command before each, such as one
that keeps other programs away. --keep leaves the files in the folder. What llama.cpp cannot load is said.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models import SHAPES, Shape, write_model

from nanochat_tui.bench.measure import Engine, Plan, Result, measure
from nanochat_tui.bench.peer import PEER, peer_version
from nanochat_tui.bench.worker import OURS, Worker
from nanochat_tui.errors import UserError

Found = dict[str, Any]
PROMPT = 128
"""Tokens that are read."""
SECONDS = 60
"""Longest measurement; what takes longer is left out and said."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a published file by what it is called, a shape, its types where they are not the shape's own.

    short: tokens of a further prompt, short enough for llama.cpp to read where PROMPT takes it minutes; 0: none.
    context: tokens that decoding begins behind. peer: whether llama.cpp may know the file's types at all.
    """

    title: str
    shape: str
    ternary: str | None = None
    table: str | None = None
    architecture: str | None = None
    short: int = 0
    context: int = 16
    peer: bool = True

    def made(self) -> Shape:
        """Return the shape with this row's types."""
        base = SHAPES[self.shape]
        return replace(
            base,
            ternary=self.ternary or base.ternary,
            table=self.table or base.table,
            architecture=self.architecture or base.architecture,
        )


CASES = {
    "bonsai-1.7b": Case("Bonsai 1.7B, Q2_0", "bonsai-1.7b", short=32),
    "bonsai-1.7b-g128": Case("Bonsai 1.7B, Q2_0 of 128", "bonsai-1.7b", "Q2_0_g128", "Q2_0_g128", peer=False),
    "bonsai-4b": Case("Bonsai 4B, Q2_0", "bonsai-4b", short=16, context=4),
    "bonsai-8b": Case("Bonsai 8B, Q2_0", "bonsai-8b", short=8, context=4),
    "bonsai-2-2b": Case("Bonsai 2 2B, PTQ1_0, rotated", "bonsai-2-2b", peer=False),
    "bonsai-2-4b": Case("Bonsai 2 4B, PTQ1_0, rotated", "bonsai-2-4b", context=4, peer=False),
    "2b4t": Case("BitNet 2B4T, TQ2_0, Q6_K head", "2b4t"),
    "2b4t-i2_s": Case("BitNet 2B4T, I2_S, F16 head", "2b4t", "I2_S", "F16", architecture="bitnet-b1.58", peer=False),
    "maple": Case("Maple 20B-A1B, TQ2_0, Q4_K head", "maple"),
    "d20": Case("d20 without mHC, TQ2_0", "d20-llama"),
}
DEFAULT = [name for name in CASES if name not in ("maple", "d20")]
"""Without what takes 8 GB or more of memory, and without d20, which shows in seconds that all works."""


def path_of(name: str, folder: Path) -> Path:
    """Return where a case's model lies."""
    return folder / f"{name}.gguf"


def prepare(name: str, folder: Path, threads: int) -> None:
    """Write a case's model if it is not there, and load it once, which compiles its kernels."""
    path = path_of(name, folder)
    if not path.exists():
        _say(f"writing {path.name}")
        write_model(path, CASES[name].made())
    _say(f"loading {path.name} once")
    Worker(OURS, path, threads).close()


def run_part(name: str, kind: str, folder: Path, threads: int) -> Result:
    """Measure prompts or decoding of one case. Raises UserError if a file does not load."""
    case = CASES[name]
    engines = [Engine(OURS, path_of(name, folder))]
    if case.peer:
        engines.append(Engine(PEER, path_of(name, folder)))
    decodes = kind == "decode"
    plan = Plan(
        threads=(threads,),
        prompts=() if decodes else (PROMPT, *((case.short,) if case.short else ())),
        contexts=(case.context,) if decodes else (),
        tokens=64,
        repeats=3 if decodes and not case.short else 2,
        seconds=3.0,
        limit=SECONDS / 4,
    )
    return measure(engines, plan, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measured(name: str, kind: str, options: argparse.Namespace) -> Found:
    """Run one part in a process of its own and return its result as JSON values, or {"error": why}."""
    command = [
        *shlex.split(options.under), sys.executable, __file__, "--part", f"{name}:{kind}",
        "--folder", str(options.folder), "--threads", str(options.threads),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=10 * SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": "it did not end"}
    if done.returncode:
        return {"error": f"it ended with code {done.returncode}"}
    found: Found = json.loads(done.stdout)
    return found


def refusal(name: str, folder: Path) -> str | None:
    """Return llama.cpp's complaint about a case's file, or None if it loads it."""
    try:
        Worker(PEER, path_of(name, folder), 1, positions=64).close()
    except UserError as error:
        return str(error)
    return None


def speed(found: Found, engine: str, tokens: int = 0) -> float | None:
    """Return an engine's median tokens per second of the first run in a part, or of that of so many tokens, or None."""
    rows = (row for row in found.get("rows", []) if row["engine"] == engine and tokens in (0, row["tokens"]))
    return next((float(row["tps"]) for row in rows), None)


def resident(found: Found, engine: str) -> float | None:
    """Return an engine's resident memory in GB after loading and a few tokens, or None."""
    return next((one["rss_bytes"] / 1e9 for one in found.get("loaded", []) if one["engine"] == engine), None)


HEAD = ("model", "file", "decode tok/s", "llama.cpp", "", "prompt tok/s", "llama.cpp", "", "resident", "llama.cpp")


def as_markdown(cases: dict[str, Found], threads: int) -> str:
    """Return the table: ours first, then llama.cpp's and how many times faster ours is."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
    notes = []
    for name, found in cases.items():
        cells = [CASES[name].title, f"{found['file_bytes'] / 1e9:.2f} GB"]
        cells += _compared(speed(found["decode"], OURS), speed(found["decode"], PEER))
        ours, theirs, short = (
            speed(found["prompt"], OURS, PROMPT),
            speed(found["prompt"], PEER, PROMPT),
            CASES[name].short,
        )
        if theirs is None and short:  # compared at a size that both can read
            beside = _compared(speed(found["prompt"], OURS, short), speed(found["prompt"], PEER, short))
            cells += [_number(ours), f"{beside[1]} (of {short})", beside[2]]
        else:
            cells += _compared(ours, theirs)
        cells += [_size(resident(found["decode"], engine)) for engine in (OURS, PEER)]
        lines.append("| " + " | ".join(cells) + " |")
        parts = [found["decode"], found["prompt"]]
        problems = [found.get("refused"), *(part.get("error") for part in parts)]
        if not CASES[name].short:
            problems += [sentence for part in parts for sentence in part.get("skipped", [])]
        notes += [f"- {CASES[name].title}: {problem}" for problem in problems if problem]
    plural = "s" if threads > 1 else ""
    lines += [
        "",
        f"{threads} thread{plural}; medians; prompts of {PROMPT} tokens, or of so many as are said in brackets: then",
    ]
    lines[-1] += " the ratio is of prompts of that length on both sides; decoding behind 4 or 16 tokens."
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _compared(ours: float | None, theirs: float | None) -> list[str]:
    return [_number(ours), _number(theirs), f"{ours / theirs:.1f} x" if ours and theirs else ""]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _size(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(DEFAULT), help=f"of {', '.join(CASES)}")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nanochat-shapes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--under", default="", metavar="CMD", help="put this command before every measurement")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    parser.add_argument("--keep", action="store_true", help="leave the models in the folder")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, _, kind = options.part.partition(":")
        try:
            print(json.dumps(run_part(name, kind, options.folder, options.threads).as_json()))
        except UserError as error:
            print(json.dumps({"error": str(error)}))
        return
    names = options.cases.split(",")
    if set(names) - set(CASES):
        parser.error(f"there is no case {min(set(names) - set(CASES))}")
    _say(f"beside {PEER} {peer_version()}")
    found: dict[str, Found] = {}
    for name in names:
        prepare(name, options.folder, options.threads)
        path = path_of(name, options.folder)
        found[name] = {"file_bytes": path.stat().st_size} | {
            kind: measured(name, kind, options) for kind in ("decode", "prompt")
        }
        if not CASES[name].peer:
            found[name]["refused"] = refusal(name, options.folder)
        if not options.keep:
            path.unlink()
        if options.json:  # after every model, so that a break costs one
            options.json.write_text(json.dumps({"threads": options.threads, "cases": found}, indent=2))
    print(as_markdown(found, options.threads))


if __name__ == "__main__":
    main()
