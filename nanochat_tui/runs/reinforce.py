"""Settings of a reinforcement run, on top of the trainer's own. Names and defaults are those of TRL's GRPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sum"]


class ReinforceConfig(BaseModel):
    """What decides rollouts, advantages and loss. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    algorithm: Literal["grpo", "maxrl"] = Field(
        "grpo",
        description="Advantages: grpo, rewards less the group's mean over its deviation; maxrl, successes less the "
        "group's mean over that mean.",
    )
    prompts_per_step: int = Field(8, ge=1, le=1024, description="Prompts of a generation batch.")
    num_generations: int = Field(8, ge=2, le=1024, description="Completions of each prompt: a group.")
    max_completion_length: int = Field(512, ge=1, description="Longest completion in tokens, as far as it fits.")
    temperature: float = Field(1.0, gt=0, le=10, description="Of the rollouts, which draw from the whole distribution.")
    num_iterations: int = Field(1, ge=1, le=64, description="Optimiser steps for each generation batch.")
    epsilon: float = Field(0.2, ge=0, description="Clipping of the probability ratio downwards.")
    epsilon_high: float | None = Field(
        None, ge=0, description="Clipping upwards; epsilon by default. For cispo the largest ratio itself."
    )
    delta: float | None = Field(
        None, gt=0, description="Largest ratio where the advantage is negative; none by default."
    )
    beta: float = Field(0.0, ge=0, description="Weight of the KL divergence to the model that the run starts from.")
    use_bias_correction_kl: bool = Field(True, description="Multiply the KL estimate by the probability ratio.")
    loss_type: LossType | None = Field(
        None,
        description="How token losses are summed up: dapo (default of grpo), over the batch's tokens; grpo, each "
        "completion's mean; bnpo, over a micro-batch's tokens; dr_grpo, over max_completion_length; cispo, clipped "
        "weights; sum (default of maxrl), each completion's sum.",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="Deviation that grpo divides advantages by."
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="Whether the ratio is each token's, or the geometric mean of a completion's."
    )
    mask_truncated_completions: bool = Field(
        False, description="Leave completions out of the loss that max_completion_length cut."
    )
    maxrl_baseline: bool = Field(
        True, description="maxrl: subtract the group's mean; without it only successes are learned from."
    )
    importance_sampling_correction: bool = Field(
        True, description="Weigh by the trainer's probability over the engine's, which drew the tokens."
    )
    importance_sampling_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = Field(
        "sequence_mask", description="Whether that weight is a token's or a completion's; cut to its bounds or dropped."
    )
    importance_sampling_clip_max: float | None = Field(3.0, gt=0, description="Upper bound of that weight.")
    importance_sampling_clip_min: float | None = Field(None, ge=0, description="Lower bound of that weight.")

    @model_validator(mode="after")
    def _check(self) -> ReinforceConfig:
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("loss_type cispo needs epsilon_high, the largest ratio, such as 5.0")
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if low is not None and high is not None and low > high:
            raise ValueError(f"importance_sampling_clip_min {low:g} is above importance_sampling_clip_max {high:g}")
        return self

    @property
    def upper(self) -> float:
        """Epsilon upwards."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def summed(self) -> LossType:
        """The loss type in use."""
        return self.loss_type or ("sum" if self.algorithm == "maxrl" else "dapo")

    @property
    def corrects(self) -> bool:
        """Whether the engine's probabilities are used: it tells those before the temperature."""
        return self.importance_sampling_correction and self.temperature == 1.0

    @property
    def batch(self) -> int:
        """Completions of a generation batch."""
        return self.prompts_per_step * self.num_generations


def parse_reinforce(values: Mapping[str, object]) -> ReinforceConfig:
    """Validate settings; raises UserError naming each that is wrong."""
    try:
        return ReinforceConfig.model_validate(values)
    except ValidationError as error:
        problems = []
        for one in error.errors():
            name, text = ".".join(map(str, one["loc"])), str(one["msg"]).removeprefix("Value error, ")
            if one["type"] == "extra_forbidden":
                text = f"there is no setting {display_safe(name)}"
                name = ""
            problems.append(f"{display_safe(name)}: {text}" if name else text)
        raise UserError(f"the settings of the reinforcement are not valid: {'; '.join(problems)}") from None
