"""What is known about a model's mHC records: found, verified, and what they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile, metadata_int
from nanochat_tui.formats.mhc import read_mhc
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.architectures.keys import MAX_LAYERS
from nanochat_tui.model.config import MHC_RECORD_FLOATS
from nanochat_tui.model.mhc import CURRENT_VERSION, MhcError, check_sidecar, record_names
from nanochat_tui.model.mhc_verify import MhcReport, verify


@dataclass(frozen=True, slots=True)
class MhcInspection:
    """mHC of one model. `report` is None if there were no records to verify; `error` then says why."""

    streams: int
    version: int
    records: int
    error: str | None
    report: MhcReport | None

    @property
    def verified(self) -> bool:
        """Whether every check passed."""
        return self.error is None

    def to_json(self) -> dict[str, Any]:
        """Return the keys of `inspect --json` and the measurements."""
        found: dict[str, Any] = {
            "verified": self.verified,
            "streams": self.streams,
            "records": self.records,
            "error": self.error,
            "version": self.version,
        }
        if self.report is None or self.report.matrices is None:
            return found
        report, matrices = self.report, self.report.matrices
        alpha = alphas(matrices.residual)
        return found | {
            "max_row_error": report.max_row_error,
            "max_column_error": report.max_column_error,
            "composed": report.composed.tolist(),
            "composed_row_error": report.composed_row_error,
            "composed_column_error": report.composed_column_error,
            "stream_memory": report.stream_memory,
            "alive": report.alive,
            "gain_per_sublayer": report.gain_per_sublayer,
            "log2_total_gain": report.log2_total_gain,
            "details": [
                {
                    "name": name,
                    "alpha": float(kept),
                    "read": pre.tolist(),
                    "write": post.tolist(),
                    "mixing": residual.tolist(),
                    "gain": float(gain),
                }
                for name, kept, pre, residual, post, gain in zip(
                    record_names(report.n_records), alpha, *matrices, report.gains, strict=True
                )
            ],
        }


def alphas(residual: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how much of each stream stays in its place, by record [n]: the mean diagonal of H [n, N, N].

    For 2 streams this is the record's alpha; 1 / N means that the streams are averaged.
    """
    kept: NDArray[np.float64] = np.diagonal(residual, axis1=1, axis2=2).astype(np.float64).mean(axis=1)
    return kept


def composed_over_depth(residual: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the mixing has done up to and with each record.

    Returns the products H_k · ... · H_0 [n, N, N], and how much of a difference between streams survives each, [n]:
    the spectral norm of the product minus the averaging matrix.
    """
    count, streams = residual.shape[:2]
    products = np.empty(residual.shape, np.float64)
    product = np.eye(streams)
    for index in range(count):
        product = residual[index].astype(np.float64) @ product
        products[index] = product
    return products, np.linalg.norm(products - 1.0 / streams, 2, axis=(-2, -1)) if count else np.zeros(0)


def inspect_mhc(file: GGUFFile, sidecar: Path | None = None) -> MhcInspection | None:
    """Verify the mHC records inside a GGUF file, and that a `.mhc` sidecar agrees with them.

    Returns None for a model without mHC when no sidecar is given. Never raises for bad records or a bad sidecar:
    the error is part of what is found.
    """
    is_nanochat = nanochat.is_nanochat(file.metadata)
    try:
        streams = metadata_int(file.metadata, f"{nanochat.NAME}.mhc.stream_count", 1)
        version = metadata_int(file.metadata, f"{nanochat.NAME}.mhc.version", CURRENT_VERSION)
        blocks = metadata_int(file.metadata, f"{nanochat.NAME}.block_count", 0, maximum=MAX_LAYERS)
        blocks -= metadata_int(file.metadata, f"{nanochat.NAME}.nextn_predict_layers", 0, maximum=blocks)
    except UserError as error:
        return MhcInspection(0, 0, 0, str(error), None) if is_nanochat or sidecar else None
    if streams == 1 or not is_nanochat:
        if sidecar is None:
            return None
        return _with_sidecar(sidecar, 1, version, 0, None)
    names = record_names(2 * blocks)
    try:
        records = _records(file, names, streams)
    except UserError as error:
        found = sum(name in file.tensors for name in names)
        return MhcInspection(streams, version, found, str(error), None)
    if sidecar is not None:
        checked = _with_sidecar(sidecar, streams, version, len(names), records)
        if checked.error is not None:
            return checked
    report = verify(records, streams, version, len(names))
    return MhcInspection(streams, version, len(records), report.error, report)


def _records(file: GGUFFile, names: list[str], streams: int) -> NDArray[np.float32]:
    width = MHC_RECORD_FLOATS.get(streams)
    if width is None:
        raise MhcError(f"the file claims {streams} streams, and only 1, 2 and 4 exist; it is damaged")
    rows = []
    for name in names:
        info = file.tensor(name)
        if info.shape != (width,) or info.type.name != "F32":
            raise MhcError(
                f"the record {name} is {info.type.name} {list(info.shape)} and should be F32 [{width}]; "
                "the file is damaged"
            )
        rows.append(file.array(name))
    return np.stack(rows) if rows else np.zeros((0, width), dtype=np.float32)


def _with_sidecar(
    path: Path, streams: int, version: int, n_records: int, inside: NDArray[np.float32] | None
) -> MhcInspection:
    """Return what a sidecar is; its error is None if it belongs to the model."""
    try:
        file = read_mhc(path)
    except UserError as error:
        return MhcInspection(streams, version, n_records, str(error), None)
    error_text = None
    try:
        check_sidecar(
            file.records,
            file.n_streams,
            file.version,
            n_streams=streams,
            version=version,
            n_records=n_records,
            inside=inside,
        )
    except MhcError as error:
        error_text = str(error)
    return MhcInspection(file.n_streams, file.version, len(file.records), error_text, None)
