"""Reading a training checkpoint without PyTorch: `model.safetensors` and the shape in `state.json`.

Everything is checked against the model's shape before a weight is read, and every weight for being finite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from nanochat_tui.errors import plain_reason
from nanochat_tui.export.errors import CheckpointError
from nanochat_tui.formats.adapters import DOWN, UP, Adapter
from nanochat_tui.formats.checksums import STATE_FILE, verify_sealed
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.architectures.description import Part
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.text import display_safe

MAX_STATE_BYTES = 1 << 26
"""Size of a `state.json` beyond which it is not one."""

TERNARY = "ternary"
"""Key of a checkpoint's state.json: whether its last step was computed with ternary weights; earlier ones all were."""

Weights = dict[str, NDArray[np.float32]]


def load_checkpoint(folder: Path | str) -> tuple[ModelConfig, Weights]:
    """Read the model of a checkpoint folder (`RUN/step_N` or `RUN/final`).

    Returns its shape, and its weights by GGUF name, float32, matrices [outputs, inputs], mHC records [9 or 40].
    Raises CheckpointError if a file is missing or damaged, the shape is impossible, a tensor is missing, unknown or
    of the wrong shape or dtype, or a weight is not finite.
    """
    place = Path(folder)
    if place.is_dir() and not (place / STATE_FILE).exists() and (place / "config.json").exists():
        raise CheckpointError(f"{display_safe(str(place))} is a run; give one of its checkpoints, {_names(place)}")
    config = read_config(place)
    state = _read_state(place)
    if state.get(TERNARY) is False:
        raise CheckpointError(
            f"the checkpoint {display_safe(str(place))} was trained in full precision so far and is no ternary model; "
            "use one of its ternary phase (--quantise-with-decay), or eval, which measures it as it is"
        )
    if lora_settings(place) is not None:
        raise CheckpointError(
            f"the checkpoint {display_safe(str(place))} is that of an adapter (--lora-rank): nanochat-train export "
            "writes it, and its model runs with it as --lora"
        )
    verify_sealed(place, state, ("model.safetensors",))
    return config, _read_weights(place / "model.safetensors", nanochat.parts(config))


def lora_settings(folder: Path) -> tuple[int, float] | None:
    """Return rank and alpha of a checkpoint that trained an adapter; None for any other. Raises CheckpointError."""
    config = _read_state(folder).get("config")
    if not isinstance(config, dict) or not config.get("lora_rank"):
        return None
    rank, alpha = config["lora_rank"], config.get("lora_alpha")
    if not _fits(rank, "int") or not isinstance(alpha, int | float) or rank < 1:
        raise CheckpointError(f"{display_safe(str(folder / STATE_FILE))} does not say the size of its adapter")
    return rank, float(alpha)


def starting_model(folder: Path) -> Path:
    """Return the path of the model that an adapter's run started from. Raises CheckpointError."""
    found = (_read_state(folder).get("config") or {}).get("init_from")
    if not isinstance(found, str):
        raise CheckpointError(f"{display_safe(str(folder / STATE_FILE))} does not say of which model its adapter is")
    return Path(found)


def load_adapter(folder: Path) -> tuple[Adapter, ModelConfig, Weights]:
    """Return what a checkpoint trained next to its model's weights, the model's shape, and those weights.

    Raises CheckpointError as `load_checkpoint` does, and if it trained all weights.
    """
    config, settings = read_config(folder), lora_settings(folder)
    if settings is None:
        raise CheckpointError(f"the checkpoint {display_safe(str(folder))} trained all weights and holds no adapter")
    verify_sealed(folder, _read_state(folder), ("model.safetensors",))
    rank, alpha = settings
    parts, stems = dict(nanochat.parts(config)), []
    for part in nanochat.parts(config).values():
        if part.role == "ternary":
            stems.append(stem := part.name.removesuffix(".weight"))
            rows, columns = part.shape
            parts[stem + DOWN] = Part(stem + DOWN, (rank, columns), "vector")
            parts[stem + UP] = Part(stem + UP, (rows, rank), "vector")
    weights = _read_weights(folder / "model.safetensors", parts)
    pairs = {f"{stem}.weight": (weights.pop(stem + DOWN), weights.pop(stem + UP)) for stem in stems}
    return Adapter(nanochat.NAME, alpha, pairs), config, weights


