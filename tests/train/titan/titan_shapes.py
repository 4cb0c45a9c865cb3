"""What the tests change of 7b and 25b-moe."""

from __future__ import annotations

from typing import Any

REDUCED: dict[str, Any] = {
    "dim": 128,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "hidden_dim": 128,
    "context_length": 32,
}
