"""The loop of Training-Free GRPO: groups of attempts, a critic, a library of rules; every reply is kept.

Names and defaults are those of the authors' reference (youtu-agent, `utu/practice`). The folder of a practice holds
`practice.json` (its settings), `replies.jsonl` (each reply of model and critic under a key), `experiences.json` (the
library) and `history.jsonl` (rewards and library after each batch). Given the replies the loop is deterministic: a
practice that was stopped reads them back and continues with the first one that is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from threading import Event as CancelEvent
from typing import Any

from nanochat_tui.chat.backend import Backend, Message, Request, Started
from nanochat_tui.chat.experience import with_experiences, write_experiences
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.folder import EvaluationFolder
from nanochat_tui.evaluate.grpo import prompts
from nanochat_tui.evaluate.grpo.library import Operation, apply, merge, read_operations
from nanochat_tui.evaluate.grpo.rewards import Question, Verified
from nanochat_tui.request import SamplingParams, Token

TRIES = 3
"""Times that the critic is asked for operations before its group, or the merge of a batch, changes nothing."""
REPLIES, HISTORY, LIBRARY = "replies.jsonl", "history.jsonl", "experiences.json"
_RULES = re.compile(r"<Experiences>(.*?)(?:</Experiences>|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Practice:
    """Settings of a practice.

    token_budget: prompt and reply tokens of model and critic together, None for no bound.
    """

    epochs: int = 3
    batch_size: int = 64
    grpo_n: int = 5
    rollout_temperature: float = 0.7
    num_experiences_per_query: int = 2
    given_ground_truth: bool = True
    max_experiences: int = 40
    max_tokens: int = 512
    seed: int = 1
    token_budget: int | None = None


class BudgetError(UserError):
    """The token budget is used up; what was learned is kept."""

    exit_code = 1


@dataclass(frozen=True)
class Batch:
    """What came of a batch: mean reward, groups in which attempts differed, and the library after it."""

    epoch: int
    batch: int
    reward: float
    groups: int
    spread: int
    operations: int
    experiences: dict[str, str]


class Journal:
    """All replies of a practice by key, on the disk as soon as they are there."""

    def __init__(self, folder: EvaluationFolder, budget: int | None) -> None:
        self._folder = folder
        self._budget = budget
        self._known: dict[str, str] = {}
        self.tokens = 0
        for row in folder.read_rows(REPLIES):
            self._known[str(row["key"])] = str(row["reply"])
            self.tokens += int(row["tokens"])

    def reply(self, key: str, ask: Callable[[], tuple[str, int]]) -> str:
        """Return the reply of a key, asking for it only if it is not known.

        Raises:
            BudgetError: it is not known, and the budget is used up.
        """
        if key not in self._known:
            if self._budget is not None and self.tokens >= self._budget:
                raise BudgetError(
                    f"the token budget is used up ({self.tokens:,} of {self._budget:,}); what was learned is kept: "
                    "continue with a larger --token-budget"
                )
            text, tokens = ask()
            self._folder.append(REPLIES, {"key": key, "reply": text, "tokens": tokens})
            self._known[key] = text
            self.tokens += tokens
        return self._known[key]


@dataclass(frozen=True)
class Models:
    """Who solves and who criticises; they may be the same."""

    solver: Backend
    critic: Backend


def ask(backend: Backend, question: str, sampling: SamplingParams, max_tokens: int) -> tuple[str, int]:
    """Return a chat model's reply without its thinking, and the tokens of prompt and reply."""
    request = Request(messages=(Message("user", question),), max_tokens=max_tokens, sampling=sampling)
    text, tokens = "", 0
    for event in backend.chat(request, CancelEvent()):
        if isinstance(event, Started):
            tokens += event.prompt_tokens or 0
        elif isinstance(event, Token):
            tokens += 1
            text += "" if event.thinking else event.text
    return text.strip(), tokens


