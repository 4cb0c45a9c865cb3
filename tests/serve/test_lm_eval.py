"""lm-evaluation-harness drives the server, unchanged: log-likelihoods and generations of tasks with data of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Running

pytestmark = pytest.mark.clients
CHOICES = [
    {"question": "fn main", "choices": ["() {", " let x", "é = 'b'"], "answer": 0},
    {"question": "let x =", "choices": [" 1;", "() {}", " fn"], "answer": 0},
    {"question": "if a", "choices": ["}", " { b }"], "answer": 1},
]
QUESTIONS = [{"question": "hello", "answer": "x"}, {"question": "fn main", "answer": "y"}]
TASKS = {
    "ours_choices": """
task: ours_choices
dataset_path: json
dataset_kwargs: {data_files: {test: "FOLDER/choices.jsonl"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "ours_answers": """
task: ours_answers
dataset_path: json
dataset_kwargs: {data_files: {test: "FOLDER/questions.jsonl"}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
generation_kwargs: {until: ["\\n\\n\\n"], do_sample: false, temperature: 0, max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    made = tmp_path_factory.mktemp("lm-eval")
    for name, rows in (("choices", CHOICES), ("questions", QUESTIONS)):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (made / f"{name}.yaml").write_text(text.replace("FOLDER", str(made)))
    return made


def evaluate(folder: Path, task: str, model: str, arguments: str, *more: str) -> tuple[dict[str, Any], list[Any]]:
    """Return the harness' figures and what it logged of each document."""
    out = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", task]
    command += ["--include_path", str(folder), "--output_path", str(out), "--log_samples", *more]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, check=False, env={**os.environ, **offline}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = out.rglob("results_*.json")
    (samples,) = out.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"][task], sorted(rows, key=lambda row: int(row["doc_id"]))


@pytest.mark.parametrize("batch", [1, 4])
def test_log_likelihoods_are_those_of_the_model(base: Running, folder: Path, batch: int) -> None:
    model = base.service.model
    own = folder / "tokenizer"
    own.mkdir(exist_ok=True)
    model.tokenizer.save(str(own / "tokenizer.json"))
    (own / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    arguments = f"model=tiny,base_url={base.url}/v1/completions,tokenizer={own},num_concurrent=1"
    figures, rows = evaluate(folder, "ours_choices", "local-completions", arguments, "--batch_size", str(batch))
    right = 0
    for row, document in zip(rows, CHOICES, strict=True):
        found = [(float(likelihood), greedy in (True, "True")) for ((likelihood, greedy),) in row["resps"]]
        wanted = [likelihood(model, str(document["question"]), str(text)) for text in document["choices"]]  # type: ignore[attr-defined]
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
        assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-3)
        best = max(range(len(wanted)), key=lambda i: wanted[i][0])
        right += best == document["answer"]
    assert figures["acc,none"] == pytest.approx(right / len(CHOICES))


def likelihood(model: Any, context: str, text: str) -> tuple[float, bool]:
    """The sum of log-probabilities of a continuation, from all logits, and whether each is the likeliest token."""
    before = model.tokenizer.encode(context, add_special_tokens=False).ids
    ids = model.tokenizer.encode(context + text, add_special_tokens=False).ids
    logits = model.logits(ids).astype(np.float64)[len(before) - 1 : -1]
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = ids[len(before) :]
    return float(logits[np.arange(len(targets)), targets].sum()), bool((logits.argmax(axis=1) == targets).all())


def test_generations_of_texts_and_of_chats(base: Running, chat: Running, folder: Path) -> None:
    arguments = f"model=tiny,base_url={base.url}/v1/completions,tokenizer_backend=None,tokenized_requests=False"
    _, rows = evaluate(folder, "ours_answers", "local-completions", arguments)
    said = [base.service.model.generate(str(d["question"]), max_tokens=12, temperature=0).read() for d in QUESTIONS]
    assert [row["resps"][0][0] for row in rows] == said
    arguments = f"model=tiny,base_url={chat.url}/v1/chat/completions"
    _, rows = evaluate(folder, "ours_answers", "local-chat-completions", arguments, "--apply_chat_template")
    model = chat.service.model
    said = [
        model.chat([{"role": "user", "content": d["question"]}], max_tokens=12, temperature=0).read() for d in QUESTIONS
    ]
    assert [row["resps"][0][0] for row in rows] == said
