"""The form of what `--json` prints, the same for every command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SCHEMA = 1
"""Version of the form: raised when a field goes or changes its meaning. New fields may come at any time."""


def json_text(value: Mapping[str, Any], *, indent: int | None = 2, default: Any = None) -> str:
    """Return an object as JSON text with the version of its form as its first field, `schema`.

    Raises ValueError if it has a field of that name already.
    """
    if "schema" in value:
        raise ValueError("`schema` is the version of the form; give the field another name")
    return json.dumps({"schema": SCHEMA, **value}, indent=indent, default=default)
