"""What clients get: OpenAI's objects, and llama-server's for tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

EndReason = Literal["stop", "length", "tool_calls"]
"""OpenAI's words for the end of a reply; one that was cancelled has none."""


class TopLogprob(BaseModel):
    """A token that could have been chosen. `bytes` are its UTF-8 bytes, `logprob` is natural, before temperature."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that was chosen."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Probabilities of a chat reply."""

    content: list[TokenLogprob]


class CompletionLogprobs(BaseModel):
    """Probabilities of a text completion, in parallel lists; `text_offset` counts characters of the choice's text.

    `top_logprobs` has the alternatives that were asked for, and the chosen token even if it is none of them. The first
    token of a prompt has null: nothing precedes it.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CalledFunction(BaseModel):
    """What is to be called; `arguments` is JSON as text."""

    name: str
    arguments: str


class CalledTool(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(BaseModel):
    """A whole chat reply; what the model thought is apart from what it said, and so are its calls of tools."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[CalledTool] | None = Field(None, exclude_if=lambda value: value is None)
    reasoning_content: str | None = None
    refusal: str | None = None


class ChatChoice(BaseModel):
    """One of the replies."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: EndReason


class CompletionChoice(BaseModel):
    """One of the continuations."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: EndReason


class PromptDetails(BaseModel):
    """Prompt tokens that were not computed again."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts of a request. A token that ends the text is not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Timings(BaseModel):
    """llama-server's figures of one reply: counts, milliseconds, tokens per second."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float
    draft_n: int = 0
    draft_n_accepted: int = 0


class ChatCompletion(BaseModel):
    """The answer to `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings | None = None


class Completion(BaseModel):
    """The answer to `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    timings: Timings | None = None


class Embedded(BaseModel):
    """The vector of a text, of length 1: numbers, or base64 of float32, little-endian."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The answer to `POST /v1/embeddings`."""

    object: Literal["list"] = "list"
    data: list[Embedded]
    model: str
    usage: EmbeddingUsage


StopType = Literal["eos", "limit", "word"]
"""llama-server's words for the end of a reply: by itself, by its length, by a stop string."""


class Filled(BaseModel):
    """The answer to `POST /infill`, in llama-server's words; the last event of a stream has an empty `content`."""

    index: int = 0
    content: str
    stop: bool = True
    model: str
    stop_type: StopType
    stopping_word: str
    tokens_predicted: int
    tokens_evaluated: int
    tokens_cached: int
    truncated: bool
    """Whether a part of the texts was left out, because it did not fit."""
    timings: Timings


class ModelStatus(BaseModel):
    """Whether a model is in memory, as llama-server says it; why it could not be loaded; bytes that it takes there."""

    value: Literal["unloaded", "loading", "loaded", "unloading"]
    failed: bool | None = None
    message: str | None = None
    memory: int | None = None


class ModelCard(BaseModel):
    """A model that is served; `meta` as llama-server has it, and whether the model has a chat template."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nanochat"
    meta: dict[str, Any] | None = None
    status: ModelStatus | None = None


class ModelList(BaseModel):
    """The answer to `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The answer to `GET /health`: "loading", "ok", "failed" or "stopping", with the reason of a failure."""

    status: Literal["loading", "ok", "failed", "stopping"]
    message: str | None = None
    models: dict[str, str] | None = None
    """The state of each model, told to those who may use them."""


class ModelChange(BaseModel):
    """The answer to `POST /models/load` and `/models/unload`."""

    success: Literal[True] = True
    model: str
    status: ModelStatus | None


class Props(BaseModel):
    """The answer to `GET /props`: defaults, places, template and marks. No path of the machine is told."""

    default_generation_settings: dict[str, Any]
    total_slots: int
    model_alias: str
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    modalities: dict[str, bool] = {"vision": False, "audio": False}


class Slot(BaseModel):
    """A place in the batch: its number, the most tokens of a request, whether a reply is being written in it."""

    id: int
    n_ctx: int
    is_processing: bool


class TokenPiece(BaseModel):
    """A token and its text; its bytes where they are no whole characters."""

    id: int
    piece: str | list[int]


class Tokens(BaseModel):
    """The answer to `POST /tokenize`."""

    tokens: list[int] | list[TokenPiece]


class Text(BaseModel):
    """The answer to `POST /detokenize`."""

    content: str
