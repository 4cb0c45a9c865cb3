"""Whether a completion solves its problem: the program is made, compiled and run in a sandbox.

A program passes if it ends with exit code 0 after its tests, which it proves by a word chosen at random for this one
run: a printed "ok", or an exit before the tests, is a failure. The word guards against such programs, not against one
that searches the memory of its own process for it.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nanochat_tui.evaluate.problems import Problem
from nanochat_tui.evaluate.sandbox.isolation import Command, Isolation
from nanochat_tui.evaluate.sandbox.limits import Limits, Outcome
from nanochat_tui.evaluate.sandbox.run import run
from nanochat_tui.evaluate.toolchains import python, rustc

COMPILE_SECONDS = 60
"""Allowance of the compiler; not part of a program's own seconds."""
DETAIL = 2000
"""Characters of a failure's output that are kept."""
_NOT_COMPILED = 90
_HARNESS = """\
import os, sys
word, out = sys.stdin.readline().strip(), os.dup(1)
with open(os.environ["GIVEN"] + "/program.py", encoding="utf-8") as file:
    text = file.read()
exec(compile(text, "program.py", "exec"), {"__name__": "program"})
sys.stdout.flush()
os.write(out, f"\\n{word}\\n".encode())
"""
_FENCE = re.compile(r"```[^\n]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Judged:
    """passed, failed, compile error, left early, timeout, memory, processes or output; `detail` is what was written."""

    verdict: str
    detail: str
    seconds: float
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the tests ran to their end without a failure."""
        return self.verdict == "passed"


def cut(problem: Problem, completion: str) -> str:
    """Return a base model's completion up to the first stop text; a Rust function keeps its closing brace, where the
    tests do not begin with it.
    """
    places = [(at, stop) for stop in problem.stops if (at := completion.find(stop)) >= 0]
    if not places:
        return completion
    at, stop = min(places)
    kept = len(stop) if problem.form == "humaneval-rust" and stop == "\n}" else 0
    return completion[: at + kept]


def answer_code(problem: Problem, reply: str) -> str:
    """Return the code of a chat model's reply as a completion of the prompt: that of its first fence, or all of it.

    Code that holds the whole function takes the prompt's place: see `program`.
    """
    found = _FENCE.search(reply)
    return found[1] if found else reply


def source_of(problem: Problem, completion: str) -> str:
    """Return a completed function without its tests: the completion behind the prompt, or in its place."""
    return f"{_before_function(problem) if _defines(problem, completion) else problem.prompt}{completion}\n"


def body_of(problem: Problem, completion: str) -> str:
    """Return the body that a completion gives a Rust function, also where it holds the whole function."""
    found = re.search(rf"fn\s+{re.escape(problem.entry_point)}\b[^{{]*\{{", completion)
    return completion[found.end() :] if found and _defines(problem, completion) else completion


def program(problem: Problem, completion: str, word: str) -> str:
    """Return the source to run, which proves by `word` that it came to its end."""
    whole = _defines(problem, completion)
    # a Rust prompt may hold imports and types before its function; they stay, unless the code has its own
    start = _before_function(problem) if whole else problem.prompt
    if problem.form == "humaneval":
        return f"{start}{completion}\n{problem.test}\ncheck({problem.entry_point})\n"
    if problem.form == "humaneval-rust":
        proof = f"#[cfg(test)]\nmod zzz_{word} {{\n    #[test]\n    fn ended() {{}}\n}}\n"
        return f"{start}{completion}\n{problem.test}\n{proof}"
    if whole:
        completion = completion.rstrip().removesuffix("}")
    body = f"{start}{completion}\n{problem.test}".rstrip()
    return f'{body.removesuffix("}")}\n    println!("\\n{word}");\n}}\n'


def _defines(problem: Problem, code: str) -> bool:
    keyword = "def" if problem.language == "python" else "fn"
    name = problem.entry_point if problem.form != "multipl-e" else _last_function(problem.prompt)
    return re.search(rf"^\s*(?:pub\s+)?{keyword}\s+{re.escape(name)}\b", code, re.MULTILINE) is not None


def _last_function(prompt: str) -> str:
    found = re.findall(r"^\s*(?:pub\s+)?fn\s+(\w+)", prompt, re.MULTILINE)
    return found[-1] if found else ""


def _before_function(problem: Problem) -> str:
    """Return what a prompt holds before the function to write: imports, and functions that it may call."""
    if problem.language == "python":
        at = problem.prompt.rfind(f"def {problem.entry_point}")
        return problem.prompt[:at] if at > 0 else ""
    kept = [line for line in problem.prompt.splitlines() if re.match(r"\s*use\s", line)]
    return "".join(f"{line}\n" for line in kept)


def judge(problem: Problem, completion: str, kind: Isolation, limits: Limits) -> Judged:
    """Run a completion's program and say what became of it.

    Raises:
        UserError: the compiler that it needs is missing or too old.
    """
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="nanochat-problem-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the sandbox's user is another one
        text = program(problem, completion, word).encode("utf-8", "backslashreplace")
        if problem.language == "python":
            (folder / "program.py").write_bytes(text)
            (folder / "run.py").write_text(_HARNESS, encoding="utf-8")
            outcome = _run_python(folder, word, kind, limits)
        else:
            (folder / "main.rs").write_bytes(text)
            outcome = _run_rust(problem, folder, kind, limits)
    return _judged(problem, outcome, word)


def _run_python(folder: Path, word: str, kind: Isolation, limits: Limits) -> Outcome:
    tool = python()
    arguments = ["/bin/sh", "-c", 'exec "$0" -I -S -B "$GIVEN/run.py"', tool.program]
    return run(kind, Command(arguments, folder, tool.folders), limits, f"{word}\n".encode())


def _run_rust(problem: Problem, folder: Path, kind: Isolation, limits: Limits) -> Outcome:
    tool = rustc()
    tests = problem.form == "humaneval-rust"
    flags = f"--edition {problem.edition} -A warnings --color never {'--test' if tests else ''}"
    bound = "" if limits.address_space is None else f"ulimit -v {limits.address_space >> 10}; "
    script = (
        f'timeout {COMPILE_SECONDS} "$0" {flags} -o "$HOME/program" "$GIVEN/main.rs" || exit {_NOT_COMPILED}; '
        f"{bound}exec timeout -s KILL {limits.seconds:g} "
        f'"$HOME/program" {"--test-threads=1" if tests else ""}'
    )
    longer = Limits(
        limits.seconds + COMPILE_SECONDS, limits.memory, None, limits.processes, limits.output, limits.files
    )
    return run(kind, Command(["/bin/sh", "-c", script, tool.program], folder, tool.folders), longer)


def _judged(problem: Problem, outcome: Outcome, word: str) -> Judged:
    written = (outcome.stderr or outcome.stdout).decode("utf-8", "replace").replace(word, "…")
    detail = written.strip()[-DETAIL:] if problem.language == "python" else written.strip()[:DETAIL]
    if outcome.ended != "exit":
        return Judged(outcome.ended, detail, outcome.seconds)
    out = outcome.stdout.decode("utf-8", "replace")
    proof = f"test zzz_{word}::ended ... ok" if problem.form == "humaneval-rust" else word
    if outcome.code == 0:
        verdict = "passed" if proof in out.splitlines() else "left early"
    elif problem.language == "rust" and outcome.code == _NOT_COMPILED:
        verdict = "compile error"
    elif problem.language == "rust" and outcome.code in (124, 137, -9):
        verdict = "timeout"
    else:
        verdict = "failed"
    return Judged(verdict, "" if verdict == "passed" else detail, outcome.seconds)
