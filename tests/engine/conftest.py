"""Kernels of every instruction set this machine has, and small models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel_support import EVERY_NAME, Kernels, kernels_for
from support import write_model

from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.model.config import ModelConfig


@pytest.fixture(params=EVERY_NAME)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernels_for(request.param)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Return a function that writes a random model and loads it; files are made once per set of arguments."""
    folder = tmp_path_factory.mktemp("models")
    files: dict[str, Path] = {}

    def make(config: ModelConfig, *, write: dict[str, Any] | None = None, **options: Any) -> Model:
        key = repr((config, write))
        if key not in files:
            files[key] = write_model(folder / f"{len(files)}.gguf", config, **(write or {}))
        return load(files[key], **options)

    return make
