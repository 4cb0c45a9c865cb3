"""What the critic is asked, stage by stage: summary of an attempt, comparison of a group, edit, merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nanochat_tui.evaluate.grpo.library import Operation
from nanochat_tui.evaluate.grpo.rewards import Question, Verified

_FORMAT = (
    'Answer with a JSON list alone. Each entry is {"operation": "ADD", "content": "…"}, '
    '{"operation": "UPDATE", "id": "G…", "content": "…"}, {"operation": "DELETE", "id": "G…"} or '
    '{"operation": "NONE"}. '
    'Each content is one sentence of the form "short name: when …, do …".'
)


def _listed(library: Mapping[str, str]) -> str:
    return "\n".join(f"[{name}] {text}" for name, text in library.items()) or "(none yet)"


def summary(question: Question, reply: str, verified: Verified, with_truth: bool) -> str:
    """Ask what an attempt did, step by step, and where it went right or wrong."""
    truth = f"\n\nThe right answer:\n{question.truth}" if with_truth and question.truth else ""
    return (
        "Summarise this attempt at a task in a few numbered steps. Say which step decided its result.\n\n"
        f"Task:\n{question.text}{truth}\n\nAttempt:\n{reply}\n\n"
        f"Reward: {verified.reward:g} of 1 ({verified.reasoning})"
    )


def comparison(
    question: Question, summaries: Sequence[tuple[str, Verified]], library: Mapping[str, str], most: int
) -> str:
    """Ask for at most `most` general rules that the better attempts followed and the worse ones did not."""
    attempts = "\n\n".join(
        f"Attempt {number}, reward {verified.reward:g}:\n{text}" for number, (text, verified) in enumerate(summaries, 1)
    )
    return (
        "Several attempts at one task had different rewards. Compare them, and write at most "
        f"{most} rules that would have made the worse ones better. A rule is general: it holds for other tasks of the "
        'kind and never gives this task\'s answer. One rule a line, each of the form "short name: when …, do …", '
        f"between <Experiences> and </Experiences>.\n\nTask:\n{question.text}\n\n{attempts}\n\nRules known so far:\n"
        f"{_listed(library)}"
    )


def edit(rules: str, library: Mapping[str, str]) -> str:
    """Ask how new rules change the library."""
    return (
        "Bring new rules into a list of rules. Add what is new, update a rule that a new one makes more exact, delete "
        f"one that turned out wrong, and do nothing where the list says it already.\n\nNew rules:\n{rules}\n\n"
        "The list:\n"
        f"{_listed(library)}\n\n{_FORMAT}"
    )


def merging(operations: Sequence[Operation], library: Mapping[str, str]) -> str:
    """Ask for one list of operations in place of those of all groups of a batch."""
    proposed = "\n".join(
        f"{number}. {one.operation} {one.id or ''} {one.content}".rstrip() for number, one in enumerate(operations, 1)
    )
    return (
        "Several people propose changes of one list of rules. Make one set of changes of them: join those that say the "
        f"same, and drop what contradicts the better founded one.\n\nProposed:\n{proposed}\n\nThe list:\n"
        f"{_listed(library)}\n\n{_FORMAT}"
    )