class Learner:
    """A practice: runs its batches and keeps what they teach."""

    def __init__(self, folder: EvaluationFolder, models: Models, practice: Practice) -> None:
        self.folder = folder
        self.models = models
        self.practice = practice
        self.journal = Journal(folder, practice.token_budget)
        self.experiences: dict[str, str] = {}
        self.warnings: list[str] = []

    def learn(self, questions: Sequence[Question], progress: Callable[[Batch], None]) -> list[Batch]:
        """Run all epochs; returns what came of each batch.

        Raises:
            BudgetError: the budget is used up.
            UserError: a backend fails. What was learned by then is on the disk.
        """
        done: list[Batch] = []
        known = len(self.folder.read_rows(HISTORY))
        for epoch in range(self.practice.epochs):
            order = list(questions)
            Random(f"{self.practice.seed}/{epoch}").shuffle(order)  # noqa: S311 - an order, no secret
            size = self.practice.batch_size
            for number, start in enumerate(range(0, len(order), size)):
                batch = self._batch(epoch, number, order[start : start + size])
                done.append(batch)
                if len(done) > known:
                    self.folder.append(HISTORY, vars(batch))
                write_experiences(self.folder.path / LIBRARY, self.experiences)
                progress(batch)
        return done

    def attempts(self, place: str, question: Question, temperature: float) -> list[tuple[str, Verified]]:
        """Return a group of attempts at a question with the present library, each with its reward."""
        text = with_experiences(question.text, self.experiences)
        found = []
        for index in range(self.practice.grpo_n):
            sampling = self._sampling(temperature, index)

            def solve(sampling: SamplingParams = sampling) -> tuple[str, int]:
                return ask(self.models.solver, text, sampling, self.practice.max_tokens)

            reply = self.journal.reply(f"{place}/{question.name}/attempt/{index}", solve)
            found.append((reply, question.verify(reply)))
        return found

    def _batch(self, epoch: int, number: int, questions: Sequence[Question]) -> Batch:
        operations: list[Operation] = []
        rewards: list[float] = []
        spread = 0
        place = f"{epoch}/{number}"
        for question in questions:
            group = self.attempts(place, question, self.practice.rollout_temperature)
            rewards += [verified.reward for _, verified in group]
            mean = sum(verified.reward for _, verified in group) / len(group)
            if 0 < mean < 1 and len({verified.reward for _, verified in group}) > 1:
                spread += 1
                operations += self._advantage(f"{place}/{question.name}", question, group)
        merged = self._merged(place, operations)
        self.experiences = apply(merged, self.experiences, self.practice.max_experiences)
        reward = sum(rewards) / len(rewards)
        return Batch(epoch, number, reward, len(questions), spread, len(merged), dict(self.experiences))

    def _advantage(self, place: str, question: Question, group: Sequence[tuple[str, Verified]]) -> list[Operation]:
        """Return the operations that the critic draws from the differences within a group."""
        with_truth = self.practice.given_ground_truth
        summaries = [
            (self._critic(f"{place}/summary/{i}", prompts.summary(question, reply, verified, with_truth)), verified)
            for i, (reply, verified) in enumerate(group)
        ]
        most = self.practice.num_experiences_per_query
        compared = self._critic(f"{place}/comparison", prompts.comparison(question, summaries, self.experiences, most))
        found = _RULES.search(compared)
        rules = "\n".join([line for line in found[1].splitlines() if line.strip()][:most]) if found else ""
        if not rules:
            self.warnings.append(f"{question.name}: the critic named no rules")
            return []
        return self._operations(f"{place}/edit", prompts.edit(rules, self.experiences))

    def _merged(self, place: str, operations: list[Operation]) -> list[Operation]:
        changing = [one for one in operations if one.operation != "NONE"]
        if len(changing) < 2:
            return changing
        return merge(self._operations(f"{place}/merge", prompts.merging(changing, self.experiences)))

    def _operations(self, key: str, question: str) -> list[Operation]:
        for attempt in range(TRIES):
            found = read_operations(self._critic(f"{key}/{attempt}", question, attempt))
            if found is not None:
                return found
        self.warnings.append(f"{key}: {TRIES} replies of the critic were no list of operations; nothing is changed")
        return []

    def _critic(self, key: str, question: str, attempt: int = 0) -> str:
        # a reply that could not be read is asked for again with another seed
        sampling = self._sampling(self.practice.rollout_temperature if attempt else 0.0, attempt)
        return self.journal.reply(
            key, lambda: ask(self.models.critic, question, sampling, 2 * self.practice.max_tokens)
        )

    def _sampling(self, temperature: float, index: int) -> SamplingParams:
        return SamplingParams(temperature=temperature, top_k=0, top_p=0.95, seed=self.practice.seed + index)


def mean_reward(learner: Learner, place: str, questions: Sequence[Question], temperature: float) -> list[list[float]]:
    """Return the rewards of a group of attempts at each question, with the learner's present library."""
    return [[verified.reward for _, verified in learner.attempts(place, q, temperature)] for q in questions]


def about(practice: Practice, named: dict[str, Any]) -> dict[str, Any]:
    """Return what decides a practice's replies; more epochs or tokens continue it."""
    settings = dict(vars(practice))
    settings.pop("epochs")
    settings.pop("token_budget")
    return {**named, **settings}
