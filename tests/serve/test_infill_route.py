"""`/infill` in llama-server's words: the ids of the request, other files, what does not fit, streams, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import LONG, Running, files, serving
from support import TINY, write_model

from nanochat_tui.model.tokenizer import TextCodec
from nanochat_tui.model.tokenizer.infill import FileMarks
from nanochat_tui.serve.bodies_infill import InfillBody
from nanochat_tui.serve.routes_infill import infill_prompt

BODY: dict[str, Any] = {"input_prefix": "fn main() {\n    ", "input_suffix": "\n}", "n_predict": 8, "temperature": 0}


@pytest.fixture(scope="module")
def filling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(files(write_model(tmp_path_factory.mktemp("fim") / "m.gguf", LONG, infill=True))) as running:
        yield running


def expected(server: Running, prefix: str, tokens: int = 8) -> str:
    return server.service.model.generate(prefix, suffix="\n}", max_tokens=tokens, temperature=0).read()


def test_the_gap_is_filled(filling: Running) -> None:
    answer = filling.post("/infill", **BODY).json()
    assert answer["content"] == expected(filling, BODY["input_prefix"])
    assert (answer["stop"], answer["stop_type"], answer["truncated"], answer["model"]) == (True, "limit", False, "tiny")
    assert answer["tokens_predicted"] == answer["timings"]["predicted_n"] == 8
    assert answer["tokens_evaluated"] == len(infill_prompt(filling.service.model, InfillBody(**BODY), 32_768)[0])
    more = filling.post("/infill", **BODY, prompt="let ").json()
    assert more["content"] == expected(filling, BODY["input_prefix"] + "let ")


def test_a_stop_string_and_an_end_are_told(filling: Running) -> None:
    text = expected(filling, BODY["input_prefix"])
    stopped = filling.post("/infill", **BODY, stop=[text[3:5]]).json()
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", text[3:5])
    assert stopped["content"] == text[: text.index(text[3:5])]


def test_a_stream_brings_the_same(filling: Running) -> None:
    with filling.client() as client:
        sent = client.post("/infill", json={**BODY, "stream": True}).text
    rows = [json.loads(line[6:]) for line in sent.splitlines() if line.startswith("data: ")]
    whole = filling.post("/infill", **BODY).json()
    assert "".join(row["content"] for row in rows) == whole["content"]
    assert [row["stop"] for row in rows] == [*[False] * (len(rows) - 1), True] and rows[-1]["stop_type"] == "limit"


def test_what_an_editor_sends_is_taken(filling: Running) -> None:
    """The fields of llama.vim: hints that are not followed among them."""
    hints = {"samplers": ["top_k", "top_p", "infill"], "t_max_prompt_ms": 500, "t_max_predict_ms": 1000, "n_indent": 4}
    more = {"top_k": 40, "top_p": 0.99, "cache_prompt": True, "response_fields": ["content"], "stream": False}
    extra = [{"text": "struct A;", "time": 5, "filename": "a.rs"}]
    answer = filling.post("/infill", **BODY, **hints, **more, input_extra=extra, prompt="")
    assert answer.status_code == 200 and answer.json()["content"]


def test_other_files_come_first(filling: Running) -> None:
    model = filling.service.model
    codec, marks = model.codec, model.codec.infill
    assert marks is not None
    extra = [{"filename": "a.rs", "text": "struct A;"}, {"filename": "b.rs", "text": "struct B;"}]
    body = InfillBody(**BODY, input_extra=extra)
    plain, _ = infill_prompt(model, InfillBody(**BODY), 4096)
    found, dropped = infill_prompt(model, body, 4096)
    text = "\n\n--- snippet ---\n\nstruct A;\n\n--- snippet ---\n\nstruct B;"
    assert found == [codec.bos, *codec.encode(text, bos=False), *plain[1:]] and dropped == 0
    # with marks of their own, in Qwen's order
    known = TextCodec(codec.tokenizer, codec.bos, codec.eos, True, infill=marks, file_marks=FileMarks(7, 8))

    def ids(text: str) -> list[int]:
        return known.encode(text, bos=False)

    files_ids = known.encode_files([("a.rs", "struct A;")])
    assert files_ids == [8, *ids("project\n"), 7, *ids("a.rs\nstruct A;"), 7, *ids("filename\n")]
    assert known.encode_files([]) == codec.encode_files([]) == []


def test_what_is_far_from_the_gap_is_left_out(filling: Running) -> None:
    model = filling.service.model
    marks = model.codec.infill
    assert marks is not None
    body = InfillBody(
        input_prefix="a " * 5000 + "near", input_suffix="close" + " b" * 5000, input_extra=[{"text": "x" * 9000}]
    )
    ids, dropped = infill_prompt(model, body, 400)
    assert len(ids) <= 300 and dropped > 9000 and ids[:2] == [model.codec.bos, marks.prefix]
    before, after = ids[2 : ids.index(marks.suffix)], ids[ids.index(marks.suffix) + 1 : -1]
    assert model.decode(before).endswith("near") and model.decode(after).startswith("close")


def test_a_text_that_was_cut_is_told(tmp_path: Path) -> None:
    with serving(files(write_model(tmp_path / "m.gguf", TINY.with_(context_length=256), infill=True))) as short:
        assert short.post("/infill", **{**BODY, "input_prefix": "x" * 100_000}).json()["truncated"]
        assert not short.post("/infill", **BODY).json()["truncated"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_prefix": "x"}, "input_suffix"),
        ({"input_suffix": "x"}, "input_prefix"),
        ({**BODY, "n": 2}, "n"),
        ({**BODY, "input_extra": ["x"]}, "input_extra"),
        ({**BODY, "n_probs": 3}, "n_probs"),
    ],
)
def test_what_cannot_be_is_named(filling: Running, body: dict[str, Any], param: str) -> None:
    answer = filling.post("/infill", **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"].split(".")[0] == param, answer.text


def test_a_model_without_marks_refuses(base: Running) -> None:
    answer = base.post("/infill", **BODY)
    assert answer.status_code == 400
    assert "names no fim_pre, fim_suf and fim_mid tokens" in answer.json()["error"]["message"]


def test_marks_for_files_are_read_from_the_file(tmp_path: Path) -> None:
    from nanochat_tui.engine.generate.model import load
    from nanochat_tui.formats.gguf import read_gguf, u32
    from nanochat_tui.model.tokenizer import codec_from_gguf

    with read_gguf(write_model(tmp_path / "m.gguf", infill=True)) as file:
        assert codec_from_gguf(file.metadata).file_marks is None
        named = dict(file.metadata) | {f"tokenizer.ggml.fim_{n}_token_id": u32(i) for n, i in (("sep", 5), ("rep", 6))}
        assert codec_from_gguf(named).file_marks == FileMarks(5, 6)
    assert load(tmp_path / "m.gguf", threads=1).codec.infill is not None
