"""Proof that exported files are the model they were made from: read back, compared bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.export.checkpoint import Weights
from nanochat_tui.export.errors import ExportError
from nanochat_tui.formats.gguf import GGUFFile, TensorInfo, read_gguf
from nanochat_tui.formats.mhc import read_mhc
from nanochat_tui.formats.tensor_types import ternary_matrix
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.mhc import check_sidecar, record_names
from nanochat_tui.model.mhc_verify import MhcReport, verify
from nanochat_tui.model.support import require_described
from nanochat_tui.model.ternary import ternarise
from nanochat_tui.model.tokenizer import from_gguf_metadata, load_tokenizer

MAX_DIFFERENCE = 1e-3
"""Allowed difference of any logit with float activations, where nothing but the order of additions differs."""

MAX_RELATIVE_RMS = 0.1
"""Allowed rms difference of logits over their standard deviation, with int8 activations: a value on a rounding
border may fall either way, and one that does changes all that follows. On the shipped model's held-out prompts PyTorch
in float32 differs from PyTorch in float64 by 2.8 %, at most 4.6 %, so this finds gross faults only; `MAX_DIFFERENCE` is
the test of the files."""


@dataclass(frozen=True, slots=True)
class LogitsAgreement:
    """How far the logits of an engine are from a reference on the same tokens."""

    tokens: int
    relative_rms: float
    """Root mean square of the difference over the standard deviation of the reference."""
    max_difference: float
    same_top: float
    """Share of positions with the same most likely token."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and what the comparison with the checkpoint found; sizes in bytes."""

    config: ModelConfig
    parameters: int
    gguf_path: Path
    gguf_bytes: int
    mhc_path: Path | None
    mhc_bytes: int
    tokenizer_path: Path | None
    ternary_type: str
    table_type: str
    ternary_tensors: int
    ternary_weights: int
    """Weights whose trit and scale were found equal, bit for bit."""
    zero_share: float
    """Share of zeros among them."""
    bits_per_weight: float
    """Bits of tensor data per parameter, over the whole file."""
    table_relative_rms: float
    """What rounding the embedding cost: rms difference over rms value."""
    mhc: MhcReport | None
    logits: LogitsAgreement | None = None
    """Comparison of logits with float activations, if one was made; see `with_logits`."""
    logits_int8: LogitsAgreement | None = None
    """The same with the int8 activations that the model is run with."""

    def with_logits(self, exact: LogitsAgreement, rounded: LogitsAgreement) -> ExportReport:
        """Return the report with comparisons of logits added, with float (`exact`) and int8 activations (`rounded`).

        Raises ExportError if they differ by more than the order of additions, and rounding, explain.
        """
        # written so that NaN is not agreement
        if not (exact.max_difference <= MAX_DIFFERENCE and rounded.relative_rms <= MAX_RELATIVE_RMS):
            raise ExportError(
                f"{self.gguf_path.name} does not compute what the checkpoint computes: logits differ by up to "
                f"{exact.max_difference:.2g} ({MAX_DIFFERENCE:.0e} is allowed), and with rounded activations by "
                f"{rounded.relative_rms:.2%} of their deviation ({MAX_RELATIVE_RMS:.0%} is allowed)"
            )
        return replace(self, logits=exact, logits_int8=rounded)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "gguf": str(self.gguf_path),
            "gguf_bytes": self.gguf_bytes,
            "mhc": None if self.mhc_path is None else str(self.mhc_path),
            "mhc_bytes": self.mhc_bytes,
            "mhc_verified": None if self.mhc is None else self.mhc.ok,
            "tokenizer": None if self.tokenizer_path is None else str(self.tokenizer_path),
            "parameters": self.parameters,
            "ternary_type": self.ternary_type,
            "table_type": self.table_type,
            "ternary_tensors": self.ternary_tensors,
            "ternary_weights": self.ternary_weights,
            "zero_share": self.zero_share,
            "bits_per_weight": self.bits_per_weight,
            "table_relative_rms": self.table_relative_rms,
            "logits": None if self.logits is None else asdict(self.logits),
            "logits_int8": None if self.logits_int8 is None else asdict(self.logits_int8),
        }


def compare_logits(reference: NDArray[np.float32], engine: NDArray[np.float32]) -> LogitsAgreement:
    """Compare two sets of logits [tokens, vocab]. Raises ValueError if their shapes differ."""
    if reference.shape != engine.shape:
        raise ValueError(f"logits of shapes {reference.shape} and {engine.shape} cannot be compared")
    difference = reference.astype(np.float64) - engine
    return LogitsAgreement(
        tokens=len(reference),
        relative_rms=float(np.sqrt(np.mean(difference**2)) / reference.std(dtype=np.float64)),
        max_difference=float(np.abs(difference).max()),
        same_top=float((reference.argmax(axis=-1) == engine.argmax(axis=-1)).mean()),
    )


