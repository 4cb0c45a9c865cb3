"""From the fields of the form to the arguments of `nanochat-tui eval …`. Pure: no widgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanochat_tui.browser import check_command
from nanochat_tui.errors import UserError
from nanochat_tui.paths import expanded
from nanochat_tui.text import display_safe

SETS = {
    "rust-small": "60 small Rust functions, tests",
    "held-out": "held-out Rust: bodies, compile, tests, lines",
    "rust": "HumanEval-Rust, 92 problems",
    "python": "HumanEval, 164 problems",
    "file": "problems of a file",
}
"""What can be evaluated: the choice and what it is."""
DEFAULTS = {
    "set": "rust-small",
    "model": "",
    "server": "",
    "file": "",
    "limit": "",
    "samples": "1",
    "temperature": "0",
    "max_tokens": "128",
    "threads": "",
    "unsafe": "no",
    "name": "",
}


@dataclass(frozen=True)
class Start:
    """What to start, and the folder that it works on."""

    arguments: list[str]
    folder: Path


def start_of(texts: Mapping[str, str], root: Path) -> Start:
    """Return what the fields say. Raises UserError for a value that makes no sense, and names the field."""
    chosen = texts["set"]
    if chosen not in SETS:
        raise UserError(f"set: take one of {', '.join(SETS)}")
    held_out = chosen == "held-out"
    words = ["eval", "rust" if held_out else "humaneval"]
    server, model = texts["server"].strip(), texts["model"].strip()
    if server:
        words += [model] if model and not model.endswith(".gguf") else []
        words += ["--attach", server]
    else:
        if not model:
            raise UserError("model: name a GGUF file or a checkpoint, or a server")
        place = expanded(Path(model)).absolute()
        if not place.exists():
            raise UserError(f"model: there is no file {display_safe(model)}")
        words.append(str(place))
    words += _file(chosen, texts["file"].strip(), server=bool(server) and not model)
    numbers = {
        "--items" if held_out else "--limit": _number(texts, "limit", 1),
        "--samples": _number(texts, "samples", 1, 1000),
        "--max-tokens": _number(texts, "max_tokens", 1),
        "--threads": None if server else _number(texts, "threads", 1, 1024),
    }
    words += _temperature(texts["temperature"].strip(), several=held_out)
    words += [word for option, value in numbers.items() if value is not None for word in (option, str(value))]
    if texts["unsafe"] == "yes":
        check_command(["--unsafe"])
        words.append("--unsafe")
    folder = root / _name(texts, root)
    return Start([*words, "--out", str(folder)], folder)


def _file(chosen: str, given: str, *, server: bool) -> list[str]:
    if chosen not in ("file", "held-out"):
        return [] if chosen == "file" else ["--set", chosen]
    if not given:
        if chosen == "file":
            raise UserError("file: name JSON lines with problems")
        return []
    place = expanded(Path(given)).absolute()
    if not place.exists():
        raise UserError(f"file: there is no file {display_safe(given)}")
    if chosen == "file":
        return ["--problems", str(place)]
    if server:
        raise UserError("model: with a server and held-out text of your own, name the server's model")
    return [str(place)]


def _temperature(text: str, *, several: bool) -> list[str]:
    try:
        found = [float(word) for word in text.split(",")] if text else []
    except ValueError:
        found = [-1.0]
    if any(not 0 <= one <= 10 for one in found) or (len(found) > 1 and not several):
        more = ", or several with commas" if several else ""
        raise UserError(f"temperature: a number from 0 on{more}, not {display_safe(text)}")
    if not found:
        return []
    return ["--temperatures" if several else "--temperature", ",".join(f"{one:g}" for one in found)]


def _number(texts: Mapping[str, str], field: str, least: int, most: int = 10**6) -> int | None:
    text = texts[field].strip()
    if not text:
        return None
    if not text.isdecimal() or not least <= int(text) <= most:
        name = field.replace("_", " ")
        raise UserError(f"{name}: a whole number from {least:,} to {most:,}, not {display_safe(text)}")
    return int(text)


def _name(texts: Mapping[str, str], root: Path) -> str:
    """The folder's name: the one given, or a free one after set and model."""
    given = texts["name"].strip()
    if given:
        if given in (".", "..") or any(c in given for c in "/\\\0") or not given.isprintable():
            raise UserError("name: a name of one folder, without slashes")
        return given
    model = Path(texts["model"].strip()).name.removesuffix(".gguf") or "server"
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in f"{texts['set']}-{model}").strip(".")
    number, name = 1, kept
    while (root / name).exists():
        number += 1
        name = f"{kept}-{number}"
    return name
