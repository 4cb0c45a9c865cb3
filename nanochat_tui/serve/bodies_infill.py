"""What clients send to `/infill`, as llama-server takes it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from nanochat_tui.serve.bodies import Sampled, refuse
from nanochat_tui.serve.body_types import Body

MAX_FILES = 256


class ExtraFile(Body):
    """Another file of the project, or a part of one."""

    filename: str = Field("", max_length=1000)
    text: str


class InfillBody(Sampled):
    """`POST /infill`."""

    input_prefix: str = Field(description="The text before the gap.")
    input_suffix: str = Field(description="The text behind it.")
    prompt: str = Field("", description="Follows the prefix.")
    input_extra: Annotated[list[ExtraFile] | None, Field(max_length=MAX_FILES, fail_fast=True)] = None

    @model_validator(mode="before")
    @classmethod
    def _infill(cls, raw: Any) -> Any:
        refuse("infill", raw)
        return raw

    @model_validator(mode="after")
    def _single(self) -> InfillBody:
        if self.n not in (None, 1):
            raise PydanticCustomError("unsupported_parameter", "n is not supported here; leave it out", {"name": "n"})
        return self
