"""Named configurations to begin a run from, the same for `--config`, `init-config`, `plan` and the form.

One that is called like a shape (`nano-125m`) may set the run's length, but no other optional setting: the launcher
writes a form's settings as `--config SHAPE` and what differs from it, and an option cannot say "not set".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings by name; what they do not set stays at its default."""

    name: str
    """What `--config` takes."""
    title: str
    """A few words that tell it from the others in the form."""
    purpose: str
    """What it is for, in one line."""
    values: dict[str, object]
    """Fields of the trainer's configuration."""

    @property
    def needs_data(self) -> bool:
        """Whether a data path must be given with it."""
        return self.values.get("dataset", "tokens") == "tokens"


_LONG: dict[str, object] = {"muon_lr": 0.02, "muon_momentum": 0.95, "decay_fraction": 0.2, "checkpoint_interval": 1000}
"""What the original's long runs share: a stable learning rate for 80 % of the run."""
_HUGE: dict[str, object] = {
    "muon_lr": 0.008,
    "batch_size": 1,
    "grad_accum": 32,
    "warmup_steps": 8000,
    "steps": 300_000,
}

_ALL = (
    Preset(
        "try-out",
        "try-out: made-up data",
        "tiny model, made-up data, 200 steps: a minute on any machine",
        {
            "config": "tiny",
            "vocab_size": 256,
            "dataset": "synthetic",
            "seq_len": 64,
            "batch_size": 8,
            "steps": 200,
            "compile": False,
            "eval_interval": 50,
            "checkpoint_interval": 50,
            "warmup_steps": 20,
        },
    ),
    Preset(
        "d20-cpu",
        "CPU: d20, 90 minutes",
        "as the shipped model was trained: short sequences first, estimated softmax",
        {
            "config": "d20",
            "batch_size": 8,
            "short_seq_len": 256,
            "short_fraction": 0.75,
            "ns_steps": 4,
            "head_frequent": 6144,
            "minutes": 90.0,
            "eval_tokens": 49152,
            "checkpoint_interval": 250,
        },
    ),
    Preset(
        "d20-gpu",
        "GPU: d20, one epoch",
        "one pass over the data, large batches, exact softmax",
        {"config": "d20", "device": "cuda", "batch_size": 64, "epochs": 1.0, "warmup_steps": 200},
    ),
    Preset("tiny", "tiny: for tests", "a small shape with the trainer's defaults", {"config": "tiny"}),
    Preset("d20", "d20: the reference", "the reference shape with the trainer's defaults", {"config": "d20"}),
    Preset(
        "d20-e3",
        "d20-e3: long run",
        "d20 with the settings of the original's E3 run",
        {"config": "d20", **_LONG, "batch_size": 8, "grad_accum": 4, "warmup_steps": 2000, "ns_steps": 3}
        | {"steps": 50_000, "decay_shape": "cosine", "loader_workers": 6, "prefetch": 12}
        | {"mtp_depth": 3, "mtp_weight": 0.2, "mhc_analysis": True, "fire": True, "collider_ratio": 0.4},
    ),
    Preset(
        "nano-125m",
        "nano-125m: one GPU",
        "127 million parameters",
        {"config": "nano-125m", **_LONG, "batch_size": 8, "grad_accum": 4, "warmup_steps": 500, "steps": 50_000},
    ),
    Preset(
        "nano-560m",
        "nano-560m: GPUs",
        "374 million parameters, whatever its name says",
        {"config": "nano-560m", **_LONG, "batch_size": 8, "grad_accum": 4, "warmup_steps": 2000, "steps": 50_000},
    ),
    Preset(
        "1b",
        "1b: many GPUs",
        "1.1 billion parameters",
        {"config": "1b", **_LONG, "batch_size": 4, "grad_accum": 8, "warmup_steps": 2000, "steps": 100_000},
    ),
    Preset(
        "7b",
        "7b: a cluster",
        "6.7 billion parameters",
        {"config": "7b", **_LONG, **_HUGE},
    ),
    Preset(
        "25b-moe",
        "25b-moe: a cluster",
        "8 experts of which 2 are active: 37 billion parameters, 11 active",
        {"config": "25b-moe", **_LONG, **_HUGE},
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
