"""`nanochat-serve`: OpenAI's interface and a chat page in front of a model."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from nanochat_tui.cli.options import (
    ActivationsOption,
    HfOption,
    I2sLayoutOption,
    KvOption,
    LoraOption,
    MhcOption,
    ModelArgument,
    SpeculationOption,
    ThreadsOption,
    TokenizerOption,
    check_file,
    check_threads,
    find_model,
    find_template,
    lora_files,
)
from nanochat_tui.errors import UserError
from nanochat_tui.hosts import is_loopback
from nanochat_tui.text import display_safe


def serve(
    file: ModelArgument = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="The same as MODEL; several are loaded as asked for.", show_default=False),
    ] = None,
    models_dir: Annotated[
        Path | None,
        typer.Option(help="Serve every model below this folder, loaded when it is asked for.", show_default=False),
    ] = None,
    memory_budget: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Gigabytes for several models together; left out, what is free.", show_default=False
        ),
    ] = None,
    models_max: Annotated[
        int | None, typer.Option(min=1, help="Of several models so many in memory at a time.", show_default=False)
    ] = None,
    hf: HfOption = None,
    mhc: MhcOption = None,
    tokenizer: TokenizerOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    threads: ThreadsOption = None,
    speculation: SpeculationOption = None,
    parallel: Annotated[int, typer.Option(min=1, max=16, help="Replies computed together.")] = 8,
    queue: Annotated[int, typer.Option(min=0, max=10_000, help="Requests that may wait; more are told 429.")] = 64,
    kv_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Size of the key-value cache of all replies together; left out, as memory allows."),
    ] = None,
    kv: KvOption = None,
    i2s_layout: I2sLayoutOption = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Chat template in place of the model's own: a Jinja file, or chatml, llama3, bitnet, falcon3, alpaca, "
            "plain. A base model takes system messages with it.",
            show_default=False,
        ),
    ] = None,
    activations: ActivationsOption = None,
    lora: LoraOption = None,
    alias: Annotated[list[str] | None, typer.Option(help="A further name of the model; may be repeated.")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask for this key; may be repeated. Other users of the machine can see it: --api-key-file or "
            "NANOCHAT_SERVE_API_KEY hide it."
        ),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="Ask for one of the keys in this file, one a line.")] = None,
    strict_model: Annotated[
        bool, typer.Option("--strict-model", help="Refuse unknown model names (404) in place of answering them.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A host name by which the server is known, behind a proxy; may be repeated."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Let pages of this web origin use the server; may be repeated.")
    ] = None,
    numa: Annotated[bool, typer.Option("--numa", help="One copy of the model per memory node, bound to it.")] = False,
    max_body: Annotated[int, typer.Option(min=1024, help="Largest request body in bytes.")] = 4 << 20,
    receive_seconds: Annotated[float, typer.Option(min=0.1, help="A request must be whole within this time.")] = 30.0,
    stall_seconds: Annotated[float, typer.Option(min=0.1, help="Cut clients that read nothing for so long.")] = 30.0,
    ping_seconds: Annotated[float, typer.Option(min=0.1, help="Comment in a stream after so much silence.")] = 10.0,
    drain_seconds: Annotated[float, typer.Option(min=0.0, help="Time for running replies when told to end.")] = 8.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line per request.")] = False,
) -> int:
    """Serve a model over HTTP: OpenAI's completion interface, and a chat page for the browser."""
    if file is not None and model:
        raise UserError("The model was given twice, as MODEL and as --model; leave one out.")
    several = models_dir is not None or len(model or ()) > 1
    if several:
        _check_several(
            file, hf, {"--mhc": mhc, "--tokenizer": tokenizer, "--alias": alias, "--numa": numa, "--lora": lora}
        )
    elif memory_budget is not None or models_max is not None:
        raise UserError("--memory-budget and --models-max are for several models; give --models-dir or more --model.")
    path = Path() if several else find_model(model[0] if model else file, hf, chat=True)
    sidecar, own_tokenizer = check_file(mhc, "mHC sidecar"), check_file(tokenizer, "tokenizer")
    check_threads(threads)

    from nanochat_tui.serve.loading import ModelFiles, loader
    from nanochat_tui.serve.runner import run, run_models
    from nanochat_tui.serve.settings import Limits, Settings, checked_hosts, checked_origins, find_keys

    # not typer's to read: it takes an empty variable for none, and one with a space for two
    keys = find_keys(api_key or (), api_key_file, os.environ)
    loopback = is_loopback(host)
    settings = Settings(
        name="" if several else display_safe(path.stem),
        aliases=tuple(alias or ()),
        api_keys=keys,
        cors_origins=checked_origins(cors_origin or ()),
        allowed_hosts=checked_hosts(allowed_host or ()),
        strict_model=strict_model,
        loopback=loopback,
        max_sequences=parallel,
        max_waiting=queue,
        limits=Limits(
            body_bytes=max_body,
            requests=max(256, 2 * (parallel + queue)),
            receive_seconds=receive_seconds,
            stall_seconds=stall_seconds,
            ping_seconds=ping_seconds,
            drain_seconds=drain_seconds,
        ),
        log=_say,
        log_requests=not quiet,
    )
    files = ModelFiles(
        Path(path),
        mhc=sidecar,
        tokenizer=own_tokenizer,
        threads=threads,
        max_sequences=parallel,
        max_waiting=queue,
        kv_tokens=kv_tokens,
        kv=kv or "f16",
        i2s_layout=i2s_layout or "x86",
        speculation=speculation or "auto",
        chat_template=find_template(chat_template),
        activations=activations or "int8",
        lora=lora_files(lora),
    )
    if not loopback and not keys:
        _say(
            f"warning: anybody who reaches {display_safe(host)} can use this server; ask for a key with --api-key-file "
            "or NANOCHAT_SERVE_API_KEY"
        )
    if not several:
        return run(loader(files, numa), settings, host, port, _opened)

    from nanochat_tui.serve.several import SeveralModels

    find = _finder(models_dir, model or ())
    budget = None if memory_budget is None else round(memory_budget * 1e9)

    def make(_: Callable[[], None]) -> SeveralModels:
        return SeveralModels(find, files, settings, budget=budget, most=models_max)

    return run_models(make, settings, host, port, _opened)


def _check_several(file: str | None, hf: str | None, single: Mapping[str, object]) -> None:
    """Raise UserError for options that say something of one model."""
    if file is not None or hf is not None:
        raise UserError("With --models-dir or several --model, name each model with --model and not otherwise.")
    for option, value in single.items():
        if value:
            raise UserError(f"{option} is for a single model; leave it out, or serve one model.")


def _finder(folder: Path | None, given: Sequence[str]) -> Callable[[], dict[str, Path]]:
    """Return what lists the models of a folder, anew each time, and those named one by one. Raises UserError."""
    from nanochat_tui.serve.listed import by_name, find_files

    named = by_name([find_model(each) for each in given])

    def find() -> dict[str, Path]:
        return named | ({} if folder is None else {n: p for n, p in find_files(folder).items() if n not in named})

    if folder is not None:
        find_files(folder)
    return find


def _opened(address: str) -> None:
    _say(f"listening on {address}: the chat page is {address}/, OpenAI's interface {address}/v1, ending with Ctrl+C")


def _say(line: str) -> None:
    from nanochat_tui.text import printable

    print(time.strftime("%H:%M:%S"), printable(line), file=sys.stderr, flush=True)
