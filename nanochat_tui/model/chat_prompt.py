"""From messages to the token ids of a prompt.

Text that people wrote is kept from becoming marks: `<|im_end|>` in a message is text about a mark, not the end of the
message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nanochat_tui.model.chat_template import ChatTemplateError, render
from nanochat_tui.model.tokenizer_codec import TextCodec

_GUARDS: Final = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
"""Characters that Unicode keeps free for a program's own use."""


def encode_chat(
    codec: TextCodec,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_last: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
    prefix: str = "",
) -> list[int]:
    """Return the ids of the prompt that a template makes of messages ({"role", "content"}, oldest first).

    Marks in the template become special tokens, marks in messages stay text; BOS is added unless the template writes
    it. continue_last: the last message is the beginning of the reply, and the prompt ends with it. prefix: text that
    follows what the template wrote, tokenised with it; marks in it stay text too.
    Raises ChatTemplateError as `render`, and TokenizerError if a message is not valid Unicode.
    """

    def mark(token: int | None) -> str:
        return "" if token is None else codec.tokenizer.id_to_token(token) or ""

    bos = mark(codec.bos)
    guarded: Sequence[Mapping[str, Any]] = messages
    guard = ""
    texts = "".join(_texts(messages)) + "".join(_texts(tools or [])) + prefix
    if any(name in texts for name in codec.marks):
        guard = next((one for one in _GUARDS if one not in texts and one not in template), "")
        if not guard:
            raise ChatTemplateError("the messages hold every character that is reserved for programs; remove some")
        guarded = _guarded(messages, codec.marks, guard)
        tools = None if tools is None else _guarded(tools, codec.marks, guard)
        prefix = _guarded(prefix, codec.marks, guard)
    text = render(
        template,
        guarded,
        bos_token=bos,
        eos_token=mark(codec.eos),
        add_generation_prompt=add_generation_prompt,
        continue_last=continue_last,
        tools=tools,
        enable_thinking=enable_thinking,
    )
    own_bos = bool(bos) and text.startswith(bos)
    text += prefix
    return codec.encode_guarded(text, guard, bos=not own_bos) if guard else codec.encode(text, bos=not own_bos)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, item in value.items() if key != "role" for text in _texts(item)]
    if isinstance(value, Sequence):
        return [text for item in value for text in _texts(item)]
    return []


def _guarded(value: Any, marks: Sequence[str], guard: str) -> Any:
    """Return a copy in which every mark has the guard behind its first character."""
    if isinstance(value, str):
        for name in marks:
            value = value.replace(name, name[0] + guard + name[1:])
        return value
    if isinstance(value, Mapping):
        return {key: item if key == "role" else _guarded(item, marks, guard) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_guarded(item, marks, guard) for item in value]
    return value
