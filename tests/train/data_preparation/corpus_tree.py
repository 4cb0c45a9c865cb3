"""A small tree of source files for the tests: real-looking, all different, and one bad file for every filter."""

from __future__ import annotations

from pathlib import Path

TOKENIZER = Path(__file__).parents[3] / "exported_models" / "gpt2-tokenizer.json"

WORDS = (
    *("alpha", "bravo", "carol", "delta", "eagle", "frost", "giant", "hotel"),
    *("india", "joker", "kites", "lemon", "mango", "night", "ocean", "piano"),
)


def rust(seed: int, functions: int = 4) -> str:
    """Return a Rust file that shares no window of five lines with that of another seed, numbers folded or not."""
    tag = "".join(chr(ord("a") + int(digit)) for digit in str(seed))
    parts = [f"//! Module {seed}: naïve “ünïcode” → ok.\n\nuse std::fmt;\n"]
    for n in range(functions):
        word = f"{WORDS[(seed + n) % len(WORDS)]}_{tag}"
        parts.append(
            f"\npub fn {word}_{seed}_{n}(value: usize) -> usize {{\n"
            f"    let {word} = value + {seed};\n"
            f"    if {word} > {n} {{\n"
            f"        // six spaces, then an odd one\n"
            f"      return {word} * {seed + n};\n"
            f"    }}\n"
            f"    {word}.saturating_sub({seed * 7 + n})\n"
            f"}}\n"
        )
    return "".join(parts)


def write(path: Path, data: str | bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def make_tree(folder: Path, files: int = 100) -> dict[str, str]:
    """Write an MIT crate of `files` good files; return the text of each by path."""
    write(folder / "Cargo.toml", '[package]\nname = "tree"\nlicense = "MIT"\n')
    texts = {f"src/{WORDS[n % 7]}/file_{n}.rs": rust(n) for n in range(files)}
    for path, text in texts.items():
        write(folder / path, text)
    return texts
