"""Every command's `--json`: one form, with its version."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import typer

import nanochat_tui.cli
from nanochat_tui.cli.app import application, dispatch
from nanochat_tui.cli.json_output import SCHEMA, json_text
from nanochat_tui.cli.train_app import app as training
from nanochat_tui.model.shipped import shipped_model

COMMANDS = Path(nanochat_tui.cli.__file__).parent


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor"],
        ["inspect"],
        ["inspect", "MODEL", "--compare", "MODEL"],
        ["cache"],
        ["chat", "-p", "fn main() {", "--max-tokens", "2"],
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_every_object_begins_with_the_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    dispatch([str(shipped_model()) if word == "MODEL" else word for word in [*arguments, "--json"]])
    out = capsys.readouterr().out
    texts = out.splitlines() if arguments[0] == "chat" else [out]
    for text in texts:
        assert next(iter(json.loads(text).items())) == ("schema", SCHEMA)


def test_a_value_of_that_name_is_not_lost() -> None:
    with pytest.raises(ValueError, match="schema"):
        json_text({"schema": "mine"})


def test_no_command_prints_json_by_itself() -> None:
    def prints(node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("print", "typer.echo", "sys.stdout.write")
            and "dumps" in ast.unparse(node)
        )

    found = [
        (path.name, node.lineno)
        for path in COMMANDS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if prints(node) and isinstance(node, ast.Call)
    ]
    assert not [one for one in found if one[0] != "measurement_worker.py"], "use json_text"


def test_the_help_says_it() -> None:
    for app in (application(), training):
        with_json = [
            option
            for command in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
            for option in command.params
            if "--json" in option.opts
        ]
        assert with_json
        assert all("schema" in option.help or "dry run" in option.help for option in with_json)
