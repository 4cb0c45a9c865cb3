"""The trainer's configuration: one torch-free model shared by trainer, launcher and readers of runs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import PRESETS, ModelConfig
from nanochat_tui.paths import expanded
from nanochat_tui.text import display_safe

FIELD_GROUPS: dict[str, str] = {
    "config": "Model",
    "dataset": "Data",
    "seq_len": "Batches",
    "steps": "Length",
    "warmup_steps": "Optimisation",
    "head_frequent": "Softmax",
    "mtp_depth": "Methods",
    "processes": "Machine",
    "log_interval": "Reports",
}
"""Where a form begins a new group: at these fields; a field added later falls into a group by its place."""


FREQUENT_TOKENS = 6144
LONGEST_CONTEXT = 8192
LENGTHS = ("steps", "tokens", "minutes", "epochs")
"""Settings of which the first reached ends a run."""
SHAPE_FIELDS = (
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "hidden_dim",
    "context_length",
    "vocab_size",
    "n_streams",
    "n_experts",
    "n_active_experts",
    "least_squares",
)
"""Settings that override those of the named shape."""


class TrainConfig(BaseModel):
    """Everything that decides a training run. Unknown keys are errors, so a typo is never silent."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    config: str = Field("d20", description="Named model shape.", json_schema_extra={"enum": [*PRESETS]})
    dim: int | None = Field(None, ge=1, description="Width of the model; the named shape's by default.")
    n_layers: int | None = Field(None, ge=1, description="Number of blocks; the named shape's by default.")
    n_heads: int | None = Field(None, ge=1, description="Attention heads; the named shape's by default.")
    n_kv_heads: int | None = Field(
        None, ge=1, description="Heads of keys and values; n_heads by default where the named shape has one for each."
    )
    hidden_dim: int | None = Field(None, ge=1, description="Width of the feed-forward networks; the named shape's.")
    context_length: int | None = Field(
        None, ge=8, le=LONGEST_CONTEXT, description="Longest context of the model in tokens; the named shape's."
    )
    vocab_size: int | None = Field(None, ge=2, description="Number of token ids; the data's own by default.")
    n_streams: Literal[1, 2, 4] | None = Field(None, description="mHC residual streams; 1 is a plain residual.")
    n_experts: int | None = Field(
        None, ge=0, le=4096, description="Feed-forward networks per block, chosen by a router; 0 = one and no router."
    )
    n_active_experts: int | None = Field(None, ge=1, description="Experts each token passes through.")

    init_from: Path | None = Field(
        None, description="Checkpoint or GGUF file whose weights the run starts with; the shape is then its own."
    )

    lora_rank: int = Field(
        0,
        ge=0,
        le=1024,
        description="LoRA: so many ranks next to each matrix of the blocks, and no other weight moves.",
    )
    lora_alpha: float = Field(32.0, gt=0, description="What LoRA adds is multiplied by this, divided by the rank.")
    lora_lr: float = Field(0.002, gt=0, description="AdamW learning rate of LoRA's matrices.")

    dataset: Literal["tokens", "synthetic"] = Field("tokens", description="Token files, or made-up sequences.")
    data_path: Path | None = Field(None, description="Folder made by prepare-data, or a bare .bin file.")
    val_path: Path | None = Field(None, description="Validation .bin when data_path is a bare file.")
    token_dtype: Literal["u16", "u32"] | None = Field(None, description="Element type of a bare .bin.")
    verify_data: bool = Field(True, description="Compare the token files with the checksums in dataset.json.")
    tokenizer: Path | None = Field(None, description="tokenizer.json for samples; the data's own by default.")
    fim_rate: float = Field(
        0.0, ge=0, le=1, description="Share of texts shown as prefix, suffix and middle, for filling in; 0.25 is usual."
    )
    fim_spm_rate: float = Field(0.5, ge=0, le=1, description="Share of these with the suffix first, not the prefix.")

    data_mix: str | None = Field(
        None,
        description="Further data folders and their weights, as PATH=0.5, PATH=2; that of data_path is 1. "
        "An epoch is as many tokens as data_path has.",
    )
    held_out: Path | None = Field(
        None,
        description="Folder made by prepare-data whose validation part is measured too, from the start on: what a "
        "fine-tuning forgets.",
    )
    loader_workers: int = Field(1, ge=0, le=64, description="Threads that make batches ahead; 0 = in the loop.")
    prefetch: int = Field(4, ge=1, le=1024, description="Batches made ahead of their use.")

    seq_len: int | None = Field(None, ge=8, description="Tokens per sequence; the model's context by default.")
    short_seq_len: int = Field(0, ge=0, description="Cut sequences to this length early in the run; 0 = never.")
    short_fraction: float = Field(0.8, ge=0, le=1, description="Share of the run with short sequences.")
    batch_size: int = Field(16, ge=1, description="Sequences per micro-batch.")
    grad_accum: int = Field(1, ge=1, description="Micro-batches per optimiser step.")

    steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps.")
    tokens: int | None = Field(None, ge=1, description="Stop after this many tokens.")
    minutes: float | None = Field(None, gt=0, description="Stop after this much time; the schedule follows.")
    epochs: float | None = Field(None, gt=0, description="Stop after this many passes over the data.")

    warmup_steps: int = Field(100, ge=0, description="Linear warm-up of the learning rate.")
    decay_fraction: float = Field(
        0.25, ge=0, le=1, description="Last share of the run, in which the rate decays to zero."
    )
    decay_shape: Literal["linear", "cosine", "sqrt"] = Field(
        "linear", description="How it decays: 1 - u, half a cosine, or 1 - √u."
    )
    muon_lr: float = Field(0.02, gt=0, description="Muon learning rate of the hidden matrices.")
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of Muon.")
    momentum_warmup_steps: int = Field(0, ge=0, description="Steps in which Muon's momentum rises from 0.85; 0 = none.")
    normuon: bool = Field(False, description="Even out the rows of Muon's updates by their running size (NorMuon).")
    ns_steps: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations of Muon.")
    embed_lr: float = Field(0.01, gt=0, description="AdamW learning rate of embedding and head.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the squared gradients.")
    adam_half_life: float | None = Field(
        None, gt=0, description="Half-life of AdamW's squared gradients in tokens, in place of adam_beta2."
    )
    scalar_lr: float = Field(0.003, gt=0, description="AdamW learning rate of norms and mHC records.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled decay of the hidden matrices.")
    cautious_decay: bool = Field(False, description="Decay only weights that their update makes smaller.")
    grad_clip: float = Field(1.0, ge=0, description="Largest global gradient norm; 0 = no clipping.")
    z_loss: float = Field(0.0, ge=0, description="Weight of the squared log of the softmax's sum in the loss.")
    balance_weight: float = Field(
        0.01, ge=0, description="Weight of the loss that spreads tokens evenly over a mixture's experts."
    )
    full_precision: bool = Field(False, description="No ternary weights, no rounding: a twin to compare with.")
    quantise_with_decay: bool = Field(False, description="Full precision until the learning rate decays, then ternary.")
    least_squares: bool = Field(False, description="Group scales of least squared error, not mean magnitudes.")
    init_std: float = Field(0.02, gt=0, description="Initial deviation of the hidden matrices.")

    stop_on_divergence: bool = Field(True, description="End the run when its loss stays above that of guessing.")
    skip_steps: int = Field(
        10, ge=0, description="Steps in a row to skip whose loss or gradient is not a number; with more, it diverged."
    )
    rollbacks: int = Field(
        2,
        ge=0,
        description="Times to go back to the last good checkpoint after a divergence, at half the rate; 0 = end.",
    )

    head_frequent: int | None = Field(
        None,
        ge=0,
        description="Estimate the softmax: exact over so many frequent tokens; 0 = over all. "
        "By default 6144 on a CPU where the vocabulary is large.",
    )
    head_exact_fraction: float = Field(0.05, ge=0, le=1, description="Last share of the run with the exact softmax.")
    head_sampled: int = Field(1024, ge=1, description="Rare tokens sampled per step when estimating.")

    mtp_depth: int = Field(
        0,
        ge=0,
        le=8,
        description="Multi-token prediction: so many blocks behind the trunk, for further tokens; 0 = none.",
    )
    mtp_weight: float = Field(0.2, ge=0, description="Weight of the mean of their losses.")
    collider_ratio: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Collider: share of tokens, those of least excess loss, without a backward pass.",
    )
    collider_reference: Path | None = Field(
        None, description="Checkpoint whose loss is subtracted from a token's own; by default none."
    )
    fire: bool = Field(
        False,
        description="FIRE: make the hidden matrices isometries and reset the optimiser where a phase begins: a resume "
        "on other data or with the rate warmed again, and fire_step.",
    )
    fire_step: int | None = Field(None, ge=0, description="Step before which FIRE is applied, too.")
    fire_iterations: int = Field(10, ge=0, le=50, description="Newton-Schulz iterations of FIRE; 0 = exact, by SVD.")
    fire_matrices: Literal["all", "query-key"] = Field("all", description="Matrices that FIRE replaces.")
    mhc_analysis: bool = Field(
        False, description="Log entropy, gain, streams and gradients of every mHC record, and warn of dead mixing."
    )

    processes: int = Field(
        1,
        ge=1,
        description="Processes that share a step, each with batch_size sequences; in a training torchrun's number.",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="With several processes: each holds the whole model (ddp), or a share of it (fsdp)."
    )
    activation_checkpointing: bool = Field(
        False, description="Compute each block again in the backward pass: less memory, a third more arithmetic."
    )
    seed: int = Field(0, description="Of initial weights, data order and samples.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N; auto: a GPU if present.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Type of the matrix products.")
    compile: bool = Field(True, description="torch.compile the trunk, on a CPU where a C++ compiler is found.")
    threads: int | None = Field(None, ge=1, description="CPU threads; all by default.")

    log_interval: int = Field(10, ge=1, description="Steps between rows of metrics.jsonl.")
    eval_interval: int = Field(500, ge=0, description="Steps between evaluations; 0 = only at the end.")
    eval_tokens: int = Field(65_536, ge=1, description="Validation tokens of an evaluation on the way.")
    final_eval_tokens: int | None = Field(None, ge=1, description="Of the last evaluation; all by default.")
    sample_tokens: int = Field(48, ge=0, description="Length of the sample written at each evaluation.")
    sample_prompt: str = Field("fn main() {\n", description="What each sample continues.")
    checkpoint_interval: int = Field(500, ge=0, description="Steps between checkpoints; 0 = only at the end.")
    keep_last: int = Field(3, ge=0, description="Automatic checkpoints to keep in addition to the final one; 0 = all.")
    keep_best: bool = Field(False, description="Save and keep the checkpoint of the lowest validation loss, too.")

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.config not in PRESETS:
            raise ValueError(f"config {self.config!r} is not one of {', '.join(PRESETS)}")
        if self.dataset == "tokens" and self.data_path is None:
            raise ValueError("data_path is needed with dataset 'tokens' (make one with prepare-data)")
        self.mixed_data()
        if self.sequence_length > self.model_shape().context_length:
            raise ValueError(f"seq_len {self.seq_len} is longer than the model's context")
        if self.short_seq_len and self.sequence_length % self.short_seq_len:
            raise ValueError(f"short_seq_len {self.short_seq_len} does not divide seq_len {self.sequence_length}")
        if self.mtp_depth >= (shortest := self.short_seq_len or self.sequence_length):
            raise ValueError(f"mtp_depth {self.mtp_depth} must be less than the {shortest} tokens of a sequence")
        if self.full_precision and self.quantise_with_decay:
            raise ValueError("full_precision and quantise_with_decay exclude each other")
        for method in ("collider_ratio", "fire", "fire_step", "mhc_analysis"):
            if self.parallel == "fsdp" and getattr(self, method):
                raise ValueError(f"{method} needs the whole model in every process; leave it out, or use parallel ddp")
        for method in ("collider_ratio", "fire", "fire_step"):
            if self.model_shape().n_experts and getattr(self, method):
                raise ValueError(f"{method} does not go together with a mixture of experts; leave it out")
        if self.activation_checkpointing and self.collider_ratio:
            raise ValueError("activation_checkpointing and collider_ratio exclude each other")
        self._check_lora()
        if not any(getattr(self, name) for name in LENGTHS):
            self.__dict__["epochs"] = 1.0
        return self

    def _check_lora(self) -> None:
        if not self.lora_rank:
            return
        if self.init_from is None:
            raise ValueError("lora_rank needs a model to start from, whose weights stay; name it with init_from")
        for name in ("mtp_depth", "collider_ratio", "fire", "fire_step", "full_precision", "quantise_with_decay"):
            if getattr(self, name):
                raise ValueError(f"{name} changes weights that lora_rank keeps; leave one of them out")
        if self.parallel == "fsdp" or self.model_shape().n_experts:
            raise ValueError("lora_rank goes neither with parallel fsdp nor with a mixture of experts; leave it out")

    def with_absolute_paths(self) -> TrainConfig:
        """The same with every path resolved against the working directory, so that a resume finds its files."""
        paths = ("data_path", "val_path", "tokenizer", "collider_reference", "init_from", "held_out")
        found = {name: value for name in paths if (value := getattr(self, name)) is not None}
        update: dict[str, object] = {name: expanded(value).absolute() for name, value in found.items()}
        if self.data_mix is not None:
            mixed = [f"{expanded(path).absolute()}={weight!r}" for path, weight in self.mixed_data()]
            if named := [text for text in mixed if "," in text]:
                raise UserError(f"data_mix cannot name a folder with a comma: {display_safe(named[0])}; rename it")
            update["data_mix"] = ", ".join(mixed)
        return self.model_copy(update=update)

    def mixed_data(self) -> list[tuple[Path, float]]:
        """Folders and weights of `data_mix`. Raises ValueError for text that is no list of them."""
        found: list[tuple[Path, float]] = []
        for part in (self.data_mix or "").split(","):
            if not part.strip():
                continue
            path, _, text = part.strip().rpartition("=")
            try:
                weight = float(text)
            except ValueError:
                weight = math.nan
            if not path.strip() or not 0 < weight < math.inf:
                raise ValueError(f"data_mix must be PATH=WEIGHT, PATH=WEIGHT with weights above 0, not {part.strip()}")
            found.append((Path(path.strip()), weight))
        if found and self.dataset != "tokens":
            raise ValueError("data_mix needs dataset 'tokens'")
        return found

    def model_shape(self) -> ModelConfig:
        """The named shape with this run's overrides. Raises ValueError for numbers that do not go together."""
        changes = {name: value for name in SHAPE_FIELDS if (value := getattr(self, name)) is not None}
        named = PRESETS[self.config]
        if self.n_heads is not None and self.n_kv_heads is None and named.n_kv_heads == named.n_heads:
            changes["n_kv_heads"] = self.n_heads
        return named.with_(nextn=self.mtp_depth, **changes)

    def head_columns(self, *, cuda: bool) -> int:
        """Frequent tokens an estimated softmax is exact over; 0 means the exact softmax."""
        if self.lora_rank:
            return 0  # the table stays as it is, and the answers are few tokens
        if self.head_frequent is not None:
            return self.head_frequent
        # estimating costs more than it saves where the frequent tokens are most of the vocabulary
        return 0 if cuda or self.model_shape().vocab_size < 4 * FREQUENT_TOKENS else FREQUENT_TOKENS

    @property
    def beta2(self) -> float:
        """AdamW's beta2: as given, or 2^(-tokens per step / half-life) (Marek et al. 2025, arXiv 2507.07101)."""
        if self.adam_half_life is None:
            return self.adam_beta2
        return float(2.0 ** (-self.tokens_per_step / self.adam_half_life))

    @property
    def sequence_length(self) -> int:
        """Tokens per training sequence."""
        return self.seq_len or self.model_shape().context_length

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.sequences_per_step * self.sequence_length

    @property
    def sequences_per_step(self) -> int:
        """Training sequences of one optimiser step, over all processes."""
        return self.processes * self.batch_size * self.grad_accum


def parse_config(values: Mapping[str, object], origins: Mapping[str, str] | None = None) -> TrainConfig:
    """Validate settings; raises UserError naming each that is wrong.

    `origins` says where a setting was read, such as "mine.toml, line 12", which the error then begins with.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        problems = []
        for one in error.errors():
            name, text = problem_of(one)
            where = (origins or {}).get(name)
            named = not name or text.startswith(f"{name} ") or name not in TrainConfig.model_fields
            problems.append((f"{where}: " if where else "") + (text if named else f"{name}: {text}"))
        raise UserError(f"the training configuration is not valid: {'; '.join(problems)}") from None


def problem_of(error: ErrorDetails) -> tuple[str, str]:
    """The setting a validation error of pydantic is about ("" when no single one), and what is wrong, in words."""
    message = str(error["msg"]).removeprefix("Value error, ")
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, TrainConfig.model_fields, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return name, f"there is no setting {display_safe(name)}{hint}"
    if name:
        return name, message
    # a rule over several settings names the first of them first
    first = message.split(" ", 1)[0]
    return (first if first in TrainConfig.model_fields else ""), message
