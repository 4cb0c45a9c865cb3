"""The shape of a run on prepared data; needs neither torch nor torchtitan."""

from __future__ import annotations

from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.tokenizer.identity import TokenizerIdentity
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import read_json
from nanochat_tui.runs.identity import data_identity, fitted


def shape_on(flavor: str, data: Path) -> tuple[ModelConfig, TokenizerIdentity]:
    """Return a named shape with the vocabulary and the indentation of a data folder, and the tokenizer of the data.

    Raises UserError for an unknown shape, or a folder that prepare-data did not make.
    """
    settings = fitted(parse_config({"config": flavor, "data_path": data}))
    identity = data_identity(settings)
    if identity is None:
        raise UserError(f"{data} is no folder made by prepare-data; the model takes its vocabulary from one")
    try:
        indentation = int(read_json(data / "dataset.json")["transform"]["indentation"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{data / 'dataset.json'} lacks or garbles {error}; run prepare-data again") from None
    return settings.model_shape().with_(indentation=indentation), identity
