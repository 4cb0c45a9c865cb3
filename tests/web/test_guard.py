"""Who may use the page, by headers alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat_tui.browser import COMMANDS_VARIABLE, check_command
from nanochat_tui.errors import UserError
from nanochat_tui.hosts import is_loopback
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.launcher import launch, train_command
from nanochat_tui.web.guard import Guard, make_token, public_address

TOKEN = "t" * 32
HERE = Guard(TOKEN, "127.0.0.1", 8000)
EVERY = "0.0.0.0"  # noqa: S104
EVERYWHERE = Guard(TOKEN, EVERY, 8000)
BEHIND = Guard(TOKEN, "127.0.0.1", 8000, "https://host.example/chat/")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:9000", "LOCALHOST", "[::1]:8000", "127.9.9.9", "a.localhost:1", "localhost."]
)
def test_this_machines_names_are_accepted_on_any_port(host: str) -> None:
    assert HERE.accepts_host(host)


@pytest.mark.parametrize(
    "host",
    [
        *(None, "", ":80", "[]", "[::1", "localhost:x", "a@127.0.0.1", "127.0.0.1/x", "127.0.0.1 evil", "0x7f000001"),
        *("evil.test:8000", "127.0.0.1.evil.test", "localhost.evil.test", "10.0.0.7:8000"),
    ],
)
def test_other_names_are_not(host: str | None) -> None:
    assert not HERE.accepts_host(host)


def test_beyond_loopback_any_address_but_no_strange_name() -> None:
    for host in ("10.0.0.7:8000", "[fe80::1]:8000", "localhost"):
        assert EVERYWHERE.accepts_host(host)
    assert not EVERYWHERE.accepts_host("evil.test:8000")
    assert Guard(TOKEN, "box.lan", 80).accepts_host("box.lan")


def test_the_public_name_is_accepted() -> None:
    assert BEHIND.accepts_host("host.example")
    assert not BEHIND.accepts_host("other.example")
    assert BEHIND.is_encrypted("host.example")
    assert not BEHIND.is_encrypted("127.0.0.1:8000")
    assert not HERE.is_encrypted("host.example")
    assert BEHIND.accepts_origin("https://host.example", "127.0.0.1:8000")
    assert not BEHIND.accepts_origin("http://host.example", "127.0.0.1:8000")


@pytest.mark.parametrize(
    ("origin", "good"),
    [
        (None, True),
        ("http://127.0.0.1:8000", True),
        ("https://127.0.0.1:8000", True),  # TLS ends at a proxy
        ("http://127.0.0.1:8001", False),
        ("http://localhost:8000", False),
        ("http://evil.test", False),
        ("null", False),
        ("", False),
        ("file://", False),
        ("http://127.0.0.1:8000.evil.test", False),
        ("http://[", False),
    ],
)
def test_origins(origin: str | None, good: bool) -> None:
    assert HERE.accepts_origin(origin, "127.0.0.1:8000") is good


def test_tokens() -> None:
    made = make_token(None)
    assert len(made) >= 40
    assert made != make_token(None)
    assert make_token(f" {TOKEN}\n") == TOKEN
    for bad in ("", "short", "x" * 15, "ü" * 20, "a b" * 10):
        with pytest.raises(UserError, match="at least 16"):
            make_token(bad)
    assert HERE.knows_token(TOKEN)
    assert not any(HERE.knows_token(bad) for bad in (None, "", TOKEN[1:], "ü", "\udc80"))
    assert HERE.knows_cookie(HERE.cookie_value)
    assert not HERE.knows_cookie(TOKEN)
    assert TOKEN not in HERE.cookie_value


def test_addresses() -> None:
    assert public_address("https://host.example/chat") == "https://host.example/chat/"
    for bad in ("host.example", "ftp://x", "http://", "http://h:x", "http://a@h/", "https://h/?q=1"):
        with pytest.raises(UserError, match="no address of a page"):
            public_address(bad)
    assert (HERE.address, EVERYWHERE.address) == ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/")
    assert Guard(TOKEN, "::1", 80).address == "http://[::1]:80/"
    assert all(map(is_loopback, ("::1", "[::1]", "localhost", "127.1.2.3")))
    assert not any(map(is_loopback, (EVERY, "box", "10.0.0.1")))


@pytest.mark.parametrize("prefix", [["bash", "-c", "id"], ["ssh", "host"], ["torchrun"], ["nice", "-n", "10"]])
def test_a_page_starts_no_commands(prefix: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert train_command([], tmp_path, prefix)
    monkeypatch.setenv(COMMANDS_VARIABLE, "off")
    with pytest.raises(UserError, match="--allow-commands"):
        train_command([], tmp_path, prefix)
    with pytest.raises(UserError, match="--allow-commands"):
        launch(TrainConfig(config="tiny", dataset="synthetic"), prefix, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train_command([], tmp_path)
    check_command(())
    monkeypatch.setenv(COMMANDS_VARIABLE, "on")
    assert train_command([], tmp_path, prefix)
