"""What clients send to `/v1/embeddings`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nanochat_tui.serve.bodies import ModelName, TokenIds, prompts_of, refuse
from nanochat_tui.serve.body_types import MAX_INT, Body, Whole, said_as

MAX_INPUTS = 2048
"""OpenAI's limit."""
Several = Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)


class EmbeddingBody(Body):
    """`POST /v1/embeddings`."""

    model: str | None = ModelName
    input: Annotated[
        str | TokenIds | Annotated[list[str], Several] | Annotated[list[TokenIds], Several],
        said_as(f"give a text, a list of up to {MAX_INPUTS} texts, a list of token ids, or a list of those"),
    ]
    encoding_format: Annotated[Literal["float", "base64"] | None, said_as("it is float or base64")] = Field(
        "float", description="base64: of float32, little-endian."
    )
    dimensions: Whole | None = Field(None, ge=1, le=MAX_INT, description="The first ones, scaled to length 1 again.")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, raw: Any) -> Any:
        refuse("embeddings", raw)
        return raw

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts, each as text or token ids."""
        return prompts_of(self.input)
