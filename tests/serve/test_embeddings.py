"""`/v1/embeddings` with OpenAI's client: forms of input and answer, limits, errors, many at once, next to replies."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest
from servers import PROMPT, Running

from nanochat_tui.formats.gguf import u32


def vectors(server: Running, texts: Any, **options: Any) -> np.ndarray:
    answer = server.openai().embeddings.create(model="tiny", input=texts, **options)
    assert [row.index for row in answer.data] == list(range(len(answer.data)))
    return np.array([row.embedding for row in answer.data], np.float32)


TEXTS = ["fn main() {}", "let x = 1;", "é 日本", "a" * 900]


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_vectors_are_those_of_the_library(base: Running, form: str | None) -> None:
    options = {} if form is None else {"encoding_format": form}
    answer = base.post("/v1/embeddings", input=TEXTS, **options).json()
    rows = [row["embedding"] for row in answer["data"]]
    if form == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    model = base.service.model
    np.testing.assert_allclose(np.array(rows, np.float32), model.embed(TEXTS), atol=1e-6)  # type: ignore[arg-type]
    count = sum(len(model.encode(text)) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert (answer["object"], answer["model"], answer["data"][0]["object"]) == ("list", "tiny", "embedding")


def test_forms_of_input(base: Running) -> None:
    model = base.service.model
    one = vectors(base, TEXTS[0])
    assert one.shape == (1, model.config.dim) and np.linalg.norm(one) == pytest.approx(1, abs=1e-6)
    ids = model.encode(TEXTS[0])
    for same in (ids, [ids], [TEXTS[0]]):
        np.testing.assert_allclose(vectors(base, same), one, atol=1e-6)
    with base.client() as client:  # without the prefix, as other routes
        assert client.post("/embeddings", json={"input": "x"}).status_code == 200


def test_fewer_dimensions_are_scaled_again(base: Running) -> None:
    whole, short = vectors(base, TEXTS), vectors(base, TEXTS, dimensions=32)
    cut = whole[:, :32]
    np.testing.assert_allclose(short, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-6)


def test_more_texts_than_places_keep_their_order(base: Running) -> None:
    texts = [f"let a{n} = {n};" for n in range(70)]
    np.testing.assert_allclose(vectors(base, texts), base.service.model.embed(texts), atol=1e-5)  # type: ignore[arg-type]


def test_replies_go_on_next_to_them(base: Running) -> None:
    expected = base.service.model.generate(PROMPT, max_tokens=300, temperature=0).read()
    stream = base.openai().completions.create(model="tiny", prompt=PROMPT, max_tokens=300, temperature=0, stream=True)
    first = next(iter(stream)).choices[0].text
    assert vectors(base, ["x" * 3000, "y" * 3000]).shape[0] == 2
    assert first + "".join(part.choices[0].text for part in stream) == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "x"]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": [99_999]}, "input"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "dimensions": 100_000}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_what_is_wrong_is_named(base: Running, body: dict[str, Any], param: str) -> None:
    answer = base.post("/v1/embeddings", **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"].split(".")[0] == param, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_text_longer_than_the_context_is_refused(base: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="32768") as caught:
        vectors(base, [[1], [1] * 32_769])
    assert caught.value.code == "context_length_exceeded" or caught.value.param == "input"
    with pytest.raises(openai.BadRequestError) as caught:
        vectors(base, "x" * 300_000)
    assert caught.value.param == "input"


def test_the_file_says_how_texts_are_pooled(tmp_path: Any) -> None:
    from servers import files, serving
    from support_architectures import draft, finish

    made = draft("qwen3")
    made.keys["pooling_type"] = u32(3)
    with serving(files(finish(made, tmp_path / "model.gguf"))) as running:
        model = running.service.model
        np.testing.assert_allclose(vectors(running, "fn main"), [model.embed("fn main", pooling="last")], atol=1e-6)
        assert np.abs(vectors(running, "fn main") - model.embed("fn main", pooling="mean")).max() > 1e-3
