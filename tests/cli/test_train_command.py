"""`nanochat-train` as one types it: help, presets, dry runs, resuming by a run's name, a tokenizer of one's own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from typer.testing import CliRunner

from nanochat_tui.cli.train_app import app
from nanochat_tui.cli.train_plan import resolve_resume
from nanochat_tui.errors import UserError
from nanochat_tui.formats.checksums import sealed, verify_sealed
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.presets import PRESETS

SYNTHETIC = ["--config", "tiny", "--vocab-size", "256", "--dataset", "synthetic", "--steps", "5"]


def invoke(*arguments: str) -> tuple[int, str]:
    """Exit code and output; an error's sentence is output, too."""
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    if isinstance(done.exception, UserError):
        return done.exception.exit_code, done.output + str(done.exception)
    return done.exit_code, done.output


def checkpoint(run: Path, name: str, step: int) -> Path:
    folder = run / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes([step]) * 100)
    (folder / "state.json").write_text(json.dumps(sealed(folder, {"step": step, "config": {}})))
    return folder


def test_help_has_a_text_a_default_and_the_choices_of_every_option() -> None:
    code, text = invoke("train", "--help")
    assert code == 0
    plain = re.sub(r"[│\s]+", " ", text)
    for name, field in TrainConfig.model_fields.items():
        flag = "--" + name.replace("_", "-")
        assert flag in text, name
        assert field.description, name
        if name == "config":  # begins the settings and is no setting of its own here
            continue
        assert field.description.split(".")[0].split(";")[0][:30] in plain, name
        if field.default is not None:
            default = {True: "yes", False: "no"}[field.default] if isinstance(field.default, bool) else field.default
            shown = str(default).replace("\n", "\\n")
            assert re.search(re.escape(flag) + r" .*?\[default: " + re.escape(shown) + "]", plain), name
    for choices in ("<tokens|synthetic>", "<u16|u32>", "<1|2|4>", "<auto|float32|bfloat16>"):
        assert choices in text
    assert "<NAME|FILE>" in text or "NAME|FILE" in text
    assert all(f"{preset.name}, {preset.purpose}" in plain for preset in PRESETS.values())


def test_a_dry_run_says_what_the_form_shows(tmp_path: Path) -> None:
    code, text = invoke("train", "--config", "try-out", "--dry-run", "--checkpoint-dir", str(tmp_path / "run"))
    assert code == 0, text
    for word in ("ok       directory", "ok       memory", "parameters", "200 steps of 512 tokens", "time"):
        assert word in text
    assert not (tmp_path / "run").exists()
    code, text = invoke("train", "--data-path", str(tmp_path / "absent"), "--dry-run", "--json")
    assert code == 2
    found = json.loads(text)
    assert not found["ready"]
    assert any(c["name"] == "data" and c["state"] == "error" for c in found["checks"])


def test_a_preset_yields_to_what_is_typed(tmp_path: Path) -> None:
    code, text = invoke(
        "train", "--config", "d20-cpu", "--data-path", str(tmp_path), "--steps", "7", "--dry-run", "--json"
    )
    assert code == 2  # that folder holds no data
    config = json.loads(text)["config"]
    assert (config["head_frequent"], config["steps"], config["minutes"]) == (6144, 7, None)


def test_a_run_directory_names_its_newest_whole_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path, "step_9", 9)
    newest = checkpoint(tmp_path, "step_10", 10)
    for given, directory in ((str(tmp_path), None), ("latest", tmp_path), ("auto", tmp_path)):
        assert resolve_resume(given, directory) == newest
    assert resolve_resume(str(tmp_path / "step_9"), None) == tmp_path / "step_9"
    (newest / "model.safetensors").write_bytes(bytes([1]) + bytes([10]) * 99)
    assert resolve_resume("auto", tmp_path) == tmp_path / "step_9"
    assert "step_10 is damaged: model.safetensors is not what was written" in capsys.readouterr().err
    checkpoint(tmp_path, "final", 12)
    assert resolve_resume("latest", tmp_path) == tmp_path / "final"
    assert resolve_resume("auto", tmp_path / "new") is None
    for given in ("latest", str(tmp_path / "new"), str(tmp_path / "absent")):
        with pytest.raises(UserError):
            resolve_resume(given, tmp_path / "new")
    with pytest.raises(UserError, match="needs the run directory"):
        resolve_resume("auto", None)


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "state"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, harm: str) -> None:
    folder = checkpoint(tmp_path, "step_1", 1)
    weights = folder / "model.safetensors"
    state = json.loads((folder / "state.json").read_text())
    verify_sealed(folder, state)
    if harm == "flip":
        weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    elif harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif harm == "gone":
        weights.unlink()
    else:
        state["step"] = 2
    with pytest.raises(UserError, match="is missing" if harm == "gone" else "checksum differs"):
        verify_sealed(folder, state)


