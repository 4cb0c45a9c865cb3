"""What a trainer tells in addition to its rows: samples, and what is in run.json and in a checkpoint's state.json."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nanochat_tui.export.checkpoint import TERNARY
from nanochat_tui.model.tokenizer.identity import INFILL
from nanochat_tui.train.checkpoint import KEPT
from nanochat_tui.train.recovery import RECOVERY
from nanochat_tui.train.resuming import METHODS
from nanochat_tui.train.sampling import write_sample

if TYPE_CHECKING:
    from nanochat_tui.train.trainer import Trainer


def facts(trainer: Trainer) -> dict[str, Any]:
    """What stands in run.json and in every checkpoint."""
    return {
        "config": trainer.config.model_dump(mode="json"),
        "model": asdict(trainer.model.config),
        "environment": trainer.environment.to_json(),
        "data": trainer.data.description,
        "tokenizer": trainer.identity.to_json(),
        **trainer.methods.facts(),
    }


def state(trainer: Trainer, *, kept: bool) -> dict[str, Any]:
    """What stands in the state.json of a checkpoint that is written now; `kept`: a person asked for it."""
    divergence = trainer.divergence
    return {
        "step": trainer.step,
        "tokens": trainer.tokens,
        "sequences": trainer.loader.origin + trainer.step * trainer.config.sequences_per_step,
        "seconds": trainer.seconds,
        "wall_seconds": trainer.budget.elapsed,
        "grad_norm": trainer.norm if math.isfinite(trainer.norm) else None,
        "multiplier": trainer.multiplier,
        "window": trainer.window,
        "schedule": trainer.schedule.to_json(),
        **facts(trainer),
        TERNARY: trainer.model.quantise,
        INFILL: trainer.marks.to_json() if trainer.marks else None,
        KEPT: kept,
        RECOVERY: trainer.recovery.state(good=not divergence.is_suspected, skipped=divergence.skipped),
        METHODS: trainer.methods.state(),
    }


def sample(trainer: Trainer) -> None:
    """Append a sample to samples.jsonl, where the run wants them and has a tokenizer."""
    config = trainer.config
    if trainer.tokenizer is None or not config.sample_tokens:
        return
    if not (trainer.world.leads or trainer.sharded):  # a model in shares writes with all of them
        return
    text = write_sample(
        trainer.model,
        trainer.tokenizer,
        config.sample_prompt,
        tokens=config.sample_tokens,
        seed=config.seed,
        indentation=trainer.model.config.indentation,
        end=trainer.identity.end_of_text,
    )
    trainer.report.append("samples.jsonl", {"step": trainer.step, "prompt": config.sample_prompt, "text": text})
