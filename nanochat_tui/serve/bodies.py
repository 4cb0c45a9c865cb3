"""What clients send: OpenAI's fields, and the few of llama-server and vLLM that everybody uses.

Which fields are done, refused and harmless is in `fields`; those that are done are declared here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AliasChoices, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from nanochat_tui.request import SAMPLING, SamplingParams, Setting
from nanochat_tui.serve.body_types import MAX_INT, Body, Whole, said_as
from nanochat_tui.serve.constraints import Constrained
from nanochat_tui.serve.fields import NO_VALUE, Route, refusals
from nanochat_tui.serve.tools import MAX_CALLS, MadeCall, ToolChoice, ToolList

MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
"""Stop strings, and stop tokens."""
MAX_MESSAGES = 1024
MAX_PARTS = 1024
"""Parts of one message."""
MAX_PROMPTS = 1024
MAX_TOKENIZED = 1 << 20
"""Characters to tokenise at once: a second's work, and more than any context holds."""
MAX_IDS = 1 << 20
"""Token ids in a list: more than any context holds. The lists stop at their first mistake, because a body of a few
megabytes has room for a million of them, and describing each takes kilobytes."""


def refuse(route: Route, raw: Any) -> None:
    """Raise for the first field of a body that would change the reply and is not done; see `fields`."""
    for field in refusals(route, raw) if isinstance(raw, dict) else ():
        unused = f" or give {field.note}" if field.note and field.note != NO_VALUE else ""
        raise PydanticCustomError(
            "unsupported_parameter",
            "{name} is not supported by this server; leave it out{unused}",
            {"name": field.name, "unused": unused.replace("`", "")},
        )


class StreamOptions(Body):
    """Options of a streamed reply."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the token counts.")
    continuous_usage_stats: bool | None = Field(None, description="Every chunk has the token counts so far.")


SEEDS = 2**63
LEAST_TOP_P = 1e-6
"""Stands for a top_p of 0, which OpenAI's interface allows: nothing but the likeliest token."""
StopString = Annotated[str, Field(max_length=1000)]


FOREIGN: dict[str, dict[str, Any]] = {
    "top_k": {"ge": -1, "description": "0 or -1: all."},
    "top_p": {"ge": 0},
    "repeat_penalty": {"validation_alias": AliasChoices("repeat_penalty", "repetition_penalty")},
    "typical_p": {"validation_alias": AliasChoices("typical_p", "typ_p")},
    "seed": {"ge": -MAX_INT - 1, "description": "-1: drawn."},
}
"""What the protocols say of a setting of `SamplingParams` in other words, or allow beyond its bounds."""


def _sampling_field(setting: Setting) -> tuple[Any, Any]:
    words = f"{setting.help[:1].upper()}{setting.help[1:]}."
    most = {"le": MAX_INT} if setting.is_whole else {}
    options: dict[str, Any] = {"description": words, **most, **setting.bounds, **FOREIGN.get(setting.name, {})}
    if "ge" in options:
        options.pop("gt", None)
    return (Whole if setting.is_whole else float) | None, Field(setting.default, **options)


if TYPE_CHECKING:
    _SamplingBody = Constrained
else:
    _SamplingBody = create_model(
        "_SamplingBody", __base__=Constrained, **{name: _sampling_field(one) for name, one in SAMPLING.items()}
    )


