"""Environments of the `verifiers` library as prompts and rewards, where one reply is all that the model says.

A taskset (verifiers 0.4, `verifiers.v1`) is iterated for tasks, each with data and a `score` that judges a trace. A
reply becomes such a trace: the prompt's messages, then the assistant's. Tools, several turns and code that runs in a
container belong to a harness, which this is not: such tasks are refused. `reasoning-gym:NAME` makes a taskset of one of
reasoning-gym's generators, whose own verifier is the reward.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

GYM = "reasoning-gym"
NO_ANSWER = "?"
"""Stands for the answer of a task that has none in its data."""
ASK = "Answer with the result alone, between <answer> and </answer>."
INSTALL = "install it with: pip install 'nanochat-tui[rl]'"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a reply is worth by the environment's rewards; NaN where they failed."""

    value: float
    success: bool
    parts: Mapping[str, float] = field(default_factory=dict)


class Environment:
    """Tasks of a taskset. `full` is the reward from which on a reply is a success."""

    def __init__(self, tasks: Sequence[Any], full: float = 1.0) -> None:
        """Raises UserError for tasks that need more than one reply."""
        if not tasks:
            raise UserError("the environment has no task")
        self.tasks, self.full = list(tasks), full
        for task in self.tasks:
            if getattr(task, "NEEDS_CONTAINER", False) or type(task).toolsets(task.config):
                raise UserError(
                    f"tasks of {display_safe(type(task).__name__)} need tools or a container; only environments of one "
                    "reply run here"
                )

    @property
    def prompts(self) -> list[list[dict[str, str]]]:
        """The messages of each task, as a chat template takes them."""
        return [_messages(task.data) for task in self.tasks]

    @property
    def answers(self) -> list[str]:
        """An answer of each task, as far as its data has one under that name."""
        return [str(getattr(task.data, "answer", None) or NO_ANSWER) for task in self.tasks]

    def __call__(self, numbers: Sequence[int], texts: Sequence[str]) -> list[Judged]:
        """Return what each text is worth as a reply to the task of its number."""
        return asyncio.run(self._judge(numbers, texts))

    async def _judge(self, numbers: Sequence[int], texts: Sequence[str]) -> list[Judged]:
        return [await self._one(self.tasks[number], text) for number, text in zip(numbers, texts, strict=True)]

    async def _one(self, task: Any, text: str) -> Judged:
        trace = trace_of(task, text)
        try:
            await task.score(trace)
        except Exception:  # a reward of other people's code; the reply is left out, and the others continue
            return Judged(float("nan"), False)
        parts = {name: float(reward.value) for name, reward in trace.rewards.items() if reward is not None}
        value = float(trace.reward) if parts else float("nan")
        return Judged(value, value >= self.full, parts)


def _messages(data: Any) -> list[dict[str, str]]:
    found = [{"role": "system", "content": str(data.system_prompt)}] if data.system_prompt else []
    if isinstance(data.prompt, str):
        return [*found, {"role": "user", "content": data.prompt}]
    for message in data.prompt or ():
        if not isinstance(message.content, str):
            raise UserError("the environment's prompts hold more than text, which is all that a model here reads")
        found.append({"role": message.role, "content": message.content})
    if not found or found[-1]["role"] != "user":
        raise UserError(
            "the environment's tasks do not end with a message of the user; only those of one reply run here"
        )
    return found


def trace_of(task: Any, text: str) -> Any:
    """Return the trace of one reply to a task, as a harness of verifiers would have made it. Raises UserError."""
    vf = verifiers()
    prompt = [vf.SystemMessage, vf.UserMessage, vf.AssistantMessage]
    kinds = dict(zip(("system", "user", "assistant"), prompt, strict=True))
    nodes: list[Any] = []
    for message in [*_messages(task.data), {"role": "assistant", "content": text}]:
        nodes.append(
            vf.MessageNode(
                parent=len(nodes) - 1 if nodes else None, message=kinds[message["role"]](content=message["content"])
            )
        )
    nodes[-1].sampled = True
    about = vf.TraceTask(type=type(task).__name__, data=task.data)
    return vf.Trace(task=about, agent=vf.AgentInfo(config=vf.AgentConfig()), nodes=nodes, is_completed=True, ok=True)


def verifiers() -> Any:
    """The library. Raises UserError where it is missing or another version."""
    try:
        return importlib.import_module("verifiers.v1")
    except ImportError:
        raise UserError(f"an environment needs verifiers 0.4 or later; {INSTALL}") from None


def open_environment(name: str, size: int, seed: int) -> Environment:
    """Open `reasoning-gym:GENERATOR`, or `module:attribute` for a taskset, or what makes one when it is called.

    At most `size` tasks are taken. Raises UserError for a name there is nothing of.
    """
    source, _, rest = name.partition(":")
    if not rest:
        raise UserError(
            f"there is no environment {display_safe(name)}; give {GYM}:NAME, such as {GYM}:basic_arithmetic, or "
            "module:attribute of a verifiers taskset"
        )
    taskset = _reasoning_gym(rest, size, seed) if source == GYM else _imported(source, rest)
    return Environment(list(itertools.islice(iter(taskset), size)))


def _imported(module: str, attribute: str) -> Any:
    shown = display_safe(f"{module}:{attribute}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the environment {shown} cannot be imported: {display_safe(str(error))}") from None
    if not hasattr(found, "load") and callable(found):
        found = found()
    if isinstance(found, type):
        found = found(_config_of(found))
    if not hasattr(found, "__iter__"):
        raise UserError(f"{shown} is no taskset of verifiers, nor does it make one")
    return found


def _config_of(kind: type) -> Any:
    from verifiers.v1.utils.generic import concrete_type

    vf = verifiers()
    return (concrete_type(kind, vf.TasksetConfig, origin=vf.Taskset) or vf.TasksetConfig)()


def _reasoning_gym(name: str, size: int, seed: int) -> Any:
    vf = verifiers()
    try:
        import reasoning_gym
    except ImportError:
        raise UserError(f"{GYM}:{display_safe(name)} needs reasoning-gym; {INSTALL}") from None
    try:
        dataset = reasoning_gym.create_dataset(name, size=size, seed=seed)
    except (ValueError, KeyError):
        raise UserError(f"reasoning-gym has no generator {display_safe(name)}; see its list of datasets") from None

    from nanochat_tui.evaluate.gym_taskset import GymTaskset

    return GymTaskset(vf.TasksetConfig(), dataset)
