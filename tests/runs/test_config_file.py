"""Configurations as TOML: what `init-config` writes, what is read back, and where a mistake is said to stand."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import PRESETS as SHAPES
from nanochat_tui.runs import launcher, schema
from nanochat_tui.runs.config import LENGTHS, SHAPE_FIELDS, TrainConfig, parse_config
from nanochat_tui.runs.config_file import combined, find_settings, read_settings, settings_text
from nanochat_tui.runs.presets import PRESETS

DATA = {"data_path": Path("/data")}


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", PRESETS)
def test_a_written_preset_is_read_back(tmp_path: Path, name: str) -> None:
    text = settings_text(PRESETS[name].values, "a title")
    found = find_settings(written(tmp_path / "c.toml", text))
    assert parse_config(DATA | found.values) == parse_config(DATA | PRESETS[name].values)
    # every setting stands there, described, with its own line
    lines = text.split("\n")
    for field, info in TrainConfig.model_fields.items():
        assert f"# {info.description}" in lines
        if field in tomllib.loads(text):
            assert lines[found.lines[field] - 1].startswith(f"{field} = ")
        else:
            assert f"# {field} =" in lines


def test_presets_named_like_a_shape_are_of_it_and_leave_options_open() -> None:
    assert [*SHAPES] == [name for name in PRESETS if name in SHAPES] or set(SHAPES) <= set(PRESETS)
    for name in SHAPES:
        values = PRESETS[name].values
        assert values["config"] == name
        optional = {key for key in values if TrainConfig.model_fields[key].default is None}
        assert optional <= set(LENGTHS)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("changes", [{}, {"batch_size": 3, "muon_lr": 0.5}, {"steps": None, "minutes": 3.0}])
def test_a_command_line_gives_the_form_s_settings(name: str, changes: dict[str, object]) -> None:
    """What the launcher writes, read as `train` reads it, is what stood in the form."""
    values = {k: v for k, v in (PRESETS[name].values | DATA | changes).items() if v is not None}
    config = parse_config(values)
    words = launcher.config_arguments(config)
    begin, options = "d20", {}
    for flag, value in _pairs(words):
        if flag == "config":
            begin = value
        else:
            field = next(f for f in schema.form_fields() if f.name == flag)
            options[flag] = schema.from_text(field, value)
    assert parse_config(combined(find_settings(begin).values, options)) == config


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for word in words:
        if not word.startswith("--"):
            found[-1] = found[-1][0], word
        elif word.startswith("--no-"):
            found.append((word[5:].replace("-", "_"), "no"))
        else:
            found.append((word[2:].replace("-", "_"), "yes"))
    return found


def test_a_named_configuration_is_where_a_file_begins(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.toml", 'config = "d20-e3"\nminutes = 5\nns_steps = 4\n')
    config = parse_config(DATA | find_settings(file).values)
    assert (config.config, config.warmup_steps, config.ns_steps, config.decay_shape) == ("d20", 2000, 4, "cosine")
    assert (config.minutes, config.steps) == (5.0, None)  # its length, in place of the preset's
    with pytest.raises(UserError, match=r"mine.toml, line 1: there is no configuration d21; name one of try-out"):
        find_settings(written(tmp_path / "mine.toml", 'config = "d21"\n'))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n# a comment\nwarmup_steps = -1\n", r"c.toml, line 3: warmup_steps: .*greater than or equal to 0"),
        ("steps = 3\nwarm_up_steps = 3\n", r"line 2: there is no setting warm_up_steps; did you mean warmup_steps\?"),
        ("dataset = 'x'\n", r"line 1: dataset: .*'tokens' or 'synthetic'"),
        ('sample_prompt = """\na\nb"""\nns_steps = 99\n', r"line 4: ns_steps: .*less than or equal to 20"),
        ("seq_len = 100000\n", r"line 1: seq_len 100000 is longer than the model's context"),
        ("dim = 320\n", r"line 1: dim 320 .*must be multiples of group_size 128"),
        ("context_length = 16384\n", r"line 1: context_length: .*less than or equal to 8192"),
        ("[model]\ndim = 256\n", r"there is no setting model"),
        ("muon_lr = nan\n", r"line 1: muon_lr: .*finite"),
        ("steps = 0\nmuon_lr = 0\n", r"line 1: steps: .*; .*line 2: muon_lr: "),
    ],
)
def test_a_mistake_is_said_with_file_key_and_line(tmp_path: Path, text: str, said: str) -> None:
    found = find_settings(written(tmp_path / "c.toml", text))
    with pytest.raises(UserError, match=said):
        parse_config(DATA | found.values, found.origins)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps = \n", r"c.toml is not valid TOML: .*\(at line 1, column 9\)"),
        ("steps = 1\nsteps = 2\n", r"not valid TOML: .*line 2"),
        ("x = " + "[" * 5000, "not valid TOML|nested too deeply"),
    ],
)
def test_what_is_no_toml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_settings(Path(written(tmp_path / "c.toml", text)))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not a text file"):
        read_settings(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(UserError, match="too large"):
        read_settings(tmp_path / "c.toml")
    with pytest.raises(UserError, match=r"cannot read .*absent.toml"):
        read_settings(tmp_path / "absent.toml")


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_survives(text: str) -> None:
    assert tomllib.loads(settings_text({"sample_prompt": text}, "x"))["sample_prompt"] == text


def test_a_json_file_may_begin_from_a_named_configuration(tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", json.dumps({"config": "try-out", "steps": 7, "seed": None}))
    assert find_settings(file).values == PRESETS["try-out"].values | {"steps": 7}
    assert schema.load_preset(Path(file))["steps"] == "7"
    other = written(tmp_path / "other.json", json.dumps({"config": "no-such"}))
    with pytest.raises(UserError, match=r"other.json: there is no configuration no-such"):
        find_settings(other)
    # what a run recorded is whole: nothing is added to it
    (tmp_path / "config.json").write_text(json.dumps({"config": {"config": "nano-125m", "seed": 3}}))
    assert find_settings(str(tmp_path)).values == {"config": "nano-125m", "seed": 3}


def test_a_home_nobody_has_is_a_folder_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config({"data_path": "~no-such-user/data", "data_mix": "~no-such-user/more=2", "steps": 1})
    whole = config.with_absolute_paths()
    assert whole.data_path == tmp_path / "~no-such-user" / "data"
    assert whole.mixed_data() == [(tmp_path / "~no-such-user" / "more", 2.0)]
    field = next(field for field in schema.form_fields() if field.name == "data_path")
    assert schema.from_text(field, "~no-such-user/data") == Path("~no-such-user/data")


def test_the_form_saves_and_reads_toml(tmp_path: Path) -> None:
    config = parse_config(DATA | PRESETS["nano-125m"].values | {"steps": None, "minutes": 90.0})
    schema.save_settings(tmp_path / "a" / "mine.toml", config)
    checked = schema.check(schema.load_preset(tmp_path / "a" / "mine.toml"))
    assert checked.problems == {}
    assert checked.config == config
    with pytest.raises(UserError, match=r"c.toml, line 1 is a setting this trainer does not know: batch_sise"):
        schema.load_preset(Path(written(tmp_path / "c.toml", "batch_sise = 3\n")))


def test_any_shape_by_options() -> None:
    config = parse_config({"dataset": "synthetic", "dim": 512, "n_heads": 8, "hidden_dim": 1408, "n_layers": 3})
    shape = config.model_shape()
    assert (shape.n_heads, shape.n_kv_heads, shape.head_dim) == (8, 8, 64)
    # embedding, attention, feed-forward, norms, mHC records, by hand
    assert shape.parameters == 50_257 * 512 + 3 * (4 * 512**2 + 3 * 512 * 1408) + 7 * 512 + 6 * 9
    grouped = parse_config({"dataset": "synthetic", "n_kv_heads": 2, "context_length": 8192})
    assert grouped.model_shape().n_kv_heads == 2
    assert grouped.sequence_length == 8192
    assert parse_config({**DATA, "config": "7b", "n_heads": 64}).model_shape().n_kv_heads == 8
    assert set(SHAPE_FIELDS) <= set(TrainConfig.model_fields)


def test_a_value_of_thousands_of_lines_is_refused_with_its_own(tmp_path: Path) -> None:
    """Lines are found by parsing; parsing each of them with all before it would take minutes."""
    path = tmp_path / "c.toml"
    path.write_text("steps = 0\nseq_len = [\n" + "1,\n" * 50_000 + "]\nwarmup_steps = 3\n")
    found = read_settings(path)
    assert found.lines["steps"] == 1 and "warmup_steps" not in found.lines
    assert len(found.values["seq_len"]) == 50_000
