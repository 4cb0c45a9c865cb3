"""Loading the model: one batcher, or one per memory node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.generate.speculation import Mode
from nanochat_tui.engine.run.paging import CacheType
from nanochat_tui.engine.weights.adapters import LoraFile
from nanochat_tui.errors import UserError
from nanochat_tui.formats.i2_s_layouts import Layout
from nanochat_tui.model.chat.families import thinking_tags
from nanochat_tui.serve.numa import SYSTEM, Node, find_nodes, run_on
from nanochat_tui.serve.settings import Log
from nanochat_tui.system import usable_cpus
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Activations

Loader = Callable[[Log], list[Batcher]]
"""Makes the batchers a server works with; called once, in a thread of its own. Raises UserError."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What to load and how: see `engine.generate.model.load` and `engine.generate.scheduler.Batcher`."""

    path: Path
    mhc: Path | None = None
    tokenizer: Path | None = None
    threads: int | None = None
    max_sequences: int = 8
    max_waiting: int = 64
    kv_tokens: int | None = None
    kv: CacheType = "f16"
    i2s_layout: Layout = "x86"
    speculation: Mode = "auto"
    activations: Activations = "int8"
    lora: tuple[LoraFile, ...] = ()
    chat_template: str | None = None
    """A Jinja chat template in place of the file's own, or of none."""


def load_one(files: ModelFiles, log: Log, threads: int | None = None) -> Batcher:
    """Load the model once. Raises UserError."""
    from nanochat_tui.engine.generate.model import load

    try:
        model = load(
            files.path,
            mhc=files.mhc,
            tokenizer=files.tokenizer,
            threads=threads or files.threads,
            adapts=files.threads is None,
            speculation=files.speculation,
            kv=files.kv,
            kv_tokens=files.kv_tokens,
            sequences=files.max_sequences,
            i2s_layout=files.i2s_layout,
            activations=files.activations,
            lora=files.lora,
            progress=log,
        )
        if files.chat_template is not None:
            model.chat_template, model.thinking = files.chat_template, thinking_tags(files.chat_template)
        return Batcher(
            model, max_sequences=files.max_sequences, max_waiting=files.max_waiting, kv_tokens=files.kv_tokens
        )
    except MemoryError as error:
        name = display_safe(files.path.name)
        raise UserError(f"there is not enough memory to load {name}; use a smaller model or context") from error
    except OSError as error:
        raise UserError(f"{display_safe(str(files.path))} cannot be read: {error.strerror or error}") from error


def load_per_node(files: ModelFiles, log: Log, root: Path = SYSTEM) -> list[Batcher]:
    """Load the model on every memory node; on a machine with one node, once, and say so. Raises UserError.

    With `files.threads` given every replica has that many threads, otherwise one per core of its node.
    """
    nodes = find_nodes(root, usable_cpus())
    if len(nodes) < 2:
        log("--numa has nothing to do here: this process sees one memory node; continuing with one replica")
        return [load_one(files, log)]

    def on(node: Node) -> Batcher:
        log(f"loading the replica of memory node {node.id} ({node.cores} cores)")
        return load_one(files, log, files.threads or node.cores)

    batchers: list[Batcher] = []
    try:
        for node in nodes:
            batchers.append(run_on(node.cpus, partial(on, node)))
    except BaseException:
        for batcher in batchers:
            batcher.close()
        raise
    return batchers


def loader(files: ModelFiles, numa: bool = False, root: Path = SYSTEM) -> Loader:
    """Return the loader for a server."""
    if numa:
        return lambda log: load_per_node(files, log, root)
    return lambda log: [load_one(files, log)]