def source(folder: Path, indent: str = "    ") -> Path:
    folder.mkdir()
    for number in range(40):
        lines = [
            f"fn part_{number}_{i}(value: usize) -> usize {{\n{indent}value + {i * number}\n}}\n" for i in range(12)
        ]
        (folder / f"f{number}.rs").write_text("\n".join(lines))
    return folder


def test_a_tokenizer_is_trained_and_data_are_prepared_with_it(tmp_path: Path) -> None:
    tree = source(tmp_path / "tree")
    made: list[bytes] = []
    for name in ("a.json", "b.json"):
        path = tmp_path / name
        code, text = invoke(
            "tokenizer", str(tree), "-o", str(path), "--vocab-size", "400", "--eot-token", "</s>", "--workers", "1"
        )
        assert code == 0, text
        made.append(path.read_bytes())
    assert made[0] == made[1]
    tokenizer = Tokenizer.from_file(str(tmp_path / "a.json"))
    assert (tokenizer.get_vocab_size(), tokenizer.token_to_id("</s>")) == (400, 399)
    rust = (tree / "f3.rs").read_text()
    ids = tokenizer.encode(rust).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == rust
    assert len(ids) < len(rust) / 2
    assert tokenizer.decode(tokenizer.encode("ünïcödé 🦀").ids) == "ünïcödé 🦀"

    common = ["prepare-data", str(tree), "--tokenizer", str(tmp_path / "a.json"), "--workers", "1"]
    code, text = invoke(*common, "-o", str(tmp_path / "data"))
    assert code == 2
    assert "a.json has no token <|endoftext|>; name its end-of-text token with --eot-token" in text
    assert "</s>" in text
    code, text = invoke(*common, "-o", str(tmp_path / "data"), "--eot-token", "</s>")
    assert code == 0, text
    info: dict[str, Any] = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert (info["vocab_size"], info["eot_id"], info["eot_token"]) == (400, 399, "</s>")
    assert np.fromfile(tmp_path / "data" / "train.bin", "<u2")[0] == 399
    assert (tmp_path / "data" / "tokenizer.json").read_bytes() == made[0]
    code, text = invoke("tokenizer", str(tree), "-o", str(tmp_path / "a.json"))
    assert code == 2
    assert "exists already" in text
    code, text = invoke("tokenizer", str(tmp_path / "data"), "-o", str(tmp_path / "c.json"))
    assert code == 2
    assert "no file ending in .rs" in text


def test_code_indented_with_tabs_is_told_the_way(tmp_path: Path) -> None:
    tree = source(tmp_path / "tree", "\t")
    code, text = invoke("prepare-data", str(tree), "-o", str(tmp_path / "data"), "--workers", "1")
    assert code == 2
    assert "--indentation 0 keeps files that are indented with tabs" in text
    code, text = invoke("prepare-data", str(tree), "-o", str(tmp_path / "data"), "--workers", "1", "--indentation", "0")
    assert code == 0, text


def test_a_tokenizer_without_an_unknown_token_is_refused_in_words(tmp_path: Path) -> None:
    tree = source(tmp_path / "tree")
    tokenizer = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], unk_id=None))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "u.json"))
    arguments = ["prepare-data", str(tree), "-o", str(tmp_path / "data"), "--workers", "1"]
    code, text = invoke(*arguments, "--tokenizer", str(tmp_path / "u.json"))
    assert code == 2
    assert "the tokenizer cannot encode" in text
    assert not (tmp_path / "data").exists()


def test_auto_starts_continues_and_ends(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import subprocess

    command = [sys.executable, "-m", "nanochat_tui.cli.train_entry", "train", "--checkpoint-dir", str(tmp_path / "run")]
    command += [*SYNTHETIC, "--seq-len", "16", "--batch-size", "2", "--no-compile", "--resume", "auto"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row).get("step") for row in rows] == [1, 5, None]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
