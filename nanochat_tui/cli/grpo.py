"""`nanochat-tui grpo`: a frozen model learns rules from its own attempts (Training-Free GRPO)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nanochat_tui.cli.options import AttachOption, JsonOption, ModelArgument, ThreadsOption

if TYPE_CHECKING:
    from nanochat_tui.evaluate.grpo.rewards import Question


def grpo(
    model: ModelArgument = None,
    attach: AttachOption = None,
    questions: Annotated[
        Path | None, typer.Option(help='JSON lines of {"question": …, "answer": …}; left out, --set is practised.')
    ] = None,
    chosen: Annotated[
        Literal["python", "rust", "rust-small"], typer.Option("--set", help="Programming problems to practise.")
    ] = "python",
    check: Annotated[
        Literal["exact", "contains", "regex"], typer.Option(help="How a reply is compared with the answer.")
    ] = "exact",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions.")] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Questions of the same form, asked before and after; none of them is practised.")
    ] = None,
    critic: Annotated[
        str | None, typer.Option("--critic", metavar="URL", help="Server of the critic; left out, the model itself.")
    ] = None,
    critic_model: Annotated[str | None, typer.Option(help="Model of the critic's server.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions between two changes of the rules.")] = 64,
    grpo_n: Annotated[int, typer.Option(min=2, help="Attempts at each question.")] = 5,
    rollout_temperature: Annotated[float, typer.Option(min=0)] = 0.7,
    per_query: Annotated[
        int, typer.Option("--num-experiences-per-query", min=1, help="Most rules drawn from one question.")
    ] = 2,
    ground_truth: Annotated[
        bool, typer.Option("--given-ground-truth/--no-ground-truth", help="Whether the critic sees right answers.")
    ] = True,
    max_experiences: Annotated[int, typer.Option(min=1, help="Most rules that are kept.")] = 40,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest attempt.")] = 512,
    token_budget: Annotated[int | None, typer.Option(min=1, help="Stop after so many tokens of all prompts.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    seconds: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that a program may take.")] = 10.0,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Run programs where no isolation works.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the practice; one that is there goes on.")] = Path("practice"),
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Practise questions, and write the rules that made attempts better: chat --experience FILE uses them."""
    from nanochat_tui.cli.evaluation_run import open_backend
    from nanochat_tui.cli.json_output import json_text
    from nanochat_tui.errors import UserError
    from nanochat_tui.evaluate.folder import EvaluationFolder
    from nanochat_tui.evaluate.grpo.practice import LIBRARY, Batch, Learner, Models, Practice, about, mean_reward
    from nanochat_tui.text import display_safe

    practice = Practice(
        epochs,
        batch_size,
        grpo_n,
        rollout_temperature,
        per_query,
        ground_truth,
        max_experiences,
        max_tokens,
        seed,
        token_budget,
    )
    asked = _questions(questions, chosen, check, seconds, unsafe=unsafe)[:limit]
    kept = _questions(held_out, chosen, check, seconds, unsafe=unsafe) if held_out is not None else []
    if leaked := {question.text for question in asked} & {question.text for question in kept}:
        raise UserError(f"{len(leaked)} held-out questions are practised too; take them out of one of the files")
    solver = open_backend(model, attach, threads, chat=True)
    judge = open_backend(critic_model, critic, None) if critic is not None else solver
    for backend in (solver, judge):
        if not backend.is_chat:
            raise UserError(f"{display_safe(backend.name)} has no chat template, and practice is a conversation")
    named: dict[str, Any] = {"model": solver.name, "critic": judge.name, "questions": [q.name for q in asked]}
    folder = EvaluationFolder(out, about(practice, {**named, "held_out": [question.name for question in kept]}))
    learner = Learner(folder, Models(solver, judge), practice)
    before = mean_reward(learner, "before", kept, EVALUATION_TEMPERATURE)

    def tell(batch: Batch) -> None:
        if not json:
            print(
                f"epoch {batch.epoch + 1}, batch {batch.batch + 1}: mean reward {batch.reward:.3f}, attempts differed "
                f"in {batch.spread} of {batch.groups} groups, {batch.operations} changes, "
                f"{len(batch.experiences)} rules",
                flush=True,
            )

    batches = learner.learn(asked, tell)
    after = mean_reward(learner, "after", kept, EVALUATION_TEMPERATURE)
    difference = _difference(before, after) if kept else None
    answer = {
        "batches": [vars(batch) for batch in batches],
        "tokens": learner.journal.tokens,
        "warnings": learner.warnings,
        "held_out": difference,
        "experiences": str(out / LIBRARY),
    }
    if json:
        print(json_text(answer))
        return
    for warning in learner.warnings[:10]:
        print(f"note: {display_safe(warning)}")
    if difference is not None:
        print(
            f"held-out questions: mean reward {difference['before']:.3f} before, {difference['after']:.3f} after; "
            f"difference {difference['difference']:+.3f} "
            f"(95 % interval {difference['low']:+.3f} to {difference['high']:+.3f})"
        )
    print(f"{learner.journal.tokens:,} tokens; rules: {display_safe(str(out / LIBRARY))}")


EVALUATION_TEMPERATURE = 0.3
"""Of the attempts at held-out questions, as in the authors' evaluation."""


def _questions(path: Path | None, chosen: Any, check: Any, seconds: float, *, unsafe: bool) -> list[Question]:
    from nanochat_tui.evaluate.grpo.rewards import programming_questions, read_questions
    from nanochat_tui.evaluate.problems import shipped_problems
    from nanochat_tui.evaluate.sandbox.isolation import isolation
    from nanochat_tui.evaluate.sandbox.limits import Limits

    if path is not None:
        return read_questions(path, check)
    return programming_questions(shipped_problems(chosen), isolation(unsafe), Limits(seconds=seconds))


def _difference(before: list[list[float]], after: list[list[float]]) -> dict[str, float]:
    """Return mean rewards and their difference, paired by question, with its interval."""
    import numpy as np

    from nanochat_tui.evaluate.comparing import interval

    a, b = np.array(before).mean(axis=1), np.array(after).mean(axis=1)
    low, high = interval(b - a)
    means = float(a.mean()), float(b.mean())
    return {"before": means[0], "after": means[1], "difference": means[1] - means[0], "low": low, "high": high}
