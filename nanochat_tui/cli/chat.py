"""`nanochat-tui chat`: one reply, streamed to stdout."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nanochat_tui.cli.options import (
    AttachOption,
    ContextOption,
    FileOptions,
    I2sLayoutOption,
    JsonOption,
    KvOption,
    MhcOption,
    ModelArgument,
    SpeculationOption,
    ThreadsOption,
    TokenizerOption,
    find_model,
)
from nanochat_tui.errors import UserError


def chat(
    model: ModelArgument = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text to answer or to continue; left out, stdin is read.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message, for models with a template.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Choose among this many likeliest tokens; 0: all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Choose among those that hold this much probability.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one.")] = 0.0,
    repeat_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="End the reply after this many.")] = 256,
    stop: Annotated[list[str] | None, typer.Option(help="End the reply before this text; may be repeated.")] = None,
    top_logprobs: Annotated[int, typer.Option(help="With --json: this many alternatives for every token.")] = 0,
    attach: AttachOption = None,
    mhc: MhcOption = None,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    context: ContextOption = None,
    kv: KvOption = None,
    i2s_layout: I2sLayoutOption = None,
    speculation: SpeculationOption = None,
    json: JsonOption = False,
) -> int:
    """Answer once, streaming to stdout: -p TEXT, or the text on stdin."""
    from nanochat_tui.chat.backend import Backend, Message, Request, SamplingSettings
    from nanochat_tui.cli.narration import Narration
    from nanochat_tui.cli.reply import JsonWriter, TextWriter, play

    # Settings are checked before anything is loaded: a typo should not cost a minute.
    sampling = SamplingSettings(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    Request(prompt="", max_tokens=max_tokens, stop=tuple(stop or ()), top_logprobs=top_logprobs)
    files = FileOptions(mhc, tokenizer, threads, context, kv, i2s_layout, speculation)
    backend: Backend
    if attach is not None:
        from nanochat_tui.chat.remote import RemoteBackend

        files.refuse_with_server()
        backend = RemoteBackend(attach, model)
    else:
        backend = files.backend(find_model(model))
    text = prompt if prompt is not None else _read_stdin()
    with Narration() as narrate:
        backend.load(narrate)
    messages: tuple[Message, ...] = ()
    if backend.is_chat and not raw:
        turns = [Message("user", text.removesuffix("\n") if prompt is None else text)]
        messages = (*([Message("system", system)] if system is not None else []), *turns)
    elif system is not None:
        reason = "--raw leaves the chat template out" if raw else "this model has no chat template"
        raise UserError(f"--system has no place here, because {reason}; leave one of them out.")
    request = Request(
        messages=messages,
        prompt=None if messages else text,
        sampling=sampling,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        top_logprobs=top_logprobs,
    )
    writer = JsonWriter() if json else TextWriter(echo="" if messages else text)
    return play(backend, request, writer)


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            "Give the text with -p TEXT or on stdin; for a conversation, run nanochat-tui without a command."
        )
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise UserError("The text on stdin is not valid UTF-8; convert it first.") from exc
