"""`nanochat-serve` as a process: its flags, its exit codes, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from servers import PROMPT, wait_for
from support import TINY, write_model

from nanochat_tui.cli.entry import run
from nanochat_tui.cli.serve_entry import _dispatch
from nanochat_tui.errors import UserError
from nanochat_tui.model.shipped import CHAT, shipped_model, shipped_tokenizer
from nanochat_tui.serve.settings import checked_origins

COMMAND = [sys.executable, "-m", "nanochat_tui.cli.serve_entry"]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def _serving(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--threads", "1", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    )
    lines: list[str] = []

    def read() -> None:
        for line in process.stderr or ():
            lines.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_for(lambda: any("listening on" in line for line in lines) or process.poll() is not None, 120)
        assert process.poll() is None, lines
        url = next(line for line in lines if "listening on" in line).split("listening on ")[1].split(": the chat")[0]
        wait_for(lambda: httpx.get(url + "/health", timeout=120).status_code == 200, 120)
        yield process, url, lines
    finally:
        process.kill()
        process.wait()
        reader.join()


@pytest.mark.slow
def test_the_seeds_command_serves_the_shipped_model() -> None:
    model, tokenizer = shipped_model(), shipped_tokenizer()
    assert model and tokenizer
    mhc = model.with_suffix(".mhc")
    arguments = ["--model", str(model), "--mhc", str(mhc), "--tokenizer", str(tokenizer)]
    with _serving(*arguments, NANOCHAT_API_KEY="from-the-environment") as (process, url, lines):
        assert httpx.post(url + "/v1/completions", json={"prompt": "x"}, timeout=120).status_code == 401
        key = {"authorization": "Bearer from-the-environment"}
        body = {"prompt": "fn main() {", "max_tokens": 20, "temperature": 0}
        answer = httpx.post(url + "/v1/completions", json=body, headers=key, timeout=120).json()
        assert answer["model"] == "d20-rust" and "    " in answer["choices"][0]["text"]
        host, port = url.removeprefix("http://").split(":")
        for nonsense in (
            b"nonsense\r\n\r\n",
            b"GET /health HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        ):
            with socket.create_connection((host, int(port)), timeout=120) as connection:
                connection.sendall(nonsense + b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                while connection.recv(65_536):
                    pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert not any("Invalid HTTP" in line or "pip install" in line for line in lines)  # anybody could fill the log
    assert any("POST /v1/completions 200" in line for line in lines)
    assert not any("from-the-environment" in line for line in lines)


@pytest.mark.slow
def test_without_a_model_the_shipped_one_answers_a_request_with_rust() -> None:
    with _serving(NANOCHAT_API_KEY="k") as (process, url, _):
        talk = [{"role": "user", "content": "Write a Rust function"}]
        body = {"messages": talk, "max_tokens": 100, "temperature": 0.7, "seed": 1}
        key = {"authorization": "Bearer k"}
        answer = httpx.post(url + "/v1/chat/completions", json=body, headers=key, timeout=120).json()
        assert answer["model"] == CHAT
        text = answer["choices"][0]["message"]["content"]
        assert "fn " in text and "{" in text and "###" not in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def test_sigterm_under_load_ends_streams_in_order(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", TINY.with_(context_length=32_768))
    with _serving("--model", str(path), "--drain-seconds", "0.5") as (process, url, lines):
        texts: list[str] = []

        def stream() -> None:
            body = {"prompt": PROMPT, "max_tokens": 32_000, "temperature": 0, "stream": True}
            with httpx.stream("POST", url + "/v1/completions", json=body, timeout=120) as answer:
                texts.append(answer.read().decode())

        threads = [threading.Thread(target=stream) for _ in range(4)]
        for thread in threads:
            thread.start()
        # all four: what comes after the signal is refused, and rightly so
        wait_for(lambda: 'num_requests_running{model_name="m"} 4.0' in httpx.get(url + "/metrics", timeout=120).text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        for thread in threads:
            thread.join(120)
        assert len(texts) == 4
        for text in texts:
            assert text.endswith("data: [DONE]\n\n")
            assert '"code":"stopping"' in text or '"finish_reason":"length"' in text
    assert not any("Traceback" in line for line in lines), lines


def test_interrupt_is_130(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", TINY)
    with _serving("--model", str(path)) as (process, _, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130


def test_what_cannot_be_served_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"not a model at all" * 100)
    good = write_model(tmp_path / "m.gguf", TINY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, words in (
            (["--model", str(tmp_path / "none.gguf")], "no file"),
            (["--model", str(wrong), "--port", "0"], "GGUF"),
            (["--model", str(good), "--port", "many"], "--port"),
            (["--model", str(good), "--port", str(taken.getsockname()[1])], "cannot listen"),
            (["--model", str(good), "--host", "no such host", "--port", "0"], "cannot listen"),
            (["--model", str(good), "--threads", "0"], "--threads"),
        ):
            code = run(_dispatch, arguments)
            said = capsys.readouterr()
            last = said.err.strip().split("\n")[-1]
            assert code == 2 and last.startswith("error: ") and words in last, (arguments, said.err)
            assert said.out == "" and "Traceback" not in said.err


@pytest.mark.parametrize("key", ["", " ", "a b", "\u00e9", "a\n"])
def test_a_key_that_nobody_could_send_is_refused(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "m.gguf", TINY)
    arguments = ["--model", str(model), "--port", "0"]
    assert run(_dispatch, [*arguments, "--api-key", key]) == 2
    assert "without spaces and not empty" in capsys.readouterr().err
    monkeypatch.setenv("NANOCHAT_API_KEY", key)
    assert run(_dispatch, arguments) == 2
    assert "without spaces and not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "origin", ["x", "", "https://", "https://x/page", "https://x?a", "https://me@x", "http://x:no"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(UserError, match="is not a web origin"):
        checked_origins([origin])


def test_origins_are_those_that_browsers_send() -> None:
    given = ["https://X.example/", "https://x:443", "http://x:8080/", "http://[::1]:80", "*"]
    assert checked_origins(given) == ("https://x.example", "https://x", "http://x:8080", "http://[::1]", "*")


def test_version_and_help() -> None:
    assert _run("--version").stdout.startswith("nanochat-serve ")
    text = _run("--help").stdout
    assert all(flag in text for flag in ("--model", "--mhc", "--tokenizer", "--host", "--port", "--api-key", "--numa"))
