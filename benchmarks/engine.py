"""Our engine next to llama.cpp on published shapes: the table of the README, in one command.

    python benchmarks/engine.py [--cases d20,2b4t,…] [--folder DIR] [--threads 1,2] [--json FILE] [--start]
    python benchmarks/engine.py --busy 0,1,2 [--baseline CHECKOUT] [--repeats 7] [--cases d20,2b4t]

Each case writes its models once into the folder (2 GB for all but bonsai-8b), then measures both engines in turns. The
peer must be built for this machine: CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python==0.3.36 --no-binary
llama-cpp-python. --start adds the seconds from the start of a process to the first token, with and without a cache of
compiled kernels, and what loading takes in a process that has loaded before. --busy 0,1,2 measures the default setting
instead, next to so many competing processes, against one and two fixed threads (see `busy`); --baseline CHECKOUT takes
those from another commit. Without the peer ours is measured alone. Nothing else should run meanwhile; the load average
is printed so that a busy machine shows.
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

from busy import ROOT, Side, compare, recovery_seconds
from busy import as_markdown as busy_markdown
from models import SHAPES, write_model

from nanochat_tui.bench.measure import Engine, Plan, Result, measure
from nanochat_tui.bench.peer import PEER, peer_version
from nanochat_tui.bench.report import as_markdown
from nanochat_tui.bench.worker import OURS
from nanochat_tui.cli.bench import sizes
from nanochat_tui.engine.compile.cache import ENVIRONMENT
from nanochat_tui.errors import UserError
from nanochat_tui.model.shipped import shipped_model

PROMPT = "fn main() {"
START_SCRIPT = f"""
import sys
from nanochat_tui.engine.generate.model import load
print(next(load(sys.argv[1], threads=1).generate({PROMPT!r}, max_tokens=1)).id, flush=True)
"""
LOAD_SCRIPT = """
import sys, time
from nanochat_tui.engine.generate.model import load
seconds = []
for _ in range(30):
    began = time.perf_counter()
    model = load(sys.argv[1], threads=1)
    seconds.append(time.perf_counter() - began)
    model.close()
print(min(seconds[1:]), sorted(seconds[1:])[14])
"""
STARTS = 10
BUSY_TOKENS = {"d20": (512, 160), "2b4t": (128, 12)}
"""Tokens of prompts and of replies of a run next to competing processes: tenths of a second each."""


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


def load_seconds(path: Path) -> tuple[float, float]:
    """Return the least and the median seconds that loading takes in a process that has done so before."""
    done = subprocess.run([sys.executable, "-c", LOAD_SCRIPT, str(path)], capture_output=True, text=True, check=True)
    least, median = map(float, done.stdout.split())
    return least, median


def run_busy(name: str, busy: list[int], options: argparse.Namespace) -> None:
    """Print what the default setting and fixed threads do next to competing processes, and llama.cpp if it is there."""
    case, fixed = CASES[name], options.baseline or ROOT
    model = model_file(options.folder, case.ours, case.ternary, case.table)
    prompt, tokens = BUSY_TOKENS.get(name, (128, 64))
    sides = [Side("fixed 1", 1, fixed), Side("fixed 2", 2, fixed), Side("default", 0, ROOT)]
    found = compare(sides, model, busy, options.repeats, prompt, tokens)
    theirs = model if case.peer is None else model_file(options.folder, case.peer, None, case.table)
    try:
        peer_version()
        peers = [Side(f"{PEER} {threads}", threads, None) for threads in (1, 2)]
        found += compare(peers, theirs, busy, options.repeats, prompt, tokens)
    except UserError as error:
        say(f"{PEER} was not measured: {error}")
    print(busy_markdown(found, "default", ["fixed 1", "fixed 2"]), flush=True)
    runs = recovery_seconds(sides[-1], model, prompt, tokens)
    print("after one competitor, seconds and tok/s: " + ", ".join(f"{at:.1f} {tps:.4g}" for at, tps in runs))


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
    parser.add_argument("--busy", metavar="0,1,2", help="numbers of competing processes")
    parser.add_argument("--baseline", type=Path, help="a checkout whose engine runs with fixed threads")
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
    if options.busy is not None:
        for name in options.cases.split(","):
            print(f"\n## {name}\n")
            run_busy(name, [int(number) for number in options.busy.split(",")], options)
        return
    shipped = shipped_model()
    if options.start and shipped is not None:
        found["first_token_seconds"] = first_token_seconds(shipped)
        starts = found["first_token_seconds"]
        least, median = load_seconds(shipped)
        found["load_seconds"] = median
        print(f"loading in a warm process takes {median:.3f} s, at best {least:.3f} s")
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
