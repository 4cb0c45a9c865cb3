"""Conversations for fine-tuning: JSON lines become tokens, each with what it is for. Needs no torch.

A line is {"messages": [{"role", "content"}, ...]} or a request and its answer, {"prompt", "completion"}. The model's
own prompts are made of it, by its template; the tokens of the assistant's messages are learned, with the one that ends
each, and all others are only read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.export.start import TextStart
from nanochat_tui.files import atomic_folder
from nanochat_tui.formats.chat_tokens import FIRST, GIVEN, LEARNED, roles_path
from nanochat_tui.formats.checksums import file_sha256
from nanochat_tui.formats.tokens import TokenDtype, TokenWriter
from nanochat_tui.model.chat.prompt import encode_chat
from nanochat_tui.model.chat.template import ChatTemplateError
from nanochat_tui.model.tokenizer import TextCodec, TokenizerError
from nanochat_tui.model.tokenizer.identity import TOKENIZER_FILE
from nanochat_tui.text import display_safe

ROLES = ("system", "user", "assistant")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("question", "answer"))
"""Names of request and answer in use."""
Message = Mapping[str, Any]
Encoded = tuple[list[int], list[int]]
"""Ids and roles of a conversation."""


@dataclass
class ChatReport:
    """What was read and written."""

    conversations: dict[str, int] = field(default_factory=dict)
    """By split."""
    tokens: dict[str, int] = field(default_factory=dict)
    learned: dict[str, int] = field(default_factory=dict)
    too_long: int = 0
    """Conversations left out because they do not fit into the context."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How conversations become data: files, the model's text, its template and the longest conversation in tokens."""

    files: tuple[Path, ...]
    start: TextStart
    template: str
    longest: int
    output: Path
    val: Path | None = None
    val_fraction: float = 0.02
    """Of the conversations, by a hash of their text, where there is no file for validation."""


