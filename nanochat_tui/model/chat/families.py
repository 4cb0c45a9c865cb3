"""What a file says about being talked to: its template, or its family's, and whether it thinks aloud.

Nothing here needs Jinja, so that a model which only continues text loads without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nanochat_tui.formats.gguf.values import GGUFValue, metadata_string, metadata_strings
from nanochat_tui.model.tokenizer.patterns import repaired_names

CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3: Final = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
BITNET: Final = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)
FALCON3: Final = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_FAMILIES: Final = (
    ("ChatML", frozenset({"<|im_start|>", "<|im_end|>"}), frozenset[str](), CHATML),
    ("BitNet b1.58 2B4T", frozenset({"<|eot_id|>"}), frozenset({"bitnet", "bitnet-25", "bitnet-b1.58"}), BITNET),
    ("Llama 3", frozenset({"<|start_header_id|>", "<|eot_id|>"}), frozenset[str](), LLAMA3),
    ("Falcon 3", frozenset({"<|user|>", "<|assistant|>", "<|system|>"}), frozenset({"llama"}), FALCON3),
)
"""Name, marks that the vocabulary must have, architectures (none: any) and template of each family."""
ALPACA: Final = (
    "{% for message in messages %}{% if message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}### Response:\n{{ message.content }}\n\n"
    "{% else %}{{ message.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
INSTRUCT: Final = (
    "{% for message in messages %}{% if message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}### Response:\n{{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""Alpaca's headings, with the end-of-text token after each answer: for vocabularies that have no other mark."""
PLAIN: Final = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
"""For models that only continue text: what was said, one message after the other, and no marks."""

NAMED: Final[dict[str, str]] = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "bitnet": BITNET,
    "falcon3": FALCON3,
    "alpaca": ALPACA,
    "instruct": INSTRUCT,
    "plain": PLAIN,
}
"""Templates that people may choose by name."""

PLACEHOLDER: Final = "BITNETAssistant"
"""Stands in the template that BitNet's converter writes into its files: it leaves system messages out and ends the text
before the reply. No model was trained on it, and Microsoft's own BitNet 2B4T was published with it."""

THINKING: Final = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""Marks that published models put around what they think before they answer."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model is talked to."""

    template: str
    thinking: tuple[str, str] | None
    """The marks around what the model thinks before it answers, if it does."""
    note: str | None = None
    """What was assumed, for people; None where the file says it all."""
    family: str | None = None
    """The family whose template it is; None where it is the file's own."""


def chat_format(metadata: Mapping[str, GGUFValue]) -> ChatFormat | None:
    """Return the chat format of a GGUF file, or None for a model that only continues text."""
    template = metadata_string(metadata, "tokenizer.chat_template", "")
    wrong = "the file has no chat template"
    if template:
        from nanochat_tui.model.chat.template import is_usable

        if PLACEHOLDER in template:
            wrong = "the file's chat template is a converter's placeholder, which the model was not trained on"
        elif is_usable(template):
            return ChatFormat(template, thinking_tags(template))
        else:
            wrong = "the file's chat template is not valid Jinja"
    architecture = metadata_string(metadata, "general.architecture", "")
    if architecture == "nanochat" or "tokenizer.ggml.tokens" not in metadata:
        return None
    known = set(repaired_names(metadata_strings(metadata, "tokenizer.ggml.tokens"))[0])
    for name, marks, architectures, family in _FAMILIES:
        if marks <= known and (not architectures or architecture in architectures):
            thinking = ("<think>", "</think>") if {"<think>", "</think>"} <= known else None
            return ChatFormat(family, thinking, f"{wrong}; that of its family, {name}, is used", name)
    return None


def completes_only(metadata: Mapping[str, GGUFValue]) -> str | None:
    """Return why a file's own chat template is not used and text is only continued, for people; None if it has none."""
    template = metadata_string(metadata, "tokenizer.chat_template", "")
    if not template or chat_format(metadata) is not None:
        return None
    wrong = "a converter's placeholder" if PLACEHOLDER in template else "not valid Jinja"
    return f"the file's chat template is {wrong} and its family is not known, so text is only continued"


def thinking_tags(template: str) -> tuple[str, str] | None:
    """Return the marks around a model's thoughts, told by its template, or None if it does not think aloud."""
    return next((tags for tags in THINKING if tags[1] in template), None)
