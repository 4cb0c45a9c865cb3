"""What a Rust function that was asked for is worth: parsed here, compiled and tested in the sandbox.

The parts are added up. Compiling counts only for the function that was asked for, and neither for one that only names a
value nor for one that only gives up (`todo!()`): all three are easier to write than the function.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.judging import judge as run_tests
from nanochat_tui.evaluate.problems import Problem
from nanochat_tui.evaluate.requests import Request
from nanochat_tui.evaluate.requests import judge as judge_request
from nanochat_tui.evaluate.rust_functions import first_function
from nanochat_tui.evaluate.sandbox.isolation import Command, Isolation
from nanochat_tui.evaluate.sandbox.limits import Limits
from nanochat_tui.evaluate.sandbox.run import run
from nanochat_tui.evaluate.toolchains import rustc

PROCESSES = 2
"""Sandboxes at once."""
COMPILE_SECONDS = 10
"""Allowance for one function; its types are checked, nothing is linked or run."""
KEPT = 100_000
"""Verdicts that are remembered by the text they are of."""
_GIVES_UP = re.compile(
    r"\{\s*(?:(?:todo|unimplemented|panic|unreachable)!\s*(?:\([^()]*\)|\[[^\[\]]*\])\s*;?|loop\s*\{\s*\})\s*\}\s*\Z"
)


@dataclass(frozen=True, slots=True)
class RewardWeights:
    """What each part of the reward is worth; 0 leaves it out."""

    parses: float = 0.1
    """The reply is Rust with a function in it, without error."""
    asked_for: float = 0.3
    """And this has the asked name and parameters."""
    compiles: float = 0.6
    """And it compiles alone, and does more than name a value or give up."""
    passes: float = 1.0
    """And its tests pass, where there are any."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 <= getattr(self, name) <= 1000:
                raise UserError(f"the reward for {name} must be 0 to 1000, not {getattr(self, name):g}")


@dataclass(frozen=True, slots=True)
class Practice:
    """A request to practise, with its tests if it has any."""

    request: Request
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A reward, whether it is the whole of what was asked for, and its parts (1 or 0 each)."""

    value: float
    success: bool
    parts: dict[str, float] = field(default_factory=dict)


def gives_up(text: str) -> bool:
    """Whether the first function of a text that parses has no body but a macro that ends the program, or a loop."""
    found = first_function(text)
    return found is not None and _GIVES_UP.search(_without_comments(found.source)) is not None


def _without_comments(source: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)


class CompilerReward:
    """Judges replies to requests for Rust functions. Raises UserError where rustc or a sandbox is missing."""

    def __init__(
        self,
        practice: Sequence[Practice],
        kind: Isolation,
        weights: RewardWeights | None = None,
        limits: Limits | None = None,
        processes: int = PROCESSES,
    ) -> None:
        self.practice, self.kind, self.processes = practice, kind, processes
        self.weights = RewardWeights() if weights is None else weights
        self.limits = Limits() if limits is None else limits
        self._compiled: dict[str, bool] = {}
        rustc()

    def __call__(self, numbers: Sequence[int], texts: Sequence[str]) -> list[Scored]:
        """Return what each text is worth as a reply to the request of its number."""
        answers = [judge_request(self.practice[n].request, text) for n, text in zip(numbers, texts, strict=True)]
        real = [a.asked_for and not a.constant and not gives_up(a.text) for a in answers]
        compiled = self._compile({a.text for a, worth in zip(answers, real, strict=True) if worth})
        with ThreadPoolExecutor(self.processes) as pool:
            passed = list(
                pool.map(
                    lambda one: self._passes(self.practice[one[0]].problem, one[1].text, one[2]),
                    zip(
                        numbers,
                        answers,
                        [w and compiled.get(a.text, False) for a, w in zip(answers, real, strict=True)],
                        strict=True,
                    ),
                )
            )
        return [
            self._scored(a.parses, a.asked_for, w and compiled.get(a.text, False), tests)
            for a, w, tests in zip(answers, real, passed, strict=True)
        ]

    def _scored(self, parses: bool, asked_for: bool, compiles: bool, passes: bool | None) -> Scored:
        parts = {"parses": float(parses), "asked_for": float(asked_for), "compiles": float(compiles)}
        if passes is not None:
            parts["passes"] = float(passes)
        value = sum(getattr(self.weights, name) * part for name, part in parts.items())
        return Scored(value, compiles and passes is not False, parts)

    def _passes(self, problem: Problem | None, text: str, compiles: bool) -> bool | None:
        """Whether the tests pass; None where there are none. What does not compile alone is not run."""
        if problem is None:
            return None
        return compiles and run_tests(problem, text, self.kind, self.limits).passed

    def _compile(self, texts: Iterable[str]) -> dict[str, bool]:
        """Which texts compile alone; each text once in a run."""
        wanted = {text: sha256(text.encode("utf-8", "replace")).hexdigest() for text in texts}
        new = sorted({text for text, key in wanted.items() if key not in self._compiled})
        shares = [new[at :: self.processes] for at in range(self.processes)]
        with ThreadPoolExecutor(self.processes) as pool:
            for share, good in zip(shares, pool.map(lambda s: compile_sandboxed(s, self.kind), shares), strict=True):
                for text, fits in zip(share, good, strict=True):
                    self._compiled[wanted[text]] = fits
        found = {text: self._compiled[key] for text, key in wanted.items()}
        if len(self._compiled) > KEPT:
            self._compiled.clear()
        return found


def compile_sandboxed(sources: Sequence[str], kind: Isolation) -> list[bool]:
    """Say of each text whether it compiles alone, edition 2021, in one sandbox without network or files of the user's.

    Macros run in the compiler and may read files, so that even a check of types is not for code that nobody has seen.
    Raises UserError where rustc or the sandbox is missing.
    """
    if not sources:
        return []
    tool = rustc()
    script = (
        'for file in "$GIVEN"/*.rs; do '
        f'if timeout -s KILL {COMPILE_SECONDS} "$0" --edition 2021 --crate-name alone --crate-type lib '
        '--emit metadata --cap-lints allow -o "$HOME/alone.rmeta" "$file" >/dev/null 2>&1; '
        'then name="${file##*/f}"; echo "${name%.rs}"; fi; done'
    )
    with tempfile.TemporaryDirectory(prefix="nanochat-compile-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the sandbox's user is another one
        for number, source in enumerate(sources):
            (folder / f"f{number}.rs").write_bytes(source.encode("utf-8", "replace"))
        limits = Limits(seconds=(COMPILE_SECONDS + 1.0) * len(sources), memory=1 << 30, address_space=None)
        outcome = run(kind, Command(["/bin/sh", "-c", script, tool.program], folder, tool.folders), limits)
    good = {int(line) for line in outcome.stdout.decode("ascii", "replace").split() if line.isdigit()}
    return [number in good for number in range(len(sources))]
