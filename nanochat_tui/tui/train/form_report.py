"""What follows from the fields of a new run, in words: what stands against it, what it costs, what was looked at."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from nanochat_tui.runs.estimate import Estimate
from nanochat_tui.runs.preflight import Check
from nanochat_tui.text import display_safe
from nanochat_tui.tui import numbers

SIGNS = {"ok": ("✓", "$text-success"), "note": (" ", "$text 60%"), "warning": ("!", "$text-warning")}


def problem_lines(problems: dict[str, str], checks: Sequence[Check]) -> Content:
    """What forbids the launch, one line each."""
    said = [f"{name.replace('_', ' ') or 'settings'}: {problem}" for name, problem in problems.items()]
    said += [f"{check.name}: {check.text}" for check in checks if check.state == "error"]
    return Content("\n").join(Content.styled(f"✗ {display_safe(text, 500)}", "$text-error") for text in said)


def check_lines(checks: Sequence[Check]) -> Content:
    """What was looked at and does not forbid it; warnings first."""
    shown = sorted((c for c in checks if c.state != "error"), key=lambda c: c.state != "warning")
    lines = []
    for check in shown:
        sign, style = SIGNS[check.state]
        lines.append(Content.styled(f"{sign} {check.name}: {display_safe(check.text, 300)}", style))
    return Content("\n").join(lines)


def cost_lines(outcome: Estimate, width: int) -> list[str]:
    """What to expect, the time first, in lines of up to `width` cells."""
    if outcome.tokens_per_second:
        time = [f"about {numbers.duration(outcome.seconds)} at {outcome.tokens_per_second:,.0f} tok/s"]
        time.append(f"({display_safe(outcome.basis)})")
    elif outcome.seconds:
        time = [f"{numbers.duration(outcome.seconds)}, as asked"]
    else:
        time = [f"time: {outcome.basis}"]
    steps = f"{outcome.tokens_per_step:,} tokens per step"
    if outcome.total_steps:
        steps = f"{outcome.total_steps:,} steps of {outcome.tokens_per_step:,} tokens"
    if outcome.total_tokens:
        steps += f", {numbers.amount(outcome.total_tokens)} in all"
    size = f"{outcome.parameters:,} parameters, {outcome.ternary_parameters:,} ternary"
    if outcome.active_parameters != outcome.parameters:
        size += f", {outcome.active_parameters:,} active"
    kinds = ("weights", "gradients", "optimizer", "activations")
    held = ", ".join(f"{kind} {numbers.size(getattr(outcome.memory, kind))}" for kind in kinds)
    arithmetic = f"{numbers.short(outcome.flops_per_token)} FLOP per token"
    memory = (
        f"about {numbers.size(outcome.memory_bytes)} of memory, {numbers.size(outcome.checkpoint_bytes)} per checkpoint"
    )
    lines: list[str] = []
    for part in (*time, steps, memory, size, arithmetic, held):
        joined = f"{lines[-1]} · {part}" if lines else part
        if lines and len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines
