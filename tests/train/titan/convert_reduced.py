"""Converts a checkpoint of the reduced shapes of titan_runs.py: CHECKPOINT TARGET SHAPE DATA."""

from __future__ import annotations

import sys
from pathlib import Path

from titan_shapes import REDUCED

from nanochat_tui.model.config import PRESETS
from nanochat_tui.train.titan import convert

checkpoint, target, flavor, data = sys.argv[1:]
PRESETS[flavor] = PRESETS[flavor].with_(**REDUCED)
sys.argv = ["convert", checkpoint, target, "--config", flavor, "--data", str(Path(data))]
convert.main()
