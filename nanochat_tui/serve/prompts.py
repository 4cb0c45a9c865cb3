"""From a request to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanochat_tui.model.chat.prompt import SystemMessageError
from nanochat_tui.model.chat.tools.calls import template_messages
from nanochat_tui.model.tokenizer.errors import TokenizerError
from nanochat_tui.serve.bodies import ChatBody, ChatMessage
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.tools import Tools, tools_text

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

_SAMPLED = 16
"""Characters per token of the context in the beginning of a long text that is tokenised first: text has 4 or so."""


def chat_ids(model: Model, body: ChatBody, context: int, tools: Tools | None = None) -> list[int]:
    """Return the ids of a conversation's prompt.

    A model without a chat template continues text, so its prompt is what the messages say, one after the other with
    nothing in between; it has no way to take a system message. Raises ApiError for that and for a
    text that is far too long, ChatTemplateError if the template refuses the messages, UserError if a message is not
    valid Unicode.
    """
    for message in body.messages:
        if message.role != "assistant":  # of whose turns templates leave the thoughts out
            check_text(model, message.text, context, "messages")
    if tools is not None:
        check_text(model, tools_text(tools), context, "tools")
    try:
        return model.prompts.messages_ids(
            template_messages([_plain(message) for message in body.messages]),
            tools=None if tools is None else tools.given,
            add_generation_prompt=not body.continues and body.add_generation_prompt is not False,
            continue_last=body.continues,
            enable_thinking=body.thinking,
        )
    except SystemMessageError as error:
        raise ApiError(
            400,
            "this model has no chat template and only continues text, so it cannot take a system message; "
            "leave it out, or start the server with --chat-template",
            param="messages",
        ) from error


def _plain(message: ChatMessage) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": message.text}
    if message.tool_calls:
        plain["tool_calls"] = [call.plain for call in message.tool_calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    return plain


def prompt_ids(model: Model, prompt: str | Sequence[int], context: int, bos: bool = True) -> list[int]:
    """Return the ids of a text to continue, behind the model's begin-of-text token if `bos`; ids are taken as they are.

    Raises ApiError for ids that do not exist and for a text that is far too long.
    """
    if isinstance(prompt, str):
        check_text(model, prompt, context, "prompt")
        return model.codec.encode(prompt, bos)
    size = model.config.vocab_size
    if any(token >= size for token in prompt):
        raise ApiError(400, f"a token id of the prompt is outside the vocabulary of {size} tokens", param="prompt")
    return list(prompt)


def infill_ids(model: Model, prompt: str | Sequence[int], suffix: str, context: int) -> list[int]:
    """Return the ids after which the model writes what stands between a text and `suffix`.

    Raises ApiError for a prompt of ids, a text that is far too long, and a model that cannot fill in.
    """
    if not isinstance(prompt, str):
        raise ApiError(400, "with a suffix the prompt must be text", param="prompt")
    check_text(model, prompt, context, "prompt")
    check_text(model, suffix, context, "suffix")
    try:
        return model.codec.encode_infill(prompt, suffix)[0]
    except TokenizerError as error:
        raise ApiError(400, str(error), param="suffix") from None


def check_text(model: Model, text: str, context: int, param: str) -> None:
    """Raise ApiError if the beginning of a text is already too long, without tokenising megabytes of it.

    A beginning tokenised by itself can differ at its end from the same beginning within the text; one with twice the
    tokens of the context leaves no doubt.
    """
    size = _SAMPLED * context
    while size < len(text):
        if len(model.encode(text[:size])) > 2 * context:
            raise ApiError(
                400,
                f"the prompt has more than {2 * context} tokens and the context holds {context}, prompt and reply "
                "together; shorten the prompt",
                param=param,
                code="context_length_exceeded",
            )
        size *= 4


def check_length(ids: Sequence[int], context: int, param: str) -> None:
    """Raise ApiError if a prompt leaves no place for a reply."""
    if len(ids) >= context:
        raise ApiError(
            400,
            f"the prompt has {len(ids)} tokens and the context holds {context}, prompt and reply together; "
            "shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )
