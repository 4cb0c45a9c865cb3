"""`--attach`: the command line on a real server."""

from __future__ import annotations

import json

import pytest
from openai_server import WORDS, serving

from nanochat_tui.cli.app import dispatch
from nanochat_tui.errors import UserError


def test_a_reply_of_a_server_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        assert dispatch(["chat", "--attach", server.url, "-p", "hi", "--system", "be brief"]) == 0
        assert capsys.readouterr().out == "".join(WORDS) + "\n"
        assert [m["role"] for m in server.requests[-1]["messages"]] == ["system", "user"]
        assert dispatch(["chat", "other", "--attach", server.url, "-p", "fn x", "--raw", "--json"]) == 0
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (last["event"], last["text"], last["tokens"]) == ("finished", "".join(WORDS), 6)
        assert (server.requests[-1]["model"], server.requests[-1]["prompt"]) == ("other", "fn x")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="leave them out"):
        dispatch(["chat", "--attach", "http://127.0.0.1:9", "-p", "x", "--threads", "1"])
    with pytest.raises(UserError, match="no address"):
        dispatch(["chat", "--attach", "ftp://x", "-p", "x"])
    with pytest.raises(UserError, match="There is no server"):
        dispatch(["chat", "--attach", "http://127.0.0.1:9", "-p", "x"])