def prepare_chat(options: ChatOptions, progress: Callable[[int], None] | None = None) -> ChatReport:
    """Write a folder that `train --data-path` takes: tokens, roles and dataset.json, all or nothing.

    `progress` is told how many conversations are done. Raises UserError, naming file and line, for what is no
    conversation, and where nothing is left to train on.
    """
    report = ChatReport()
    tell = progress or (lambda _: None)
    codec = options.start.codec
    vocabulary = codec.tokenizer.get_vocab_size(with_added_tokens=True)
    dtype: TokenDtype = "u16" if vocabulary <= 1 << 16 else "u32"
    done = 0
    with atomic_folder(options.output) as folder:
        with (
            TokenWriter(folder / "train.bin", dtype, vocab_size=vocabulary) as train,
            TokenWriter(folder / "val.bin", dtype, vocab_size=vocabulary) as val,
            roles_path(folder, "train").open("wb") as train_roles,
            roles_path(folder, "val").open("wb") as val_roles,
        ):
            writers = {"train": (train, train_roles), "val": (val, val_roles)}
            for split, (ids, roles) in _encoded(options, report):
                tokens, kinds = writers[split]
                tokens.write(np.array(ids, np.int64))
                kinds.write(bytes(roles))
                report.conversations[split] = report.conversations.get(split, 0) + 1
                report.tokens[split] = report.tokens.get(split, 0) + len(ids)
                report.learned[split] = report.learned.get(split, 0) + roles.count(LEARNED)
                done += 1
                tell(done)
        for split in ("train", "val"):
            if not report.conversations.get(split):
                raise UserError(_nothing(split, report, options))
        (folder / TOKENIZER_FILE).write_bytes(options.start.tokenizer)
        described = _description(options, report, folder, dtype)
        (folder / "dataset.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return report


def _nothing(split: str, report: ChatReport, options: ChatOptions) -> str:
    if report.too_long:
        return (
            f"no conversation is left for {split}: {report.too_long:,} are longer than {options.longest} tokens; give "
            "shorter ones, or a longer --seq-len"
        )
    if split == "val":
        return "the conversations are too few to set some aside for validation; give more, or a file with --val"
    return "the files hold no conversation; give JSON lines with messages, or with prompt and completion"


def _description(options: ChatOptions, report: ChatReport, folder: Path, dtype: TokenDtype) -> dict[str, Any]:
    codec = options.start.codec
    return {
        "format": 1,
        "dtype": dtype,
        "vocab_size": codec.tokenizer.get_vocab_size(with_added_tokens=True),
        "eot_id": codec.eos,
        "tokenizer_sha256": file_sha256(folder / TOKENIZER_FILE),
        "transform": {"indentation": codec.indentation},
        "documents": sum(report.conversations.values()),
        "splits": {
            split: {
                "documents": report.conversations[split],
                "bytes": 0,  # of answers: bits per byte would be of prompts, too
                "tokens": report.tokens[split],
                "sha256": file_sha256(folder / f"{split}.bin"),
            }
            for split in ("train", "val")
        },
        "chat": {
            "template": options.template,
            "learned": report.learned,
            "too_long": report.too_long,
            "files": [{"path": str(path), "sha256": file_sha256(path)} for path in options.files],
            "roles_sha256": {split: file_sha256(roles_path(folder, split)) for split in ("train", "val")},
        },
    }


def _encoded(options: ChatOptions, report: ChatReport) -> Iterator[tuple[str, Encoded]]:
    files = [(path, None) for path in options.files]
    for path, split in [*files, *([] if options.val is None else [(options.val, "val")])]:
        for place, messages in read_conversations(path):
            try:
                ids, roles = encode_conversation(options.start, options.template, messages)
            except (ChatTemplateError, TokenizerError, ConversationError) as error:
                raise UserError(f"{place}: {error}") from None
            if len(ids) > options.longest:
                report.too_long += 1
                continue
            chosen = split or "train"
            if split is None and options.val is None and _fraction(messages) < options.val_fraction:
                chosen = "val"
            yield chosen, (ids, roles)


def _fraction(messages: Sequence[Message]) -> float:
    """A number from 0 to 1 that follows from the answer, so that ways to ask for it are on one side."""
    text = str(messages[-1]["content"])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64


class ConversationError(UserError):
    """A conversation that cannot be learned from."""


def encode_conversation(start: TextStart, template: str, messages: Sequence[Message]) -> Encoded:
    """Return the ids of a conversation and what each is for.

    A prompt is the one that the model will be given, and what the template writes of the answer after it is learned.
    Raises ConversationError where the template does not write the prompt before the answer.
    """
    codec = start.codec
    ids: list[int] = []
    roles: list[int] = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = encode_chat(codec, template, messages[:at])
        whole = encode_chat(codec, template, messages[: at + 1], add_generation_prompt=False)
        answer = _answer(codec, prompt, whole)
        if answer is None or prompt[: len(ids)] != ids:
            raise ConversationError(
                "the chat template does not write an answer right behind its prompt, so that the two cannot be told "
                "apart; choose another with --template"
            )
        ends = [i for i, token in enumerate(answer) if token in codec.end_ids]
        # what stands behind the end, such as a new line, the model is never asked for
        kept = answer[: ends[-1] + 1] if ends else [*answer, _end(start)]
        roles += [GIVEN] * (len(prompt) - len(ids)) + [LEARNED] * len(kept) + [GIVEN] * max(0, len(answer) - len(kept))
        ids = [*prompt, *kept, *answer[len(kept) :]]
    if roles:
        roles[0] = FIRST
    return ids, roles


def _answer(codec: TextCodec, prompt: list[int], whole: list[int]) -> list[int] | None:
    """The ids that are written after a prompt; None where the prompt is no beginning of the whole."""
    if whole[: len(prompt)] == prompt:
        return whole[len(prompt) :]
    # an answer that begins with white space: in one text its first token takes the prompt's last with it
    before, text = codec.decode(prompt, special=True), codec.decode(whole, special=True)
    return codec.encode(text[len(before) :], bos=False) if text.startswith(before) else None


def _end(start: TextStart) -> int:
    end = start.codec.eos
    if end is None:
        raise ConversationError("the model has no token that ends a text; it cannot learn where an answer ends")
    return end


def read_conversations(path: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the conversations of a file of JSON lines, each with its place in words. Raises UserError."""
    shown = display_safe(str(path))
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"{shown}, line {number}"
                    yield place, _conversation(line, place)
    except OSError as error:
        raise UserError(f"cannot read {shown}: {plain_reason(error)}") from None


def _conversation(line: bytes, place: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{place} is not JSON; give one object a line") from None
    if not isinstance(value, dict):
        raise UserError(f"{place} is no JSON object; give one with messages, or with prompt and completion")
    messages = value.get("messages")
    if messages is None:
        for request, answer in PAIRS:
            if request in value and answer in value:
                messages = [
                    {"role": "user", "content": value[request]},
                    {"role": "assistant", "content": value[answer]},
                ]
                break
    if not isinstance(messages, list):
        raise UserError(f"{place} has neither messages nor prompt and completion")
    return [_message(message, place) for message in messages] if _is_told(messages, place) else []


def _is_told(messages: list[Any], place: str) -> bool:
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    if not roles or roles[-1] != "assistant":
        raise UserError(f"{place}: the last message must be the assistant's, which is what is learned")
    return True


def _message(message: Any, place: str) -> dict[str, Any]:
    role, content = message.get("role") if isinstance(message, dict) else None, None
    if role not in ROLES:
        raise UserError(f"{place}: a message's role is one of {', '.join(ROLES)}, not {display_safe(str(role))}")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise UserError(f"{place}: the content of a message must be text that is not empty")
    if role == "assistant":
        content = content.strip("\n")
    return {"role": role, "content": content}