class Sampled(_SamplingBody):
    """Fields that both kinds of completion share: those of `SamplingParams`, and these."""

    model: str | None = Field(None, max_length=500, description="Id of the model; left out, the one that is served.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Whole | None = Field(None, ge=-1, le=MAX_INT, description="-1: as many as the context holds.")
    n_predict: Whole | None = Field(None, ge=-2, le=MAX_INT, description="Another name of max_tokens.")
    min_tokens: Whole | None = Field(0, ge=0, le=MAX_INT, description="So many tokens come before anything ends them.")
    ignore_eos: bool | None = Field(False, description="Continue behind the model's own end tokens.")
    stop_token_ids: Annotated[
        list[Annotated[int, Field(ge=0, le=MAX_INT)]] | None, Field(max_length=MAX_STOPS, fail_fast=True)
    ] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None,
        said_as(f"give a text, or a list of up to {MAX_STOPS} texts, each of up to 1000 characters"),
    ] = None
    n: Whole | None = Field(1, ge=1, le=128, description="How many replies; the seed of the i-th one is `seed` + i.")

    cache_prompt: bool | None = Field(True, description="false: the prompt is not looked up in the cache.")
    cache_salt: str | None = Field(None, max_length=1000, description="Who shares the cache of prompts.")
    timings_per_token: bool | None = Field(False, description="Every chunk of a stream has the timings so far.")
    return_progress: bool | None = Field(False, description="A stream says how much of the prompt has been read.")

    @model_validator(mode="after")
    def _options(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_parameter", "stream_options is only allowed with stream=true", {"name": "stream_options"}
            )
        if self.limit is not None and 0 <= self.limit < (self.min_tokens or 0):
            raise PydanticCustomError(
                "invalid_parameter", "min_tokens is more than the reply may have at most", {"name": "min_tokens"}
            )
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return [stop for stop in given if stop]

    @property
    def limit(self) -> int | None:
        """Most tokens of the reply, by whichever name it was given; negative or None: as many as the context holds."""
        return self.n_predict if self.max_tokens is None else self.max_tokens

    @property
    def sampling(self) -> SamplingParams:
        """The sampler's settings; null means the default, as everywhere in OpenAI's interface."""
        told = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        if "top_k" in told:
            told["top_k"] = max(0, told["top_k"])
        if "top_p" in told:
            told["top_p"] = max(LEAST_TOP_P, told["top_p"])
        if "seed" in told:
            told["seed"] = None if told["seed"] == -1 else told["seed"] % SEEDS
        return SamplingParams(**told)

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with the token counts."""
        options = self.stream_options
        return bool(options and (options.include_usage or options.continuous_usage_stats))

    @property
    def usage_always(self) -> bool:
        """Whether every chunk of a stream has the token counts so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


