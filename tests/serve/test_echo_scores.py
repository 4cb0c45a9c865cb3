"""`echo` with `logprobs`: the probabilities of prompts, in OpenAI's older form; `best_of`: replies ranked by theirs."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from servers import PROMPT, Running

TEXT = "fn main() {\n    let é = 1;\n}"
GREEDY: dict[str, Any] = {"temperature": 0}


def score(server: Running, **body: Any) -> dict[str, Any]:
    answer = server.post("/v1/completions", **{"echo": True, "logprobs": 2, "max_tokens": 0, **GREEDY, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def expected(server: Running, ids: list[int], top: int) -> tuple[list[float | None], list[set[int]]]:
    scored = server.service.model.score(ids, top=top)
    return [None, *(token.logprob for token in scored)], [{i for i, _, _ in token.top} for token in scored]


@pytest.mark.parametrize("form", ["text", "ids"])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_a_prompt_is_scored_and_continued(base: Running, form: str, tokens: int) -> None:
    model = base.service.model
    ids = model.encode(TEXT)
    prompt: Any = TEXT if form == "text" else ids
    answer = score(base, prompt=prompt, max_tokens=tokens)
    (choice,) = answer["choices"]
    plain = "".join(t.text for t in model.generate(ids, max_tokens=tokens, temperature=0))
    assert choice["text"] == (TEXT if form == "text" else model.decode(ids)) + plain
    found = choice["logprobs"]
    wanted, _ = expected(base, ids, 2)
    count = len(ids) + answer["usage"]["completion_tokens"]
    assert answer["usage"]["prompt_tokens"] == len(ids) and answer["usage"]["completion_tokens"] == tokens
    assert {len(found[name]) for name in found} == {count}
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["token_logprobs"][1 : len(ids)] == pytest.approx(wanted[1:], abs=1e-5)
    for name, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert logprob is None or (top[name] == logprob and len(top) in (2, 3))
    # the marks before the text are no part of it; the rest joined is the text
    assert "".join(found["tokens"][1:]).encode() == choice["text"].encode() or any(
        "bytes:" in n for n in found["tokens"]
    )
    assert found["text_offset"] == sorted(found["text_offset"]) and found["text_offset"][:2] == [0, 0]
    cased = score(base, prompt=prompt, max_tokens=tokens, logprobs=0)["choices"][0]["logprobs"]
    assert cased["token_logprobs"][1:] == pytest.approx(found["token_logprobs"][1:], abs=1e-5)


def test_names_and_offsets_fit_the_text(base: Running) -> None:
    found = score(base, prompt=TEXT)["choices"][0]["logprobs"]
    for place, name in list(zip(found["text_offset"], found["tokens"], strict=True))[1:]:
        assert name.startswith("bytes:") or TEXT[place:].startswith(name)


def test_several_prompts_and_replies(base: Running) -> None:
    prompts = ["fn main", "let x = 1;", "a"]
    answer = score(base, prompt=prompts, n=2, max_tokens=3, temperature=1, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for index, choice in enumerate(answer["choices"]):
        ids = base.service.model.encode(prompts[index // 2])
        assert choice["text"].startswith(prompts[index // 2])
        wanted, _ = expected(base, ids, 2)
        assert choice["logprobs"]["token_logprobs"][1 : len(ids)] == pytest.approx(wanted[1:], abs=1e-5)
    one, other = answer["choices"][:2]
    assert one["text"] != other["text"] and one["logprobs"]["tokens"][:2] == other["logprobs"]["tokens"][:2]


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_says_the_same(base: Running, n: int) -> None:
    body: dict[str, Any] = {"prompt": TEXT, "max_tokens": 4, "n": n, "temperature": 1, "seed": 3}
    whole = score(base, **body)["choices"]
    with base.client() as client:
        sent = client.post("/v1/completions", json={**body, "echo": True, "logprobs": 2, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in sent.splitlines() if line.startswith("data: {")]
    for choice in whole:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, values in choice["logprobs"].items():
            joined = [value for part in parts if part["logprobs"] for value in part["logprobs"][name]]
            assert joined == values
        assert parts[-1]["finish_reason"] == choice["finish_reason"]


def test_the_token_that_ends_the_reply_has_an_entry(base: Running) -> None:
    """Programs that score a prompt ask for a token and drop the last entry: it must never be one of the prompt."""
    model = base.service.model
    ids = model.encode(PROMPT)
    (first,) = list(model.generate(ids, max_tokens=1, temperature=0, ignore_eos=True))
    answer = score(base, prompt=PROMPT, max_tokens=1, stop_token_ids=[first.id])
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPT and choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 0 and len(choice["logprobs"]["tokens"]) == len(ids) + 1
    assert choice["logprobs"]["token_logprobs"][-1] == pytest.approx(first.logprob)
    assert choice["logprobs"]["text_offset"][-1] == len(PROMPT)


def test_a_prompt_that_fills_the_context_is_scored(base: Running) -> None:
    context = base.service.context
    ids = [1] * context
    # 64 MiB of replies are no use here: without alternatives
    answer = score(base, prompt=ids[:2000], logprobs=0)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 2000
    refused = base.post("/v1/completions", prompt=[*ids, 1], max_tokens=0, echo=True, logprobs=0)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"


def test_other_replies_go_on_next_to_a_long_score(base: Running) -> None:
    done = threading.Event()
    long: list[Any] = []

    def scoring() -> None:
        long.append(score(base, prompt=[1] * 6000, logprobs=0))
        done.set()

    thread = threading.Thread(target=scoring)
    thread.start()
    answered = 0
    while not done.is_set() and answered < 50:
        assert base.post("/v1/completions", prompt=PROMPT, max_tokens=4, **GREEDY).status_code == 200
        answered += 1
    thread.join(120)
    assert answered >= 1 and len(long[0]["choices"][0]["logprobs"]["tokens"]) == 6000


@pytest.mark.parametrize("n", [1, 2])
def test_best_of_answers_with_the_likeliest(base: Running, n: int) -> None:
    body: dict[str, Any] = {"prompt": ["fn", "let"], "max_tokens": 6, "temperature": 1.5, "seed": 9, "top_k": 0}
    candidates = base.post("/v1/completions", **body, n=5, logprobs=0).json()
    best = base.post("/v1/completions", **body, n=n, best_of=5).json()

    def mean(choice: dict[str, Any]) -> float:
        found = choice["logprobs"]["token_logprobs"]
        return float(sum(found)) / len(found) if found else float("-inf")

    wanted = []
    for first in (0, 5):
        wanted += sorted(candidates["choices"][first : first + 5], key=mean, reverse=True)[:n]
    assert [c["text"] for c in best["choices"]] == [c["text"] for c in wanted]
    assert [c["index"] for c in best["choices"]] == list(range(2 * n))
    assert all(c["logprobs"] is None for c in best["choices"])
    assert best["usage"]["completion_tokens"] == candidates["usage"]["completion_tokens"] == 60
    assert best["usage"]["prompt_tokens"] == candidates["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 33}, "best_of"),
        ({"suffix": "}", "echo": True, "logprobs": 1}, "echo"),
    ],
)
def test_what_cannot_be_is_refused(base: Running, body: dict[str, Any], param: str) -> None:
    answer = base.post("/v1/completions", prompt="x", **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
