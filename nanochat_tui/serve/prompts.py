"""From a request to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanochat_tui.chat.thinking import ThinkingSplitter
from nanochat_tui.model.chat_prompt import encode_chat
from nanochat_tui.model.chat_template import thinking_tags
from nanochat_tui.serve.bodies import ChatBody, ChatMessage
from nanochat_tui.serve.errors import ApiError

if TYPE_CHECKING:
    from nanochat_tui.engine.model import Model

_END = 16
"""Tokens at the end of a prompt among which an opened thought would be."""


def chat_ids(model: Model, body: ChatBody) -> list[int]:
    """Return the ids of a conversation's prompt.

    A model without a chat template continues text, so its prompt is what the messages say, one after the other with
    nothing in between; it has no way to take a system message. Raises ApiError for that, ChatTemplateError if the
    template refuses the messages, UserError if a message is not valid Unicode.
    """
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
    tags = thinking_tags(model.chat_template) if model.chat_template else None
    if tags is None:
        return ThinkingSplitter(None)
    # some templates open the thought themselves
    end = model.codec.decode(ids[-_END:], special=True).rstrip()
    return ThinkingSplitter(tags, inside=end.endswith(tags[0]))


def prompt_ids(model: Model, prompt: str | Sequence[int]) -> list[int]:
    """Return the ids of a text to continue; ids are taken as they are. Raises ApiError for ids that do not exist."""
    if isinstance(prompt, str):
        return model.encode(prompt)
    size = model.config.vocab_size
    if any(token >= size for token in prompt):
        raise ApiError(400, f"a token id of the prompt is outside the vocabulary of {size} tokens", param="prompt")
    return list(prompt)


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
