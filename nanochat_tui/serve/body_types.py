"""Kinds of values in what clients send, and the base of all bodies."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

MAX_INT = 2**63 - 1


def said_as(text: str) -> WrapValidator:
    """Give a field that may be of several kinds one sentence for all that it may not be.

    Pydantic tries every kind and says of each why it is not that one, under names of its own.
    """

    def check(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            found = {each["type"]: each for each in error.errors(include_url=False, include_input=False)}
        for own in ("unsupported_parameter", "invalid_parameter"):  # what a part of the value says of itself
            if own in found:
                raise PydanticCustomError(own, "{said}", {**found[own]["ctx"], "said": found[own]["msg"]})
        if "string_unicode" in found and isinstance(value, str):
            raise PydanticCustomError("not_unicode", "this text is not valid Unicode")
        if "too_long" in found and isinstance(value, list):
            most = found["too_long"]["ctx"]["max_length"]
            raise PydanticCustomError("too_long", "too long", {"max_length": most})
        raise PydanticCustomError("kind", text)

    return WrapValidator(check)


def _whole(value: Any) -> Any:
    """Take 1.0 for 1: some clients have one kind of number only."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Body(BaseModel):
    """Base of all requests: JSON types are taken strictly, NaN and half surrogate pairs are no values."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())
