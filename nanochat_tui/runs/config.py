"""The trainer's configuration: one torch-free model shared by trainer, launcher and readers of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import PRESETS, ModelConfig

FIELD_GROUPS: dict[str, str] = {
    "config": "Model",
    "dataset": "Data",
    "seq_len": "Batches",
    "steps": "Length",
    "warmup_steps": "Optimisation",
    "head_frequent": "Softmax",
    "seed": "Machine",
    "log_interval": "Reports",
}
"""Where a form begins a new group: at these fields; a field added later falls into a group by its place."""


class TrainConfig(BaseModel):
    """Everything that decides a training run. Unknown keys are errors, so a typo is never silent."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    config: str = Field("d20", description="Named model shape.", json_schema_extra={"enum": [*PRESETS]})
    n_layers: int | None = Field(None, ge=1, description="Override the preset's number of blocks.")
    vocab_size: int | None = Field(None, ge=2, description="Override the preset's vocabulary.")
    n_streams: Literal[1, 2, 4] | None = Field(None, description="mHC residual streams; 1 is a plain residual.")

    dataset: Literal["tokens", "synthetic"] = Field("tokens", description="Token files, or made-up sequences.")
    data_path: Path | None = Field(None, description="Folder made by prepare-data, or a bare .bin file.")
    val_path: Path | None = Field(None, description="Validation .bin when data_path is a bare file.")
    token_dtype: Literal["u16", "u32"] | None = Field(None, description="Element type of a bare .bin.")
    tokenizer: Path | None = Field(None, description="tokenizer.json for samples; the shipped one by default.")

    seq_len: int | None = Field(None, ge=8, description="Tokens per sequence; the model's context by default.")
    short_seq_len: int = Field(0, ge=0, description="Cut sequences to this length early in the run; 0 = never.")
    short_fraction: float = Field(0.8, ge=0, le=1, description="Share of the run with short sequences.")
    batch_size: int = Field(8, ge=1, description="Sequences per micro-batch.")
    grad_accum: int = Field(1, ge=1, description="Micro-batches per optimiser step.")

    steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps.")
    tokens: int | None = Field(None, ge=1, description="Stop after this many tokens.")
    minutes: float | None = Field(None, gt=0, description="Stop after this much time; the schedule follows.")
    epochs: float | None = Field(None, gt=0, description="Stop after this many passes over the data.")

    warmup_steps: int = Field(100, ge=0, description="Linear warm-up of the learning rate.")
    decay_fraction: float = Field(0.25, ge=0, le=1, description="Last share of the run that decays to zero.")
    muon_lr: float = Field(0.02, gt=0, description="Muon learning rate of the hidden matrices.")
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    ns_steps: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations of Muon.")
    embed_lr: float = Field(0.01, gt=0, description="AdamW learning rate of embedding and head.")
    scalar_lr: float = Field(0.003, gt=0, description="AdamW learning rate of norms and mHC records.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled decay of the hidden matrices.")
    grad_clip: float = Field(1.0, ge=0, description="Largest global gradient norm; 0 = no clipping.")
    init_std: float = Field(0.02, gt=0, description="Initial deviation of the hidden matrices.")

    head_frequent: int = Field(
        0, ge=0, description="Estimate the softmax: exact over this many frequent tokens; 0 = exact over all."
    )
    head_sampled: int = Field(1024, ge=1, description="Rare tokens sampled per step when estimating.")

    seed: int = 0
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Type of the matrix products.")
    compile: bool = Field(True, description="torch.compile the trunk where a C++ compiler is found.")
    threads: int | None = Field(None, ge=1, description="CPU threads; all by default.")

    log_interval: int = Field(10, ge=1)
    eval_interval: int = Field(500, ge=0, description="Steps between evaluations; 0 = only at the end.")
    eval_tokens: int = Field(65_536, ge=1, description="Validation tokens of an evaluation on the way.")
    final_eval_tokens: int | None = Field(None, ge=1, description="Of the last evaluation; all by default.")
    sample_tokens: int = Field(48, ge=0, description="Length of the sample written at each evaluation.")
    sample_prompt: str = "fn main() {\n"
    checkpoint_interval: int = Field(500, ge=0, description="Steps between checkpoints; 0 = only at the end.")
    keep_last: int = Field(3, ge=0, description="Checkpoints to keep besides the final one; 0 = all.")

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.config not in PRESETS:
            raise ValueError(f"config {self.config!r} is not one of {', '.join(PRESETS)}")
        if self.dataset == "tokens" and self.data_path is None:
            raise ValueError("data_path is needed with dataset 'tokens' (make one with prepare-data)")
        if self.sequence_length > self.model_shape().context_length:
            raise ValueError(f"seq_len {self.seq_len} is longer than the model's context")
        if self.short_seq_len and self.sequence_length % self.short_seq_len:
            raise ValueError(f"short_seq_len {self.short_seq_len} does not divide seq_len {self.sequence_length}")
        if not any((self.steps, self.tokens, self.minutes, self.epochs)):
            self.__dict__["epochs"] = 1.0
        return self

    def model_shape(self) -> ModelConfig:
        """The preset with this run's overrides."""
        changes = {k: v for k in ("n_layers", "vocab_size", "n_streams") if (v := getattr(self, k)) is not None}
        return PRESETS[self.config].with_(**changes)

    @property
    def sequence_length(self) -> int:
        """Tokens per training sequence."""
        return self.seq_len or PRESETS[self.config].context_length

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.batch_size * self.grad_accum * self.sequence_length


def parse_config(values: dict[str, object]) -> TrainConfig:
    """Validate keyword values; raises UserError naming each field that is wrong."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise UserError(f"the training configuration is not valid: {problems}") from None
