"""What stands in a transcript without turns, as lines of text: what can be done, how far the loading is, what failed.
Pure: no widgets.
"""

from __future__ import annotations

from nanochat_tui.tui.chat.model_slot import ModelSlot
from nanochat_tui.tui.keys import KeyNames

EXAMPLES = [
    "/// Returns the largest value of a slice.\npub fn largest(values: &[i32]) -> Option<i32> {",
    "impl fmt::Display for Point {",
    "fn main() {",
]
"""Beginnings for a model of Rust, offered by the arrow-up key before anything was typed."""


def loading_lines(model: ModelSlot, keys: KeyNames) -> list[str]:
    """Return how far the loading is."""
    if not model.steps:
        return ["Loading …"]
    done = [f"✓ {step}" for step in model.steps[:-1]]
    waited = f" ({model.seconds:.0f} s)" if model.seconds >= 2 else ""
    return [
        *done,
        f"{model.steps[-1]} …{waited}",
        "",
        keys("You can begin to type. {chat.back|Esc} gives up and offers other models."),
    ]


def ready_lines(model: ModelSlot, keys: KeyNames, *, is_chat: bool) -> list[str]:
    """Return what to do with a model that is ready, in a session of messages or of text."""
    last = [
        "",
        keys(
            "{app.help|F1} explains the keys, {app.palette|Ctrl+P} finds every command, {chat.sessions|Ctrl+O} shows "
            "earlier sessions."
        ),
    ]
    if is_chat:
        return [keys("Write a message and press {prompt.send|Enter}."), *last]
    lines = [
        "Completion: the model continues text (/complete goes back to messages)."
        if model.answers
        else "This is a base model: it continues text.",
        "",
        keys("Type the beginning of something and press {prompt.send|Enter}; ↑ brings examples."),
    ]
    if model.can_continue(chat=False):
        lines.append(keys("{prompt.send|Enter} on an empty input continues it."))
    return [*lines, *last]


def failure_lines(text: str, keys: KeyNames) -> list[str]:
    """Return why there is no model, and what can be done about it."""
    return [
        text,
        "",
        keys("{chat.model|Ctrl+G}  choose a model: shipped, recent, in a folder, in Hugging Face's cache"),
        "/attach URL  use a server instead",
        keys(
            "{app.inspect|F3}  inspect the file   {app.train|F4}  train a model   {app.log|F8}  the log   "
            "{chat.sessions|Ctrl+O}  earlier sessions   {app.quit|Ctrl+Q}  leave"
        ),
    ]
