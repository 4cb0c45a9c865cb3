"""The tokenizer belongs to the data, the run, the checkpoint and the export."""

import json
from pathlib import Path

import pytest
from support import tiny_tokenizer
from trained import on_data, run, settings, train, words, write_data
from typer.testing import CliRunner

from nanochat_tui.cli.train_app import app
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.train.sampling import write_sample
from nanochat_tui.train.trainer import Trainer

EVALUATED = {"steps": 4, "eval_interval": 2, "sample_tokens": 5, "checkpoint_interval": 2}


def test_a_small_vocabulary_trains_samples_and_is_exported(tmp_path: Path) -> None:
    """A vocabulary below 50,257 ended in an IndexError at the first evaluation; without --vocab-size it trained
    50,257 rows."""
    data = write_data(tmp_path / "data")
    rows = train(tmp_path / "run", **on_data(data, **EVALUATED))
    assert "val_loss" in rows[1]
    directory = RunDirectory(tmp_path / "run")
    state = json.loads((tmp_path / "run" / "final" / "state.json").read_text())
    promised = json.loads((data / "dataset.json").read_text())
    assert state["model"]["vocab_size"] == 300
    assert state["config"]["vocab_size"] == 300
    assert state["tokenizer"] == {"vocab_size": 300, "sha256": promised["tokenizer_sha256"], "end_of_text": 299}
    assert directory.config()["tokenizer"] == state["tokenizer"]
    assert [row["step"] for row in directory.samples()] == [2, 4]
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (data / "tokenizer.json").read_bytes()

    for file in data.iterdir():  # the run and its checkpoint say enough
        file.unlink()
    gguf = tmp_path / "out" / "m.gguf"
    arguments = ["export", "--checkpoint", str(tmp_path / "run" / "final"), "--gguf", str(gguf), "--no-compare"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "the one the data was made with" in done.output
    with read_gguf(gguf) as file:
        assert file.metadata["tokenizer.ggml.eos_token_id"].value == 299


def test_the_shipped_tokenizer_is_not_put_to_other_data(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", copy=False)
    train(tmp_path / "run", **on_data(data, **EVALUATED))
    assert "no samples are written" in (tmp_path / "run" / "log.txt").read_text()
    assert not RunDirectory(tmp_path / "run").samples()
    gguf = tmp_path / "out" / "m.gguf"
    arguments = ["export", "--checkpoint", str(tmp_path / "run" / "final"), "--gguf", str(gguf), "--no-compare"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, UserError)
    assert "was not found; give it with --tokenizer" in str(refused.exception)
    other = tmp_path / "other.json"
    tiny_tokenizer(300).save(str(other), pretty=True)
    refused = CliRunner().invoke(app, [*arguments, "--tokenizer", str(other)])
    assert "is not the tokenizer the data was made with" in str(refused.exception)
    assert not gguf.parent.exists() or not list(gguf.parent.iterdir())


@pytest.mark.parametrize("size", [299, 301, 50_257])
def test_another_vocabulary_than_the_data_s_is_refused(tmp_path: Path, size: int) -> None:
    data = write_data(tmp_path / "data")
    done = run(words(tmp_path / "run", **on_data(data, steps=2, vocab_size=size)))
    assert done.returncode == 2
    assert f"the data has 300 token ids but vocab_size says {size:,}" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_tokenizer_than_the_data_s_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    other = tmp_path / "other.json"
    tiny_tokenizer(300).save(str(other), pretty=True)
    with pytest.raises(UserError, match=r"other\.json is not the tokenizer the data was made with"):
        train(tmp_path / "run", **on_data(data, steps=2, tokenizer=other))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        ("cut", "3,000 tokens where dataset.json promises 4,000"),
        ("rot", "is not what prepare-data wrote"),
    ],
)
def test_token_files_that_changed_are_refused(tmp_path: Path, harm: str, problem: str) -> None:
    data = write_data(tmp_path / "data")
    content = bytearray((data / "train.bin").read_bytes())
    if harm == "cut":
        del content[6000:]
    else:
        content[100] ^= 1
    (data / "train.bin").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        Trainer(parse_config(settings(**on_data(data, steps=2))), tmp_path / "run")
    if harm == "rot":
        train(tmp_path / "run", **on_data(data, steps=2, verify_data=False))


def test_a_sample_knows_no_end_and_no_prompt(tmp_path: Path) -> None:
    trainer = Trainer(parse_config(settings(vocab_size=300)), tmp_path / "run")
    tokenizer = tiny_tokenizer(300)
    options = {"tokens": 4, "seed": 1, "indentation": 0}
    assert write_sample(trainer.model, tokenizer, "", end=None, **options) == ""  # type: ignore[arg-type]
    assert isinstance(write_sample(trainer.model, tokenizer, "fn", end=None, **options), str)  # type: ignore[arg-type]
    assert isinstance(write_sample(trainer.model, tokenizer, "", end=299, **options), str)  # type: ignore[arg-type]
