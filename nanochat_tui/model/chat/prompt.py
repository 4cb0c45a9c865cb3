"""From messages to the token ids of a prompt: one way for the chat, the server and the library.

Text that people wrote is kept from becoming marks: `<|im_end|>` in a message is text about a mark, not the end of the
message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nanochat_tui.errors import UserError
from nanochat_tui.model.chat.families import thinking_tags
from nanochat_tui.model.chat.thinking import ThinkingSplitter
from nanochat_tui.model.chat.tools.formats import NoToolsError, ToolFormat, tool_format
from nanochat_tui.model.tokenizer.codec import TextCodec
from nanochat_tui.request import Grammar

_GUARDS: Final = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
"""Characters that Unicode keeps free for a program's own use."""
_END: Final = 16
"""Tokens at the end of a prompt among which a mark that opens the thinking would be."""
Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text}; a template may know more keys."""


class SystemMessageError(UserError):
    """A system message for a model without a chat template, which has no place for one."""


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Makes prompts for one model: of messages by its chat template, or of text.

    template: the model's chat template; None for a model that only continues text. thinking: the marks around what it
    thinks before it answers; None: as the template shows.
    """

    codec: TextCodec
    template: str | None
    thinking: tuple[str, str] | None = None

    def messages_ids(
        self,
        messages: Sequence[Message],
        *,
        prefix: str = "",
        prefix_ids: Sequence[int] = (),
        **options: Any,
    ) -> list[int]:
        """Return the ids of a conversation's prompt, oldest message first.

        Without a template it is what the messages say, one after the other. prefix: beginning of the reply;
        prefix_ids: its exact tokens, used in its place where they are known. options: of `encode_chat`, for templates.
        Raises SystemMessageError, ChatTemplateError if the template refuses the messages, TokenizerError if a text is
        not valid Unicode.
        """
        text = "" if prefix_ids else prefix
        if self.template is not None:
            return [*encode_chat(self.codec, self.template, messages, prefix=text, **options), *prefix_ids]
        if any(message["role"] == "system" for message in messages):
            raise SystemMessageError(
                "This model has no chat template, so it cannot take a system message; leave it out."
            )
        return self.text_ids("".join(message["content"] for message in messages), prefix=prefix, prefix_ids=prefix_ids)

    def text_ids(self, text: str, *, prefix: str = "", prefix_ids: Sequence[int] = ()) -> list[int]:
        """Return the ids of a text to continue, and of the beginning of its continuation, see `messages_ids`.

        Raises TokenizerError if the text is not valid Unicode.
        """
        return [*self.codec.encode(text if prefix_ids else text + prefix), *prefix_ids]

    def splitter(self, ids: Sequence[int]) -> ThinkingSplitter:
        """Return what tells thinking from answer in the reply to a conversation's prompt."""
        tags = self._tags()
        if tags is None:
            return ThinkingSplitter(None)
        # some templates open the thinking themselves
        end = self.codec.decode(ids[-_END:], special=True).rstrip()
        return ThinkingSplitter(tags, inside=end.endswith(tags[0]))

    def constrained(self, grammar: Grammar | None, ids: Sequence[int], budget: int | None = None) -> Grammar | None:
        """Return a grammar of the answer that lets the model think before it, after a conversation's prompt.

        budget: tokens that this may have at most; None: no limit.
        """
        tags = self._tags()
        if tags is None or (grammar is None and budget is None):
            return grammar
        end = self.codec.decode(ids[-_END:], special=True).rstrip()
        if end.endswith(tags[1]):  # some templates write an empty thought where none is wanted
            return grammar
        inside = end.endswith(tags[0])
        return replace(grammar or Grammar.free(), thinking=tags, inside=inside, budget=budget)

    def continued(self, *, inside: bool) -> ThinkingSplitter:
        """Return the same for a reply that goes on in the middle; `inside`: of its thinking."""
        return ThinkingSplitter(self._tags(), inside=inside, begun=True)

    def tool_format(self) -> ToolFormat:
        """Return how the model writes calls of tools. Raises NoToolsError if it cannot be told of any, saying why."""
        if self.template is None:
            raise NoToolsError("this model has no chat template, so it cannot use tools")
        codec = self.codec
        form = tool_format(self.template, codec.mark(codec.bos), codec.mark(codec.eos))
        if any(each in form.begin or each in form.end for each in codec.marks):
            raise NoToolsError("this model's calls of tools are written with tokens that are no text")
        return form

    def _tags(self) -> tuple[str, str] | None:
        return None if self.template is None else self.thinking or thinking_tags(self.template)


def encode_chat(
    codec: TextCodec,
    template: str,
    messages: Sequence[Message],
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

    from nanochat_tui.model.chat.template import ChatTemplateError, render  # a base model needs no Jinja

    bos = codec.mark(codec.bos)
    guarded: Sequence[Message] = messages
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
        eos_token=codec.mark(codec.eos),
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
