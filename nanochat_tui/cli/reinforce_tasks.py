"""What a reinforcement run practises: prompts with a reward, from requests, problems with tests, or an environment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate import requests as asked
from nanochat_tui.evaluate.compiler_reward import CompilerReward, Practice, RewardWeights
from nanochat_tui.evaluate.rust_functions import RustFunction, first_function, same_call
from nanochat_tui.files import atomic_write_text
from nanochat_tui.formats.checksums import file_sha256
from nanochat_tui.text import display_safe

KEPT = 0.02
"""Share of the tasks that is not practised: the loss on their answers is the run's validation loss."""
KEPT_PROBLEMS = 0.25
"""Share of the problems with tests that is not practised, so that some are left to measure."""
SMALL = "rust-small"


@dataclass(frozen=True, slots=True)
class Source:
    """Where tasks come from, as config.json has it; paths are absolute, `seed` and `size` are an environment's."""

    files: tuple[str, ...] = ()
    hold_out: tuple[str, ...] = ()
    problems: bool = False
    environment: str | None = None
    size: int = 1000
    seed: int = 0
    unsafe: bool = False

    def about(self, weights: RewardWeights) -> dict[str, Any]:
        """What stands in config.json and every checkpoint."""
        sums = {path: file_sha256(Path(path)) for path in self.files}
        return {"source": asdict(self), "sha256": sums, "reward": asdict(weights)}


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt as messages, and the answer that is known of it."""

    messages: Sequence[dict[str, str]]
    answer: str
    number: int
    """What the reward knows it by."""


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Tasks to practise, those that are kept for validation, and what judges replies by number."""

    tasks: list[Task]
    kept: list[Task]
    reward: Callable[[Sequence[int], Sequence[str]], Sequence[Any]]


def open_tasks(source: Source, weights: RewardWeights) -> TaskSet:
    """Open the tasks of a source. Raises UserError where there is none, or something that they need is missing."""
    if source.environment is not None:
        if source.files or source.problems:
            raise UserError("give files with requests, or an environment, not both")
        from nanochat_tui.evaluate.environments import open_environment

        environment = open_environment(source.environment, source.size, source.seed)
        pairs = zip(environment.prompts, environment.answers, strict=True)
        return _split([Task(prompt, answer, n) for n, (prompt, answer) in enumerate(pairs)], environment)
    from nanochat_tui.evaluate.sandbox.isolation import isolation

    practice, answers = _requests(source)
    reward = CompilerReward(practice, isolation(source.unsafe), weights)
    tasks = [
        Task([{"role": "user", "content": one.request.prompt}], answer, n)
        for n, (one, answer) in enumerate(zip(practice, answers, strict=True))
    ]
    return _split(tasks, reward)


def _split(tasks: list[Task], reward: Callable[[Sequence[int], Sequence[str]], Sequence[Any]]) -> TaskSet:
    """Keep a fiftieth, by a hash of the answer, so that ways to ask for the same are on one side."""
    if len({task.answer for task in tasks}) < 2:
        raise UserError("there are fewer than two tasks; one is to practise, another for validation")
    order = sorted({task.answer for task in tasks}, key=lambda text: hashlib.sha256(text.encode()).digest())
    kept = set(order[: max(1, round(KEPT * len(order)))])
    return TaskSet([t for t in tasks if t.answer not in kept], [t for t in tasks if t.answer in kept], reward)


def _requests(source: Source) -> tuple[list[Practice], list[str]]:
    """Requests of the files and problems, without those held out, and the answers that are known."""
    held = [request for path in source.hold_out for request in asked.read_requests(Path(path))]
    calls = [request.wanted for request in held] + _tested_functions()
    texts = {request.prompt for request in held}
    practice: list[Practice] = []
    answers: list[str] = []
    for path in source.files:
        known = _answers(Path(path))
        for request in asked.read_requests(Path(path)):
            if request.prompt not in texts and not any(same_call(request.wanted, call) for call in calls):
                practice.append(Practice(request))
                answers.append(known[request.prompt])
    if source.problems:
        for one, answer in _small_problems():
            practice.append(one)
            answers.append(answer)
    if not practice:
        raise UserError("no request is left to practise; give a file with others, --problems or --environment")
    return practice, answers


def _answers(path: Path) -> dict[str, str]:
    rows = (json.loads(line) for line in path.read_bytes().splitlines() if line.strip())
    return {row["prompt"]: row["completion"] for row in rows}


def _tested_functions() -> list[RustFunction]:
    """Functions of the problems that models are measured with: none of them is practised from a file."""
    from nanochat_tui.evaluate.problems import shipped_problems

    found = [
        first_function(f"{problem.prompt} todo!() }}")
        for chosen in ("rust", SMALL)
        for problem in shipped_problems(chosen).problems  # type: ignore[arg-type]
    ]
    return [function for function in found if function is not None]


def _small_problems() -> list[tuple[Practice, str]]:
    """Three quarters of the small problems with tests, by a hash of their names, with their solutions."""
    from nanochat_tui.evaluate.problems import shipped_problems

    found = []
    for problem in shipped_problems(SMALL).problems:  # type: ignore[arg-type]
        if is_kept(problem.name):
            continue
        solution = problem.prompt + (problem.solution or "")
        wanted = first_function(solution)
        if wanted is None or not wanted.parameters:
            continue
        about = " ".join(line.removeprefix("///").strip() for line in problem.prompt.splitlines() if "///" in line)
        request = asked.Request(f"Write a Rust function `{wanted.signature}`. {about}".strip(), wanted, SMALL)
        found.append((Practice(request, problem), solution))
    return found


def is_kept(problem: str) -> bool:
    """Whether a small problem is left for measuring."""
    return int.from_bytes(hashlib.sha256(problem.encode()).digest()[:4]) / 2**32 < KEPT_PROBLEMS


def write_tasks(path: Path, tasks: Sequence[Task]) -> None:
    """Write tasks as conversations, which `train.chat_data` reads. Raises WriteError."""
    rows = ({"messages": [*task.messages, {"role": "assistant", "content": task.answer}]} for task in tasks)
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_source(about: object, place: Path) -> tuple[Source, RewardWeights]:
    """The source that a checkpoint names. Raises UserError where its files are gone or others."""
    shown = display_safe(str(place))
    try:
        source, sums, reward = about["source"], about["sha256"], about["reward"]  # type: ignore[index]
        found = Source(**{**source, "files": tuple(source["files"]), "hold_out": tuple(source["hold_out"])})
        weights = RewardWeights(**reward)
    except (KeyError, TypeError):
        raise UserError(f"{shown} does not say what it practises; start another run") from None
    for path, expected in sums.items():
        if not Path(path).is_file():
            raise UserError(f"there is no {display_safe(path)}, whose requests {shown} practises; put it back")
        if file_sha256(Path(path)) != expected:
            raise UserError(f"{display_safe(path)} is another file than the one {shown} practises; put it back")
    return found, weights