class TextPart(Body):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None,
        said_as('give a text, or a list of parts like {"type": "text", "text": "…"}'),
    ] = None
    name: str | None = Field(None, max_length=1000, description="For templates that want it.")
    reasoning_content: str | None = Field(None, description="What the assistant thought; for templates that want it.")
    tool_calls: Annotated[list[MadeCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    tool_call_id: str | None = Field(None, max_length=1000, description="Which call a message of a tool answers.")

    @model_validator(mode="before")
    @classmethod
    def _kinds(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            if raw.get("role") == "function" or raw.get("function_call"):
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "messages of the older functions are not supported by this server; give tools",
                    {"name": "messages"},
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
    """What is handed to the model's chat template. Names that it would not get are refused."""

    enable_thinking: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, raw: Any) -> Any:
        for name in raw if isinstance(raw, dict) else ():
            if name not in cls.model_fields:
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "chat_template_kwargs takes enable_thinking and nothing else on this server",
                    {"name": "chat_template_kwargs"},
                )
        return raw


BUDGETS = {"minimal": 256, "low": 1024}
"""Tokens of thinking that are meant by `reasoning_effort`."""


class ChatBody(Sampled):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: Whole | None = Field(None, ge=-1, le=MAX_INT, description="The newer name of max_tokens.")
    logprobs: bool | None = False
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None,
        said_as("it is none, minimal, low, medium or high"),
    ] = Field(None, description="none: no thinking; minimal and low: a budget; the others: the model's own.")
    reasoning_budget: Whole | None = Field(
        None,
        ge=-1,
        le=MAX_INT,
        validation_alias=AliasChoices(
            "reasoning_budget", "thinking_budget_tokens", "reasoning_budget_tokens", "thinking_token_budget"
        ),
        description="Tokens of thinking at most; -1: no limit.",
    )
    continue_final_message: bool | None = Field(
        None, description="Continue the last (assistant) message; left out, it is continued if it is the assistant's."
    )
    add_generation_prompt: bool | None = Field(None, description="Whether a turn of the assistant is opened.")
    tools: ToolList | None = Field(None, description="What the model may ask to be called.")
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(True, description="false: one call at most.")

    @model_validator(mode="before")
    @classmethod
    def _chat(cls, raw: Any) -> Any:
        refuse("chat", raw)
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
        if self.continue_final_message and self.add_generation_prompt:
            raise PydanticCustomError(
                "invalid_parameter",
                "continue_final_message and add_generation_prompt exclude each other",
                {"name": "add_generation_prompt"},
            )
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of the reply, see `Sampled.limit`."""
        return super().limit if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def continues(self) -> bool:
        """Whether the reply is the rest of the last message."""
        if self.continue_final_message is not None or self.add_generation_prompt:
            return bool(self.continue_final_message)
        return self.messages[-1].role == "assistant" and not self.messages[-1].tool_calls

    @property
    def budget(self) -> int | None:
        """Most tokens of thinking, None without a limit."""
        if self.reasoning_budget is not None:
            return None if self.reasoning_budget < 0 else self.reasoning_budget
        return BUDGETS.get(self.reasoning_effort or "")

    @property
    def thinking(self) -> bool | None:
        """Whether the model is to think, None if the request does not say."""
        options = self.chat_template_kwargs
        if options is not None and options.enable_thinking is not None:
            return options.enable_thinking
        return False if self.reasoning_effort == "none" else None


TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]
Several = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)


class CompletionBody(Sampled):
    """`POST /v1/completions`."""

    prompt: Annotated[
        str | TokenIds | Annotated[list[str], Several] | Annotated[list[TokenIds], Several],
        said_as(
            "give a text, a list of texts, a list of token ids (0 or more), or a list of those; no list may be empty"
        ),
    ]
    suffix: str | None = Field(None, description="The text that follows, for models that can fill in the middle.")
    max_tokens: Whole | None = Field(16, ge=-1, le=MAX_INT, description="-1: as many as the context holds.")
    logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Alternatives per token.")
    echo: bool | None = Field(False, description="Begin the reply with the prompt.")
    add_special_tokens: bool | None = Field(True, description="Whether a text begins with the model's own token.")
    best_of: Whole | None = Field(None, ge=1, le=128, description="Replies written; the n likeliest are answered.")

    @model_validator(mode="before")
    @classmethod
    def _completion(cls, raw: Any) -> Any:
        refuse("completions", raw)
        return raw

    @model_validator(mode="after")
    def _check(self) -> CompletionBody:
        n = self.n or 1
        if self.best_of is not None and self.best_of < n:
            raise PydanticCustomError(
                "invalid_parameter", "best_of is less than n, the replies to answer with", {"name": "best_of"}
            )
        if self.stream and (self.best_of or n) > n:
            raise PydanticCustomError(
                "invalid_parameter",
                "with best_of greater than n the replies are known when all are written; leave out stream",
                {"name": "best_of"},
            )
        if self.echo and self.suffix and self.logprobs is not None:
            raise PydanticCustomError(
                "unsupported_parameter",
                "echo with logprobs and suffix is not supported: the prompt is not read in the order of the text",
                {"name": "echo"},
            )
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of the reply, see `Sampled.limit`; 16 if none of its names was given, as OpenAI has it."""
        if self.max_tokens is None or "max_tokens" not in self.model_fields_set:
            return 16 if self.n_predict is None else self.n_predict
        return self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        return prompts_of(self.prompt)


def prompts_of(given: str | Sequence[int] | Sequence[str] | Sequence[list[int]]) -> list[str | list[int]]:
    """Return texts, each as text or token ids, from one or several of them."""
    if isinstance(given, str):
        return [given]
    ids = [part for part in given if isinstance(part, int)]
    return [ids] if ids else [part for part in given if not isinstance(part, int)]


ModelName = Field(None, max_length=500, description="Id of the model; left out, the one that is served.")


class ModelBody(Body):
    """`POST /models/load` and `/models/unload`: the name of a listed model."""

    model: str = Field(min_length=1, max_length=500)


class TokenizeBody(Body):
    """`POST /tokenize`, as llama-server takes it."""

    model: str | None = ModelName

    content: str = Field(max_length=MAX_TOKENIZED)
    add_special: bool | None = Field(False, description="Begin with the model's begin-of-text token.")
    parse_special: bool | None = Field(True, description="Whether marks such as <|im_end|> are read as tokens.")
    with_pieces: bool | None = False


class DetokenizeBody(Body):
    """`POST /detokenize`, as llama-server takes it."""

    model: str | None = ModelName

    tokens: Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]
