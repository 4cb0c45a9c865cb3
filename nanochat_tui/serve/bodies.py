"""What clients send: OpenAI's fields, and the few of llama-server and vLLM that everybody uses.

Unknown fields are ignored. Known ones that change the reply and that we do not do are refused by name: a client
that asks for JSON must not get prose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_INT = 2**63 - 1
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
MAX_MESSAGES = 1024
MAX_PARTS = 1024
"""Parts of one message."""
MAX_PROMPTS = 1024
MAX_TOKENIZED = 1 << 20
"""Characters to tokenise at once: a second's work, and more than any context holds."""
MAX_IDS = 1 << 20
"""Token ids in a list: more than any context holds. The lists stop at their first mistake, because a body of a few
megabytes has room for a million of them, and describing each takes kilobytes."""

Neutral = Callable[[Any], bool]


def _empty(value: Any) -> bool:
    return value is None or value in ("", [], {}) or value is False


def _text_format(value: Any) -> bool:
    return _empty(value) or (isinstance(value, dict) and value.get("type") == "text")


def _text_only(value: Any) -> bool:
    return _empty(value) or value == ["text"]


def _none_or(*words: str) -> Neutral:
    return lambda value: _empty(value) or value in words


COMMON_UNSUPPORTED: dict[str, Neutral] = {
    "logit_bias": _empty,
    "response_format": _text_format,
    "grammar": _empty,
    "json_schema": _empty,
    "guided_json": _empty,
    "guided_regex": _empty,
    "guided_choice": _empty,
    "guided_grammar": _empty,
    "structured_outputs": _empty,
}
"""Fields that are refused, with the values that mean "not used"."""

CHAT_UNSUPPORTED: dict[str, Neutral] = {
    "tools": _empty,
    "tool_choice": _none_or("none", "auto"),
    "functions": _empty,
    "function_call": _none_or("none", "auto"),
    "modalities": _text_only,
    "audio": _empty,
    "prediction": _empty,
    "web_search_options": lambda value: value is None,
}
COMPLETION_UNSUPPORTED: dict[str, Neutral] = {"suffix": _empty}


def _said_as(text: str) -> WrapValidator:
    """Give a field that may be of several kinds one sentence for all that it may not be.

    Pydantic tries every kind and says of each why it is not that one, under names of its own.
    """

    def check(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            found = {each["type"]: each for each in error.errors(include_url=False, include_input=False)}
        if "string_unicode" in found and isinstance(value, str):
            raise PydanticCustomError("not_unicode", "this text is not valid Unicode")
        if "too_long" in found and isinstance(value, list):
            most = found["too_long"]["ctx"]["max_length"]
            raise PydanticCustomError("too_long", "too long", {"max_length": most})
        raise PydanticCustomError("kind", text)

    return WrapValidator(check)


def _refuse(raw: Any, table: dict[str, Neutral]) -> None:
    if not isinstance(raw, dict):
        return
    for name, neutral in table.items():
        if name in raw and not neutral(raw[name]):
            raise PydanticCustomError(
                "unsupported_parameter", "{name} is not supported by this server; leave it out", {"name": name}
            )


class Body(BaseModel):
    """Base of all requests: JSON types are taken strictly, NaN and half surrogate pairs are no values."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Body):
    """Options of a streamed reply."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the token counts.")


StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class Sampled(Body):
    """Fields that both kinds of completion share."""

    model: str | None = Field(None, max_length=500, description="Id of the model; left out, the one that is served.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=-1, le=MAX_INT, description="-1: as many as the context holds.")
    temperature: float | None = Field(0.8, ge=0, le=100, description="0 always takes the likeliest token.")
    top_k: int | None = Field(40, ge=-1, le=MAX_INT, description="0 or -1: all.")
    top_p: float | None = Field(0.95, ge=0, le=1)
    min_p: float | None = Field(0.0, ge=0, le=1)
    repeat_penalty: float | None = Field(
        1.0, gt=1e-6, le=100, validation_alias=AliasChoices("repeat_penalty", "repetition_penalty")
    )
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=-MAX_INT - 1, le=MAX_INT)
    stop: Annotated[
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None,
        _said_as(f"give a text, or a list of up to {MAX_STOPS} texts, each of 1 to 1000 characters"),
    ] = None
    n: int | None = Field(1, ge=1, le=128, description="How many replies; the seed of the i-th one is `seed` + i.")

    @model_validator(mode="before")
    @classmethod
    def _common(cls, raw: Any) -> Any:
        _refuse(raw, COMMON_UNSUPPORTED)
        return raw

    @model_validator(mode="after")
    def _options(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_parameter", "stream_options is only allowed with stream=true", {"name": "stream_options"}
            )
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(Body):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None,
        _said_as('give a text, or a list of parts like {"type": "text", "text": "…"}'),
    ] = None
    reasoning_content: str | None = Field(None, description="What the assistant thought; for templates that want it.")

    @model_validator(mode="before")
    @classmethod
    def _kinds(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            if raw.get("role") in ("tool", "function") or raw.get("tool_calls") or raw.get("function_call"):
                raise PydanticCustomError(
                    "unsupported_parameter", "messages of tools are not supported by this server", {"name": "messages"}
                )
            parts = raw.get("content")
            for part in parts if isinstance(parts, list) else ():
                kind = part.get("type") if isinstance(part, dict) else None
                if kind in ("image_url", "input_image", "input_audio", "file", "video_url"):
                    raise PydanticCustomError(
                        "unsupported_parameter",
                        "content of type {kind} is not supported by this server, only text",
                        {"name": "messages", "kind": kind},
                    )
        return raw

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class TemplateOptions(Body):
    """What is handed to the model's chat template."""

    enable_thinking: bool | None = None


class ChatBody(Sampled):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=-1, le=MAX_INT, description="The newer name of max_tokens.")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    chat_template_kwargs: TemplateOptions | None = None
    continue_final_message: bool | None = Field(False, description="Go on with the last (assistant) message.")

    @model_validator(mode="before")
    @classmethod
    def _chat(cls, raw: Any) -> Any:
        _refuse(raw, CHAT_UNSUPPORTED)
        return raw

    @model_validator(mode="after")
    def _check(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError(
                "invalid_parameter", "top_logprobs is only allowed with logprobs=true", {"name": "top_logprobs"}
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise PydanticCustomError(
                "invalid_parameter",
                "continue_final_message needs a last message of the assistant",
                {"name": "continue_final_message"},
            )
        return self


TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]
Several = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)


class CompletionBody(Sampled):
    """`POST /v1/completions`."""

    prompt: Annotated[
        str | TokenIds | Annotated[list[str], Several] | Annotated[list[TokenIds], Several],
        _said_as(
            "give a text, a list of texts, a list of token ids (0 or more), or a list of those; no list may be empty"
        ),
    ]
    max_tokens: int | None = Field(16, ge=-1, le=MAX_INT, description="-1: as many as the context holds.")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Alternatives per token.")
    echo: bool | None = Field(False, description="Begin the reply with the prompt.")
    best_of: int | None = Field(None, ge=1, le=128)

    @model_validator(mode="before")
    @classmethod
    def _completion(cls, raw: Any) -> Any:
        _refuse(raw, COMPLETION_UNSUPPORTED)
        return raw

    @model_validator(mode="after")
    def _check(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise PydanticCustomError(
                "unsupported_parameter", "best_of other than n is not supported by this server", {"name": "best_of"}
            )
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError(
                "unsupported_parameter",
                "echo together with logprobs is not supported: probabilities are computed for new tokens only",
                {"name": "echo"},
            )
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        return [ids] if ids else [part for part in self.prompt if not isinstance(part, int)]


class TokenizeBody(Body):
    """`POST /tokenize`, as llama-server takes it."""

    content: str = Field(max_length=MAX_TOKENIZED)
    add_special: bool | None = Field(False, description="Begin with the model's begin-of-text token.")
    with_pieces: bool | None = False


class DetokenizeBody(Body):
    """`POST /detokenize`, as llama-server takes it."""

    tokens: Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]
