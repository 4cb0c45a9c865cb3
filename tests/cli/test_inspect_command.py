"""`nanochat-tui inspect` prints what the inspection room finds, and its exit code says whether all is well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import TINY, random_records, write_model

from nanochat_tui.cli.app import dispatch
from nanochat_tui.cli.entry import run
from nanochat_tui.formats.mhc import write_mhc


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("inspect") / "model.gguf", TINY)


def test_json_has_the_promised_keys(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, ["inspect", str(model), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["architecture"] == "nanochat"
    assert found["parameters"] == TINY.parameters
    assert found["runs"] is True
    assert found["reason"] is None
    assert found["bits_per_weight"] > 0
    assert set(found["types"]["Q2_0"]) >= {"tensors", "bytes"}
    assert found["mhc"]["verified"] is True
    assert (found["mhc"]["streams"], found["mhc"]["records"], found["mhc"]["error"]) == (2, 2 * TINY.n_layers, None)
    assert "ternary" not in found
    memory = found["memory"]
    assert memory["total"] == memory["weights"] + memory["cache"] + memory["work"] > 0
    assert memory["fits"] is True and memory["context"] == TINY.context_length


def test_text_says_the_same_and_more_on_request(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, ["inspect", str(model)]) == 0
    plain = capsys.readouterr().out
    assert f"{TINY.parameters:,}" in plain
    assert "verified" in plain
    assert any(line.startswith("memory ") and "GB weights" in line for line in plain.splitlines())
    trits = next(line for line in plain.splitlines() if line.startswith("trits "))
    assert f"in all {7 * TINY.n_layers} ternary tensors" in trits and "+2" not in trits
    assert run(dispatch, ["inspect", str(model), "--metadata", "--ternary"]) == 0
    more = capsys.readouterr().out
    assert "nanochat.block_count" in more
    assert "blk.1.ffn_down.weight" in more
    assert run(dispatch, ["inspect", str(model), "--ternary", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["ternary"]) == 7 * TINY.n_layers


def test_a_sidecar_that_disagrees_is_reported_and_fails(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sidecar = tmp_path / "m.mhc"
    write_mhc(sidecar, 2, random_records(TINY, seed=9))
    assert run(dispatch, ["inspect", str(model), "--mhc", str(sidecar), "--json"]) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["mhc"]["verified"] is False
    assert found["runs"] is False
    assert found["reason"]
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_two_files_compared(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_model(tmp_path / "other.gguf", TINY, seed=5)
    assert run(dispatch, ["inspect", str(model), "--compare", str(other), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is False and found["trits"] == TINY.ternary_parameters
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    assert found["flipped"] == sum(layer["flipped"] for layer in found["layers"])
    assert run(dispatch, ["inspect", str(model), "--compare", str(other)]) == 1
    out = capsys.readouterr().out
    assert f"{found['flipped']:,} of {found['trits']:,} flipped" in out and "blk.1.ffn_down.weight" in out
    assert run(dispatch, ["inspect", str(model), "--compare", str(model)]) == 0
    assert "all equal" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--compare", "absent.gguf"], ["--compare", "{model}", "--ternary"]])
def test_comparing_refuses_in_a_sentence(model: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, ["inspect", str(model), *(word.format(model=model) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
