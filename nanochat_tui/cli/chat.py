"""`nanochat-tui chat`: one reply, streamed to stdout."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nanochat_tui.cli.options import (
    ActivationsOption,
    AttachOption,
    ContextOption,
    FileOptions,
    HfOption,
    I2sLayoutOption,
    JsonOption,
    KvOption,
    LoraOption,
    MhcOption,
    ModelArgument,
    SpeculationOption,
    ThreadsOption,
    TokenizerOption,
    find_model,
    with_setting_options,
)
from nanochat_tui.cli.tool_options import (
    NONE_ALLOWED,
    AllowToolOption,
    McpOption,
    ToolRoundsOption,
    ToolTimeoutOption,
    allowed_tools,
)
from nanochat_tui.errors import UserError
from nanochat_tui.request import Grammar, with_settings
from nanochat_tui.text import display_safe


@with_setting_options(before="stop")
def chat(
    model: ModelArgument = None,
    hf: HfOption = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text to answer or to continue; left out, stdin is read.")
    ] = None,
    suffix: Annotated[
        str | None,
        typer.Option("--suffix", help="The text that follows: the model writes what is between, if it has learnt to."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message, for models with a template.")] = None,
    experience: Annotated[
        Path | None, typer.Option(help="Rules that the model reads first, such as nanochat-tui grpo writes.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    stop: Annotated[list[str] | None, typer.Option(help="End the reply before this text; may be repeated.")] = None,
    top_logprobs: Annotated[int, typer.Option(help="With --json: this many alternatives for every token.")] = 0,
    json_schema: Annotated[
        str | None,
        typer.Option("--json-schema", metavar="SCHEMA", help="Reply in JSON after this schema; @FILE reads it there."),
    ] = None,
    grammar: Annotated[
        str | None,
        typer.Option("--grammar", metavar="TEXT", help="Reply after a grammar in GBNF or Lark's form; or @FILE."),
    ] = None,
    regex: Annotated[
        str | None, typer.Option("--regex", metavar="PATTERN", help="Reply with what matches this pattern, or @FILE.")
    ] = None,
    thinking: Annotated[
        Literal["stderr", "stdout", "hide"],
        typer.Option(help="Where the thinking of a model goes that thinks before it answers; stdout gets the answer."),
    ] = "stderr",
    mcp: McpOption = None,
    allow_tool: AllowToolOption = None,
    tool_choice: Annotated[
        Literal["auto", "required"],
        typer.Option(help="Whether the reply may begin with text (auto), or is a call of a tool first (required)."),
    ] = "auto",
    tool_rounds: ToolRoundsOption = 8,
    tool_timeout: ToolTimeoutOption = 60.0,
    attach: AttachOption = None,
    mhc: MhcOption = None,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    context: ContextOption = None,
    kv: KvOption = None,
    i2s_layout: I2sLayoutOption = None,
    speculation: SpeculationOption = None,
    activations: ActivationsOption = None,
    lora: LoraOption = None,
    json: JsonOption = False,
    **settings: Any,
) -> int:
    """Answer once, streaming to stdout: -p TEXT, or the text on stdin."""
    from nanochat_tui.chat.backend import Backend, Message, Request
    from nanochat_tui.chat.experience import read_experiences, with_experiences
    from nanochat_tui.cli.narration import Narration
    from nanochat_tui.cli.reply import JsonWriter, TextWriter, play

    # Settings are checked before anything is loaded: a typo should not cost a minute.
    shape = _shape(json_schema, grammar, regex)
    request = Request(prompt="", stop=tuple(stop or ()), top_logprobs=top_logprobs, grammar=shape)
    request = with_settings(request, **settings)
    rules = read_experiences(experience) if experience is not None else {}
    files = FileOptions(mhc, tokenizer, threads, context, kv, i2s_layout, speculation, activations, lora)
    backend: Backend
    if allow_tool and shape is not None:
        raise UserError("--allow-tool and what the reply must look like exclude each other; leave one of them out.")
    if mcp is not None:
        from nanochat_tui.chat.tools.config import read_servers

        read_servers(mcp)
    if attach is not None:
        from nanochat_tui.chat.remote import RemoteBackend

        files.refuse_with_server()
        if hf is not None:
            raise UserError("-hf is for models that run here; with --attach name one of the server's as MODEL.")
        backend = RemoteBackend(attach, model)
    else:
        files.check()
        backend = files.backend(find_model(model, hf, chat=not raw and suffix is None))
    text = prompt if prompt is not None else _read_stdin()
    with Narration() as narrate:
        backend.load(narrate)
    messages: tuple[Message, ...] = ()
    if backend.is_chat and not raw and suffix is None:
        turns = [Message("user", with_experiences(text.removesuffix("\n") if prompt is None else text, rules))]
        messages = (*([Message("system", system)] if system is not None else []), *turns)
    elif system is not None or rules:
        reason = "this model has no chat template"
        if raw or suffix is not None:
            reason = f"{'--raw' if raw else '--suffix'} leaves the chat template out"
        given = "--system" if system is not None else "--experience"
        raise UserError(f"{given} has no place here, because {reason}; leave one of them out.")
    request = replace(request, messages=messages, prompt=None if messages else text, suffix=suffix)
    writer = JsonWriter() if json else TextWriter(echo="" if messages else text, suffix=suffix or "", thinking=thinking)
    if not allow_tool:
        if mcp is not None:
            print(NONE_ALLOWED, file=sys.stderr)
        return play(backend, request, writer)
    if not messages:
        raise UserError("--allow-tool is for models that answer messages; leave it out, or choose one with a template.")
    with Narration() as narrate:
        toolbox = allowed_tools(mcp, allow_tool, tool_rounds, tool_timeout, narrate)
    try:
        request = replace(request, tools=toolbox.specs(), tool_choice=tool_choice)
        return play(backend, request, writer, toolbox)
    finally:
        toolbox.close()


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            "Give the text with -p TEXT or on stdin; for a conversation, run nanochat-tui without a command."
        )
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise UserError("The text on stdin is not valid UTF-8; convert it first.") from exc


def _shape(schema: str | None, grammar: str | None, regex: str | None) -> Grammar | None:
    """Return what the reply must look like. Raises UserError if two options say so, or a file cannot be read."""
    given = [
        (make, _given_text(text, option))
        for make, text, option in (
            (Grammar.json_schema, schema, "--json-schema"),
            (Grammar.grammar, grammar, "--grammar"),
            (Grammar.regex, regex, "--regex"),
        )
        if text is not None
    ]
    if len(given) > 1:
        raise UserError("--json-schema, --grammar and --regex exclude each other; give one of them.")
    return given[0][0](given[0][1]) if given else None


def _given_text(value: str, option: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{option}: cannot read {display_safe(value[1:])} ({reason}); check the path.") from exc
