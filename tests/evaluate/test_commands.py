"""`nanochat-tui eval` on the shipped model and a small data set made here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from support import write_model

import nanochat_tui as nc
from nanochat_tui.cli.app import dispatch
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.measured import BEGIN, END
from nanochat_tui.model.shipped import shipped_model, shipped_tokenizer
from nanochat_tui.train.data_preparation import PrepareOptions, prepare_data

CODE = """pub fn {name}(values: &[u64]) -> u64 {{
    let mut total = 0;
    for value in values {{
        total += value * {n};
    }}
    println!("{{}} {name}", total);
    total
}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    for crate, words in (("one", ("sum", "fold")), ("two", ("product",)), ("three", ("spread", "scale", "share"))):
        (folder / "in" / crate).mkdir(parents=True)
        manifest = f'[package]\nname = "{crate}"\nversion = "1.0.0"\nlicense = "MIT"\n'
        (folder / "in" / crate / "Cargo.toml").write_text(manifest, encoding="utf-8")
        for n, word in enumerate(words):
            text = "".join(CODE.format(name=f"{word}_{k}", n=7 * n + k) for k in range(3))
            (folder / "in" / crate / f"{word}.rs").write_text(text, encoding="utf-8")
    tokenizer = shipped_tokenizer()
    assert tokenizer is not None
    prepare_data(
        PrepareOptions(
            (folder / "in",),
            tokenizer,
            folder / "data",
            hold_out=("one", "two"),
            max_similarity=1.0,
            max_duplicate=1.0,
            validation_max_shared=1.0,
            workers=1,
        )
    )
    return folder / "data"


def _json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    capsys.readouterr()
    assert dispatch(["eval", *words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_perplexity_and_accuracy(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(shipped_model())
    found = _json(capsys, "perplexity", model, str(data))
    assert found["windows"] == "disjoint, 512"
    assert [row["crate"] for row in found["crates"]] == ["one", "two"]  # type: ignore[index, attr-defined]
    nats = found["nats"]["value"]  # type: ignore[index]
    assert found["perplexity"] == pytest.approx(math.exp(nats))
    assert found["bits_per_byte"]["value"] == pytest.approx(  # type: ignore[index]
        nats * found["tokens"] / math.log(2) / found["bytes"]  # type: ignore[operator]
    )
    assert 0.2 < found["bits_per_byte"]["value"] < 2  # type: ignore[index]
    short = _json(capsys, "perplexity", model, str(data), "--window", "16")
    strided = _json(capsys, "perplexity", model, str(data), "--window", "16", "--stride", "4")
    assert short["nats"]["value"] > strided["nats"]["value"] > nats  # type: ignore[index]
    right = _json(capsys, "accuracy", model, str(data))
    assert 0.3 < right["accuracy"]["value"] < 1  # type: ignore[index]
    dispatch(["eval", "perplexity", model, str(data), "--by-crate"])
    assert "bits per byte" in capsys.readouterr().out


def test_rust_of_prepared_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("rust", str(shipped_model()), str(data), "--items", "4", "--parts", "bodies,lines", "--out")
    try:
        found = _json(capsys, *words, str(tmp_path / "run"))
    except UserError as error:
        pytest.skip(str(error))  # no compiler or isolation here
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    bodies, lines = found["parts"]  # type: ignore[misc]
    assert (bodies["part"], bodies["items"], lines["items"]) == ("bodies", 4, 4)
    assert bodies["passed"]["count"] == sum(r["verdict"] == "passed" for r in rows if r["problem"].startswith("bodies"))
    assert lines["passed"]["count"] >= 1, "the lines of a file repeat, and the model sees those before"


def test_baselines(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "baselines", str(data))
    figures = {(b["name"], b["primed"] == "nothing"): b["bits_per_byte"] for b in found["baselines"]}  # type: ignore[index, attr-defined]
    assert figures["xz -6", False] < figures["xz -6", True]
    assert figures["PPMd, order 12", False] < figures["xz -6", True]
    assert any(name.startswith("Kneser-Ney") for name, _ in figures)


def test_bad_input_is_one_sentence(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        dispatch(["eval", "perplexity", str(shipped_model()), str(tmp_path / "none")])
    with pytest.raises(UserError, match="There is no file"):
        dispatch(["eval", "accuracy", str(tmp_path / "none.gguf"), str(data)])
    with pytest.raises(UserError, match="a stride of 1 to 8"):
        dispatch(["eval", "perplexity", str(shipped_model()), str(data), "--window", "8", "--stride", "9"])


def test_overlap_and_the_figure_without_copies(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: Any = _json(capsys, "overlap", str(data))
    assert rows["all"]["tokens"] == sum(row["tokens"] for row in rows["crates"])
    assert {row["crate"] for row in rows["crates"]} == {"one", "two"}
    found = _json(capsys, "perplexity", str(shipped_model()), str(data), "--without-copies")
    new = found["without_copies"]
    assert 0 <= new["copied"] < 1  # type: ignore[index]
    assert new["bits_per_byte"]["value"] > 0  # type: ignore[index]
    dispatch(["eval", "overlap", str(data)])
    assert "13-grams" in capsys.readouterr().out


@pytest.mark.slow
def test_a_card_is_made_of_real_figures(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, card = str(shipped_model()), tmp_path / "CARD.md"
    small = (
        "--items",
        "2",
        "--limit",
        "1",
        "--max-tokens",
        "8",
        "--temperatures",
        "0",
        "--out",
        str(tmp_path / "kept"),
    )
    words = ("--tokens", "0", *small, "--by-file", str(data), "--compare", model, "-o", str(card))
    figures = _json(capsys, "card", model, str(data), *words)
    text = card.read_text(encoding="utf-8")
    held_out = _json(capsys, "perplexity", model, str(data), "--without-copies")
    bits = held_out["bits_per_byte"]["value"]  # type: ignore[index]
    assert figures["held_out"]["bits_per_byte"]["value"] == bits  # type: ignore[index]
    assert figures["by_file"]["bits_per_byte"]["value"] == bits  # type: ignore[index]
    assert figures["others"][model]["bits_per_byte"]["value"] == bits  # type: ignore[index]
    assert f"**{bits:.4f} ± " in text
    assert f"{held_out['without_copies']['bits_per_byte']['value']:.4f}" in text  # type: ignore[index]
    assert "| 2 of 2" not in text and "2 of 2, " in text  # crates measured and in all
    assert text.count("\nSeed ") == 10 and text.count("rust\nfn main() {") == 10
    with nc.load(model) as loaded:
        third = loaded.generate("fn main() {", max_tokens=256, seed=2).read()
    assert f"fn main() {{{third}".rstrip("\n") in text
    parsed = sum(line.startswith("Seed ") and ": parses;" in line for line in text.splitlines())
    assert figures["samples_parse"] == parsed
    assert f"{parsed} of 10 end the function and parse" in text
    for method in ("xz -6", "PPMd, order 12", "Kneser-Ney, 5-gram", "this model"):
        assert f"| {method} |" in text
    assert "| MIT | 1 | 3 |" in text  # one crate of three files was trained on


def test_a_card_without_a_corpus_is_replaced_between_its_marks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (write_model(tmp_path / f"{name}.gguf", seed=seed) for seed, name in enumerate(("one", "two")))
    card = tmp_path / "CARD.md"
    small = ["--items", "2", "--limit", "2", "--max-tokens", "8", "--out", str(tmp_path / "kept"), "-o", str(card)]
    words = ["card", str(first), "--compare", str(second), *small]
    try:
        figures: Any = _json(capsys, *words)
    except UserError as error:
        pytest.skip(str(error))  # no compiler or isolation here
    text = card.read_text(encoding="utf-8")
    assert text.startswith("# one\n") and text.count(BEGIN) == text.count(END) == 1
    bits = figures["held_out_files"]["bits_per_byte"]
    assert f"| bits per byte | {bits['value']:.4f} ± {bits['error']:.4f} | " in text
    own: Any = _json(capsys, "perplexity", str(first))
    assert own["bits_per_byte"] == bits and own["documents"] == 6
    assert "0 of 2 (at most 65.8%)" in text, "Wilson's bound of none of two"
    assert "0 of 2 (at most 77.6%)" in text, "one-sided bound of pass@1"
    assert "infill: left out, the file has no FIM tokens." in text
    assert {row["what"] for row in figures["compared"]} >= {"Rust, tests", "HumanEval (OpenAI), 164 problems"}
    assert all(row["problems"] > 0 for row in figures["compared"])

    card.write_text(f"# Mine\n\nBy hand.\n\n{BEGIN}\nold\n{END}\n\nThe end.\n", encoding="utf-8")
    dispatch(["eval", *words])
    again = card.read_text(encoding="utf-8")
    assert again.startswith("# Mine\n\nBy hand.\n") and again.endswith(f"{END}\n\nThe end.\n")
    assert "old" not in again.splitlines() and "| bits per byte |" in again
    card.write_text(f"{END}{BEGIN}", encoding="utf-8")
    with pytest.raises(UserError, match="marks are damaged"):
        dispatch(["eval", *words])
    assert card.read_text(encoding="utf-8") == f"{END}{BEGIN}"


def test_a_card_needs_a_gguf_and_its_data(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        dispatch(["eval", "card", str(shipped_model()), str(tmp_path / "none")])
    with pytest.raises(UserError, match="cannot read"):
        dispatch(["eval", "card", str(shipped_model()), str(data), "--run", str(tmp_path / "none")])


def test_humaneval_on_the_shipped_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nanochat_tui.evaluate.sandbox.isolation import isolation

    try:
        kind = isolation()
    except UserError as error:
        pytest.skip(str(error))
    words = ("humaneval", "--limit", "2", "--max-tokens", "8", "-n", "2", "--out", str(tmp_path / "run"))
    found = _json(capsys, *words)
    assert found["isolation"] == kind.value and found["temperature"] == 0.8 and found["unjudged"] == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(row["problem"], row["sample"]) for row in rows] == [
        ("HumanEval/0", 0),
        ("HumanEval/1", 0),
        ("HumanEval/0", 1),
        ("HumanEval/1", 1),
    ]
    assert dispatch(["eval", *words]) == 0
    assert "pass@1: 0.0% (95 % interval 0.0% to 77.6%; none of 2 problems was solved)" in capsys.readouterr().out
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 4, "nothing is done twice"
    assert dispatch(["eval", "compare", str(tmp_path / "run"), str(tmp_path / "run")]) == 0
    assert "| pass@1 | 0.0% | 0.0% | +0.0% (-77.6% to +77.6%) |" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no evaluation"):
        dispatch(["eval", "compare", str(tmp_path), str(tmp_path / "run")])
    with pytest.raises(UserError, match="its seed differ"):
        dispatch(["eval", *words, "--seed", "9"])


def test_practice_needs_a_chat_model_and_other_questions_to_measure(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "2 + 2?", "answer": 4}\n')
    with pytest.raises(UserError, match="d20-rust has no chat template"):
        dispatch(["grpo", str(shipped_model()), "--questions", str(path), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="1 held-out questions are practised too"):
        dispatch(["grpo", "--questions", str(path), "--held-out", str(path)])
    (tmp_path / "rules.json").write_text('{"G0": "when asked, answer"}')
    with pytest.raises(UserError, match="--experience has no place here"):
        dispatch(["chat", "--raw", "-p", "fn", "--experience", str(tmp_path / "rules.json")])
    assert not (tmp_path / "out").exists()