def read_config(folder: Path) -> ModelConfig:
    """Return the shape in a checkpoint's `state.json`. Raises CheckpointError."""
    name = display_safe(str(folder / STATE_FILE))
    state = _read_state(folder)
    shape = state.get("model")
    if not isinstance(shape, dict):
        raise CheckpointError(f'{name} does not describe a model (no "model" object)')
    return _config(shape, name)


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    name = display_safe(str(path))
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise CheckpointError(f"{name} is too large to be the state of a checkpoint")
        state = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{name} cannot be read ({plain_reason(error)}); give the folder of a checkpoint, such as RUN/final"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON; the checkpoint is damaged, use an earlier one") from error
    return state if isinstance(state, dict) else {}


def _names(run: Path) -> str:
    found = sorted(path.parent.name for path in run.glob(f"*/{STATE_FILE}"))
    return f"such as {display_safe(found[0])}" if found else "of which there are none yet"


def _config(shape: dict[str, Any], name: str) -> ModelConfig:
    known = {field.name: field for field in fields(ModelConfig)}
    unknown = sorted(set(shape) - set(known))
    if unknown:
        raise CheckpointError(
            f"{name} describes a model with “{display_safe(unknown[0])}”, which this version does not know; update it"
        )
    for key, field in known.items():
        if key not in shape:
            if field.default is MISSING:
                raise CheckpointError(f"{name} does not say the model's {key}")
            continue
        value = shape[key]
        if not _fits(value, str(field.type)):
            raise CheckpointError(f"{name} gives the model's {key} as {display_safe(repr(value))}")
    try:
        return ModelConfig(**shape)
    except ValueError as error:
        raise CheckpointError(f"{name} describes an impossible model: {error}") from error


def _fits(value: object, kind: str) -> bool:
    """Whether a JSON value is of a field's type; JSON writes 10000.0 as it likes, and True is no number."""
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    return isinstance(value, int | float) if kind == "float" else isinstance(value, int)


def _read_weights(path: Path, expected: Mapping[str, Part]) -> Weights:
    name = display_safe(str(path))
    weights: Weights = {}
    try:
        with safe_open(path, framework="numpy") as file:
            found = set(file.keys())
            unknown = sorted(found - set(expected))
            if unknown:
                raise CheckpointError(
                    f"{name} holds the tensor {display_safe(unknown[0])}, which its model has no place for"
                )
            for part in expected.values():
                if part.name not in found:
                    raise CheckpointError(f"{name} has no tensor {part.name}; the checkpoint is incomplete")
                view = file.get_slice(part.name)
                shape, dtype = tuple(view.get_shape()), view.get_dtype()
                if shape != part.shape or dtype != "F32":
                    raise CheckpointError(
                        f"the tensor {part.name} in {name} is {dtype} {list(shape)} "
                        f"and should be F32 {list(part.shape)}"
                    )
                values: NDArray[np.float32] = file.get_tensor(part.name)
                # the sum is finite unless a value is not, or the values are absurd; it needs no mask in memory
                if not np.isfinite(values.sum(dtype=np.float64)):
                    raise CheckpointError(
                        f"the tensor {part.name} in {name} holds NaN or infinity; the training diverged, "
                        "use an earlier checkpoint"
                    )
                weights[part.name] = values
    except SafetensorError as error:
        raise CheckpointError(f"{name} is damaged ({display_safe(str(error))}); use an earlier checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read ({plain_reason(error)}); check the folder") from error
    return weights