def verify_export(
    config: ModelConfig,
    weights: Weights,
    gguf_path: Path,
    mhc_path: Path | None = None,
    tokenizer_path: Path | None = None,
) -> ExportReport:
    """Read exported files back and compare them with the checkpoint's shape and weights.

    Trits, scales, norms and mHC records must be equal bit for bit, the embedding equal to its own rounding, the
    shape and the tokenizer identical. Raises ExportError at the first difference.
    """
    with read_gguf(gguf_path) as file:
        require_described(file)
        found = nanochat.from_metadata(file.metadata, file.tensors)
        _demand(found == config, f"{gguf_path.name} describes another shape than the checkpoint")
        zeros = ternary_weights = ternary_tensors = 0
        kinds: dict[str, str] = {}
        table_error = 0.0
        for part in nanochat.parts(config).values():
            info = file.tensor(part.name)
            kinds[part.role] = info.type.name
            if part.role == "ternary":
                trits = _same_ternary(file, info, weights[part.name], config)
                ternary_tensors += 1
                ternary_weights += trits.size
                zeros += trits.size - int(np.count_nonzero(trits))
            elif part.role == "table":
                table_error = max(table_error, _same_table(file, info, weights[part.name]))
            else:
                same = np.array_equal(_bits(file.array(part.name)), _bits(weights[part.name]))
                _demand(same, f"the tensor {part.name} differs from the checkpoint")
        if tokenizer_path is not None:
            same = from_gguf_metadata(file.metadata).to_str() == load_tokenizer(tokenizer_path).to_str()
            _demand(same, f"the tokenizer inside {gguf_path.name} is not the one in {tokenizer_path.name}")
        size = file.size
        data_bytes = sum(info.nbytes for info in file.tensors.values())
        parameters = sum(info.elements for info in file.tensors.values())
    _demand(parameters == config.parameters, f"{gguf_path.name} holds {parameters} parameters, not {config.parameters}")
    return ExportReport(
        config=config,
        parameters=parameters,
        gguf_path=gguf_path,
        gguf_bytes=size,
        mhc_path=mhc_path,
        mhc_bytes=mhc_path.stat().st_size if mhc_path else 0,
        tokenizer_path=tokenizer_path,
        ternary_type=kinds["ternary"],
        table_type=kinds["table"],
        ternary_tensors=ternary_tensors,
        ternary_weights=ternary_weights,
        zero_share=zeros / ternary_weights,
        bits_per_weight=8 * data_bytes / parameters,
        table_relative_rms=table_error,
        mhc=_same_mhc(config, weights, mhc_path),
    )


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ExportError(f"{otherwise}; the exported files must not be used")


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def _same_ternary(
    file: GGUFFile, info: TensorInfo, weight: NDArray[np.float32], config: ModelConfig
) -> NDArray[np.int8]:
    """Return the trits of a tensor, once they and the scales are known to be the checkpoint's."""
    expected, scales = ternarise(weight, config.group_size, least_squares=config.least_squares)
    trits, stored = ternary_matrix(info.type, file.blocks(info.name), info.shape)
    _demand(np.array_equal(trits, expected), f"the trits of {info.name} differ from the checkpoint")
    # one scale per weight of a row is the only common ground of all block and group sizes
    wide = np.repeat(stored.view(np.uint16), info.type.block_elements, axis=-1)
    same = np.array_equal(wide, np.repeat(scales.view(np.uint16), config.group_size, axis=-1))
    _demand(same, f"the scales of {info.name} differ from the checkpoint")
    return trits


def _same_table(file: GGUFFile, info: TensorInfo, weight: NDArray[np.float32]) -> float:
    """Return the relative rms error of a rounded table, once it is known to be rounded by the definition."""
    stored = file.array(info.name)
    if info.type.name == "Q8_0":
        blocks = weight.reshape(-1, 32)
        d = (np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
        q = np.clip(np.rint(np.divide(blocks, d, out=np.zeros_like(blocks), where=d > 0)), -127, 127)
        expected = (q * d).reshape(weight.shape)
    else:
        expected = weight.astype(np.float16).astype(np.float32)
    # compared as numbers, so that a rounded -0.0 may be stored as 0
    _demand(np.array_equal(stored, expected), f"the table {info.name} is not the checkpoint's, rounded")
    square = float(np.mean(weight.astype(np.float64) ** 2))
    return float(np.sqrt(np.mean((stored.astype(np.float64) - weight) ** 2) / square)) if square else 0.0


def _same_mhc(config: ModelConfig, weights: Weights, path: Path | None) -> MhcReport | None:
    if config.n_streams == 1:
        return None
    records = np.stack([weights[name] for name in record_names(config.mhc_records)])
    report = verify(records, config.n_streams, config.mhc_version, config.mhc_records)
    _demand(report.ok, f"the mHC records are not sound ({report.error})")
    if path is not None:
        sidecar = read_mhc(path)
        check_sidecar(
            sidecar.records,
            sidecar.n_streams,
            sidecar.version,
            n_streams=config.n_streams,
            version=config.mhc_version,
            n_records=config.mhc_records,
            inside=records,
        )
    return report
