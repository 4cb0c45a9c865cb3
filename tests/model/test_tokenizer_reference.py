"""Published vocabularies, cut down to what some texts need, against the ids that llama.cpp makes of the texts.

`word_rules_reference.json` has the part of Qwen 2's vocabulary (Apache 2.0) and merges that 53 texts touch, and their
ids under each set of word rules; `sentencepiece_reference.json` the part of Phi-3's (MIT). Both by llama-cpp-python
0.3.36. `test_published_vocabularies` reads whole ones where NANOCHAT_VOCABULARIES names a folder with llama.cpp's
`ggml-vocab-*.gguf` and their `.inp` and `.out`, whose ids are those of Hugging Face's tokenizers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat_tui.formats.gguf import ValueType, array, read_gguf, string
from nanochat_tui.model.tokenizer import codec_from_gguf

HERE = Path(__file__).parent
RULES: dict[str, Any] = json.loads((HERE / "word_rules_reference.json").read_text(encoding="utf-8"))
PIECES: dict[str, Any] = json.loads((HERE / "sentencepiece_reference.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("pre", RULES["ids"])
def test_word_rules_agree_with_llama_cpp(pre: str) -> None:
    codec = codec_from_gguf(
        {
            "tokenizer.ggml.model": string("gpt2"),
            "tokenizer.ggml.pre": string(pre),
            "tokenizer.ggml.tokens": array(RULES["tokens"]),
            "tokenizer.ggml.merges": array(RULES["merges"]),
        }
    )
    for text, ids in zip(RULES["texts"], RULES["ids"][pre], strict=True):
        assert codec.encode(text, bos=False) == ids, text
        assert codec.decode(ids) == text


def test_rules_differ_where_they_should() -> None:
    different = {json.dumps(ids) for ids in RULES["ids"].values()}
    # Llama 3's two names agree, Qwen 3.5 differs from Qwen 2 on marks only, Falcon and default on the backtick only
    assert len(different) >= 6


def test_sentencepiece_agrees_with_llama_cpp() -> None:
    codec = codec_from_gguf(
        {
            "tokenizer.ggml.model": string("llama"),
            "tokenizer.ggml.tokens": array(PIECES["tokens"]),
            "tokenizer.ggml.scores": array(np.array(PIECES["scores"], np.float32)),
            "tokenizer.ggml.token_type": array(PIECES["types"], ValueType.I32),
        }
    )
    for text, ids in zip(PIECES["texts"], PIECES["ids"], strict=True):
        assert codec.encode(text, bos=False, special=False) == ids, text
        assert codec.decode(ids) == text


VOCABULARIES = Path(os.environ.get("NANOCHAT_VOCABULARIES", "/nonexistent"))
KNOWN = ("command-r", "falcon", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "starcoder")


@pytest.mark.peer
@pytest.mark.parametrize("name", KNOWN)
def test_published_vocabularies(name: str) -> None:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip("NANOCHAT_VOCABULARIES names no folder with llama.cpp's vocabularies")
    with read_gguf(path) as file:
        codec = codec_from_gguf(file.metadata)
    inputs = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    outputs = Path(f"{path}.out").read_text().split("\n")
    for text, line in zip(inputs, outputs, strict=False):
        ids = [int(word) for word in line.split()]
        assert codec.encode(text, bos=False, special=False) == ids, text
        assert codec.decode(ids) == text
