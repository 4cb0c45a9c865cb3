"""Our engine beside llama.cpp on published shapes: the table of the README, in one command.

    python benchmarks/engine.py [--cases d20,2b4t,…] [--folder DIR] [--threads 1,2] [--json FILE] [--start]

Each case writes its models once into the folder (2 GB for all but bonsai-8b), then measures both engines in turns. The
peer must be built for this machine: CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python==0.3.36 --no-binary
llama-cpp-python. --start adds the seconds from the start of a process to the first token, with and without a cache of
compiled kernels. Without the peer ours is measured alone. Nothing else should run meanwhile; the load average is
printed so that a busy machine shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models import SHAPES, write_model

from nanochat_tui.cli.bench import sizes
from nanochat_tui.cli.measurement import Engine, Plan, Result, measure
from nanochat_tui.cli.measurement_peer import PEER, peer_version
from nanochat_tui.cli.measurement_report import as_markdown
from nanochat_tui.cli.measurement_worker import OURS
from nanochat_tui.engine.compile_cache import ENVIRONMENT
from nanochat_tui.errors import UserError
from nanochat_tui.model.shipped import shipped_model

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "fn main() {"
START_SCRIPT = f"""
import sys
from nanochat_tui.engine.model import load
print(next(load(sys.argv[1], threads=1).generate({PROMPT!r}, max_tokens=1)).id, flush=True)
"""
STARTS = 10


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: a shape for us, one for the peer (None: the same file), prompts and contexts."""

    ours: str
    peer: str | None = None
    prompts: tuple[int, ...] = (128, 512)
    contexts: tuple[int, ...] = (128,)
    ternary: str | None = None
    table: str | None = None
    kernel: str | None = None
    compares: bool = True


CASES = {
    "d20": Case("d20", peer="d20-llama", contexts=(128, 1024)),
    "2b4t": Case("2b4t"),
    "2b4t-avx2": Case("2b4t", kernel="avx2", prompts=(128,)),
    "2b4t-f16-head": Case("2b4t", table="F16", prompts=(128,)),
    "bonsai-1.7b": Case("bonsai-1.7b", prompts=(128,), contexts=(16, 128)),
    "bonsai-1.7b-pq2_0": Case("bonsai-1.7b", ternary="PQ2_0", table="PQ2_0", compares=False),
    "bonsai-4b": Case("bonsai-4b", prompts=(128,), contexts=(16,)),
    "bonsai-8b": Case("bonsai-8b", prompts=(128,), contexts=(16,)),
    "tiny": Case("tiny", prompts=(32,), contexts=(16,)),
}
DEFAULT = "d20,2b4t,bonsai-1.7b"


def model_file(folder: Path, shape: str, ternary: str | None, table: str | None) -> Path:
    """Return a model of this shape, written if it is not there yet."""
    wanted = SHAPES[shape]
    wanted = replace(wanted, ternary=ternary or wanted.ternary, table=table or wanted.table)
    path = folder / f"{shape}-{wanted.ternary}-{wanted.table}.gguf".lower()
    return path if path.exists() else write_model(path, wanted)


def run_case(case: Case, folder: Path, plan: Plan) -> Result:
    """Measure one case, ours alone if the peer is missing or fails. Raises UserError if our model does not load."""
    ours = model_file(folder, case.ours, case.ternary, case.table)
    theirs = ours if case.peer is None else model_file(folder, case.peer, None, case.table)
    engine = Engine(OURS, ours, case.kernel)
    plan = replace(plan, prompts=case.prompts, contexts=case.contexts)
    failed = None
    if case.compares:
        try:
            peer_version()
            return measure([engine, Engine(PEER, theirs)], plan, say)
        except UserError as error:
            failed = error
    result = measure([engine], plan, say)
    if failed is not None:
        result.skipped.append(f"{PEER} was not measured: {failed}")
    return result


def say(line: str) -> None:
    print(line, file=sys.stderr)


def first_token_seconds(path: Path) -> dict[str, float]:
    """Return seconds from the start of a process to its first token, with an empty and with a filled cache.

    "cold" and "warm" are the library's, "command" is a warm `nanochat-tui chat`; the least of several starts.
    """
    library = [sys.executable, "-c", START_SCRIPT, str(path)]
    command = [sys.executable, "-m", "nanochat_tui", "chat", str(path), "-p", PROMPT, "--raw", "--max-tokens", "1"]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, ENVIRONMENT: cache, "PYTHONPATH": str(ROOT)}
        # an installed program has its bytecode, and is not compiled from source at every start
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for kind, line in [("cold", library), *[("warm", library), ("command", command)] * STARTS]:
            began = time.perf_counter()
            with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, bufsize=0) as process:
                assert process.stdout is not None
                first = process.stdout.read(1)
                taken = time.perf_counter() - began
                process.stdout.read()
            if process.returncode or not first:
                raise UserError(f"{' '.join(line[:4])} … ended with {process.returncode}")
            found[kind] = min(found.get(kind, float("inf")), taken)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=DEFAULT, help=f"of {', '.join(CASES)}")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nanochat-benchmarks")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--limit", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write all figures here too")
    parser.add_argument("--start", action="store_true")
    options = parser.parse_args()
    unknown = set(options.cases.split(",")) - set(CASES)
    if unknown:
        parser.error(f"there is no case {min(unknown)}")
    plan = Plan(
        threads=tuple(sizes(options.threads, "--threads")),
        repeats=options.repeats,
        seconds=options.seconds,
        limit=options.limit,
    )
    found: dict[str, Any] = {"load_average": os.getloadavg()[0], "cases": {}}
    print(f"load average {found['load_average']:.1f}")
    shipped = shipped_model()
    if options.start and shipped is not None:
        found["first_token_seconds"] = first_token_seconds(shipped)
        starts = found["first_token_seconds"]
        print("first token after " + ", ".join(f"{seconds:.3f} s {kind}" for kind, seconds in starts.items()))
    for name in options.cases.split(","):
        print(f"\n## {name}\n")
        try:
            result = run_case(CASES[name], options.folder, plan)
        except UserError as error:
            print(f"not measured: {error}")
            found["cases"][name] = {"error": str(error)}
            continue
        found["cases"][name] = result.as_json()
        print(as_markdown(result), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
