"""From a request to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanochat_tui.chat.thinking import ThinkingSplitter
from nanochat_tui.model.chat_families import thinking_tags
from nanochat_tui.model.chat_prompt import encode_chat
from nanochat_tui.serve.bodies import ChatBody, ChatMessage
from nanochat_tui.serve.errors import ApiError

if TYPE_CHECKING:
    from nanochat_tui.engine.model import Model

_END = 16
"""Tokens at the end of a prompt among which an opened thought would be."""
_SAMPLED = 16
"""Characters per token of the context in the beginning of a long text that is tokenised first: text has 4 or so."""


def chat_ids(model: Model, body: ChatBody, context: int) -> list[int]:
    """Return the ids of a conversation's prompt.

    A model without a chat template continues text, so its prompt is what the messages say, one after the other with
    nothing in between; it has no way to take a system message. Raises ApiError for that and for a
    text that is far too long, ChatTemplateError if the template refuses the messages, UserError if a message is not
    valid Unicode.
    """
    for message in body.messages:
        if message.role != "assistant":  # of whose turns templates leave the thoughts out
            check_text(model, message.text, context, "messages")
    if model.chat_template is None:
        if any(message.role in ("system", "developer") for message in body.messages):
            raise ApiError(
                400,
                "this model has no chat template and only continues text, so it cannot take a system message; "
                "leave it out",
                param="messages",
            )
        return model.encode("".join(message.text for message in body.messages))
    return encode_chat(
        model.codec,
        model.chat_template,
        [_plain(message) for message in body.messages],
        add_generation_prompt=not body.continue_final_message,
        continue_last=bool(body.continue_final_message),
        enable_thinking=body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs else None,
    )


def _plain(message: ChatMessage) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    plain = {"role": role, "content": message.text}
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    return plain


def splitter(model: Model, ids: Sequence[int]) -> ThinkingSplitter:
    """Return what tells thought from answer in the reply to a prompt."""
    tags = (model.thinking or thinking_tags(model.chat_template)) if model.chat_template else None
    if tags is None:
        return ThinkingSplitter(None)
    # some templates open the thought themselves
    end = model.codec.decode(ids[-_END:], special=True).rstrip()
    return ThinkingSplitter(tags, inside=end.endswith(tags[0]))


def prompt_ids(model: Model, prompt: str | Sequence[int], context: int) -> list[int]:
    """Return the ids of a text to continue; ids are taken as they are.

    Raises ApiError for ids that do not exist and for a text that is far too long.
    """
    if isinstance(prompt, str):
        check_text(model, prompt, context, "prompt")
        return model.encode(prompt)
    size = model.config.vocab_size
    if any(token >= size for token in prompt):
        raise ApiError(400, f"a token id of the prompt is outside the vocabulary of {size} tokens", param="prompt")
    return list(prompt)


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
