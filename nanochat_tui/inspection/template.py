"""A file's chat template, or its family's, tried on a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFValue
from nanochat_tui.formats.gguf.values import metadata_string
from nanochat_tui.model.chat.families import chat_format
from nanochat_tui.model.chat.template import render
from nanochat_tui.model.tokenizer.patterns import repaired_names

SAMPLE: tuple[Mapping[str, str], ...] = (
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is a ternary weight?"},
    {"role": "assistant", "content": "One of −1, 0 and +1, times a scale."},
    {"role": "user", "content": "And a trit?"},
)
"""A conversation with every ordinary role, for a template to be tried on."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a template made of a conversation: a prompt, or the sentence that says why not."""

    text: str | None
    error: str | None
    note: str | None = None
    """What was assumed, and what had to be changed for it to work."""


def template_of(metadata: Mapping[str, GGUFValue]) -> tuple[str | None, str | None]:
    """Return the template the chat would use, None for a model that only continues text, and what was assumed for it:
    a missing, broken or placeholder template gives way to that of the model's family.
    """
    try:
        used = chat_format(metadata)
        if used is not None:
            return used.template, used.note
        # the file's own, to say what ails it
        return metadata_string(metadata, "tokenizer.chat_template", "") or None, None
    except UserError:  # a key or the vocabulary is of another type
        return None, None


def special_tokens(metadata: Mapping[str, GGUFValue]) -> tuple[str, str]:
    """Return the texts of BOS and EOS; '' where the file names none."""
    found = metadata.get("tokenizer.ggml.tokens")
    tokens = repaired_names(found.value)[0] if found is not None and isinstance(found.value, list) else []

    def text(which: str) -> str:
        number = metadata.get(f"tokenizer.ggml.{which}_token_id")
        if number is None or not isinstance(number.value, int) or not 0 <= number.value < len(tokens):
            return ""
        return str(tokens[number.value])

    return text("bos"), text("eos")


def render_sample(
    metadata: Mapping[str, GGUFValue],
    messages: Sequence[Mapping[str, Any]] = SAMPLE,
    *,
    add_generation_prompt: bool = True,
    enable_thinking: bool | None = None,
) -> Rendering:
    """Render a file's template, or its family's. One that refuses a system message is tried without. Never raises."""
    template, assumed = template_of(metadata)
    if template is None:
        return Rendering(None, "the file has no chat template; text is completed as it is")
    bos, eos = special_tokens(metadata)

    def attempt(said: Sequence[Mapping[str, Any]]) -> str:
        return render(
            template,
            said,
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
        )

    try:
        return Rendering(attempt(messages), None, assumed)
    except UserError as error:
        without = [message for message in messages if message["role"] != "system"]
        if len(without) == len(messages):
            return Rendering(None, str(error))
        try:
            left_out = "the template takes no system message; rendered without"
            return Rendering(attempt(without), None, left_out if assumed is None else f"{assumed}; {left_out}")
        except UserError:
            return Rendering(None, str(error))
