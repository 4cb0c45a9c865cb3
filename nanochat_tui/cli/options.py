"""What several commands share: the options that name a model, and how one is found."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from nanochat_tui.errors import UserError
from nanochat_tui.request import REQUEST, SAMPLING, Setting
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.chat.local import LocalBackend
    from nanochat_tui.engine.weights.adapters import LoraFile

F = TypeVar("F", bound=Callable[..., Any])
SHORT = {"max_tokens": ("-n",)}
"""Short names of options."""
ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A GGUF file; left out, the shipped model.", show_default=False)
]
MhcOption = Annotated[Path | None, typer.Option("--mhc", help="mHC sidecar (.mhc) to use and to compare with.")]
TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="tokenizer.json to use instead of the file's own.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        help="Threads to compute with; left out, one per physical core, fewer while others want them.",
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option("--context", "-c", help="Tokens of prompt and reply that memory has to be there for."),
]
KvOption = Annotated[
    Literal["f16", "int8", "f32"] | None,
    typer.Option("--kv", help="Numbers in the key-value cache: int8 needs half the memory of f16.", show_default="f16"),
]
ActivationsOption = Annotated[
    Literal["int8", "float"] | None,
    typer.Option(
        "--activations",
        help="float rounds no activation and multiplies float32 weights: for comparisons, slow and large.",
        show_default="int8",
    ),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[=SCALE]",
        help="Adapter (LoRA) in GGUF to apply to the model, times a factor; may be repeated.",
        show_default=False,
    ),
]
I2sLayoutOption = Annotated[
    Literal["x86", "arm", "1x4"] | None,
    typer.Option(
        "--i2s-layout",
        help="Order of codes in I2_S tensors: arm if they were quantised on an ARM machine.",
        show_default="x86",
    ),
]
SpeculationOption = Annotated[
    Literal["auto", "on", "off"] | None,
    typer.Option(
        "--speculation",
        help="Use draft tokens: where it was measured to pay (auto), always, or never; the reply is the same.",
        show_default="auto",
    ),
]
AttachOption = Annotated[
    str | None,
    typer.Option("--attach", metavar="URL", help="Ask an OpenAI-compatible server; MODEL is then one of its models."),
]
HfOption = Annotated[
    str | None,
    typer.Option(
        "-hf",
        "--hf-repo",
        metavar="USER/REPO[:QUANT]",
        help="Run a model by name, as pull takes it; what is not in the cache is fetched.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON for scripts; its field `schema` is the version of the form.")
]


def with_setting_options(before: str) -> Callable[[F], F]:
    """Let a command with `**settings` have an option for every setting of a request that people are offered.

    They stand before the parameter of that name.
    """
    options = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=_option(one))
        for one in (*SAMPLING.values(), REQUEST["max_tokens"])
        if one.everyday
    ]

    def decorate(command: F) -> F:
        own = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(command, eval_str=True).parameters.values()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        place = [p.name for p in own].index(before)
        command.__signature__ = inspect.Signature([*own[:place], *options, *own[place:]])  # type: ignore[attr-defined]
        command.__annotations__ |= {p.name: p.annotation for p in (*own, *options)}
        return command

    return decorate


def _option(one: Setting) -> Any:
    names = [f"--{one.name.replace('_', '-')}", *SHORT.get(one.name, ())]
    text = f"{one.help[:1].upper()}{one.help[1:]}."
    kind = int if one.is_whole else float
    return Annotated[kind | None if one.default is None else kind, typer.Option(*names, help=text)]


def find_model(given: str | None, name: str | None = None, *, chat: bool = False) -> Path:
    """Return the path of the model asked for, or of the shipped one; name: one to be fetched unless it is here.

    Without one asked for it is the base model, or with `chat` the one that answers. Raises `UserError` if there is
    none.
    """
    if name is not None:
        if given is not None:
            raise UserError("The model was given twice, as MODEL and as -hf; leave one out.")
        from nanochat_tui.cli.pull import fetched

        return fetched(name)
    if given is None:
        from nanochat_tui.model.shipped import shipped_model

        shipped = shipped_model(chat=chat)
        if shipped is None:
            raise UserError("This installation ships no model; give one, as in: nanochat-tui model.gguf")
        return shipped
    path = Path(given)
    if path.is_dir():
        raise UserError(f"{display_safe(given)} is a folder; give a GGUF file.")
    if not path.exists():
        raise UserError(f"There is no file {display_safe(given)}; {_instead(given)}.")
    return path


def _instead(given: str) -> str:
    """Return what to do about a model that is not there: a word without a path or an ending may be a command."""
    from difflib import get_close_matches

    from nanochat_tui.cli.app import COMMANDS

    if not {"/", "\\", "."} & set(given):
        near = get_close_matches(given.lower(), COMMANDS, n=1)
        if near:
            return f"did you mean the command {near[0]}? Else give the path of a GGUF file"
    if given.count("/") == 1 and not given.startswith((".", "/", "~")):
        return "give the path of a GGUF file, or fetch a repository of that name with -hf"
    return "give the path of a GGUF file"


def find_template(given: str | None, option: str = "--chat-template") -> str | None:
    """Return the chat template of a name or in a file. Raises UserError if there is neither, or it is no Jinja."""
    if given is None:
        return None
    from nanochat_tui.model.chat.families import NAMED
    from nanochat_tui.model.chat.template import is_usable
    from nanochat_tui.serve.settings import read_setting

    if given in NAMED:
        return NAMED[given]
    try:
        found = Path(given).exists()
    except OSError:  # such as a name that is too long for a file
        found = False
    if not found:
        names = ", ".join(NAMED)
        raise UserError(f"{option} {display_safe(given)} is neither a file nor one of {names}.")
    text = read_setting(Path(given), "chat template")
    if not text.strip() or not is_usable(text):
        raise UserError(f"{display_safe(given)} is no chat template: it is empty, or not valid Jinja.")
    return text


def check_file(path: Path | None, what: str) -> Path | None:
    """Return `path`, or raise `UserError` if it was given and is not a file."""
    if path is not None and not path.is_file():
        raise UserError(f"There is no {what} {display_safe(str(path))}; check the path.")
    return path


def check_threads(threads: int | None) -> int | None:
    """Return `threads`, or raise `UserError` if it is not a sensible count."""
    if threads is not None and not 1 <= threads <= 1024:
        raise UserError(f"--threads must be between 1 and 1024, not {threads}.")
    return threads


def check_context(context: int | None) -> int | None:
    """Return `context`, or raise `UserError` if no prompt and reply fit into it."""
    if context is not None and not 2 <= context <= 2**31 - 1:
        raise UserError(f"--context must be 2 tokens or more, not {context}.")
    return context


def lora_files(given: Sequence[str] | None) -> tuple[LoraFile, ...]:
    """Return the adapters of --lora FILE[=SCALE], each a file that is there. Raises `UserError`."""
    from nanochat_tui.engine.weights.adapters import LoraFile

    found = []
    for text in given or ():
        name, _, scale = text.rpartition("=")
        if Path(text).exists() or not name:
            name, scale = text, "1"
        try:
            factor = float(scale)
        except ValueError:
            raise UserError(
                f"--lora takes FILE or FILE=SCALE, and {display_safe(scale)} is no number; give one such as 0.5"
            ) from None
        check_file(Path(name), "adapter")
        found.append(LoraFile(Path(name), factor))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How a file is to be run, as the command line says it; None is what is usual."""

    mhc: Path | None
    tokenizer: Path | None
    threads: int | None
    context: int | None
    kv: Literal["f16", "int8", "f32"] | None
    i2s_layout: Literal["x86", "arm", "1x4"] | None
    speculation: Literal["auto", "on", "off"] | None
    activations: Literal["int8", "float"] | None
    lora: list[str] | None = None

    def check(self) -> None:
        """Raise `UserError` for what no file could be run with."""
        check_file(self.mhc, "mHC sidecar")
        check_file(self.tokenizer, "tokenizer")
        check_threads(self.threads)
        check_context(self.context)
        lora_files(self.lora)

    def refuse_with_server(self) -> None:
        """Raise `UserError` if anything was given: a server runs its model its own way."""
        if any(given is not None for given in astuple(self)):
            raise UserError(
                "--mhc, --tokenizer, --threads, --context, --kv, --i2s-layout, --speculation, --activations and --lora "
                "are for files; a server has its own, so leave them out."
            )

    def backend(self, path: Path) -> LocalBackend:
        """Return the backend of a file, not loaded yet. Raises `UserError` as `check` does."""
        from nanochat_tui.chat.local import LocalBackend

        self.check()
        return LocalBackend(
            path,
            mhc=self.mhc,
            tokenizer=self.tokenizer,
            threads=self.threads,
            context=self.context,
            kv=self.kv or "f16",
            i2s_layout=self.i2s_layout or "x86",
            speculation=self.speculation or "auto",
            activations=self.activations or "int8",
            lora=lora_files(self.lora),
        )
