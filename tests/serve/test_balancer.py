"""The documented nginx configuration, in front of two real replicas."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from servers import PROMPT, files, serving, wait_for

from nanochat_tui.serve.settings import Settings

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "server.md"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]


def _configuration(folder: Path, port: int, replicas: list[int]) -> Path:
    """Return the documented configuration with other addresses, without TLS, runnable by anybody."""
    text = re.search(r"```nginx\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert text is not None
    shown = text[1]
    for host, replica in zip(("10.0.0.11:8080", "10.0.0.12:8080"), replicas, strict=True):
        assert host in shown
        shown = shown.replace(host, f"127.0.0.1:{replica}")
    shown = shown.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    shown = re.sub(r"\n\s*ssl_certificate\S* .*;", "", shown)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{shown}\n}}\n"
    )
    return path


@contextmanager
def _balancing(folder: Path, port: int, replicas: list[int]) -> Iterator[str]:
    path = _configuration(folder, port, replicas)
    process = subprocess.Popen([str(NGINX), "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(path)])
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        try:
            return httpx.get(url + "/health", timeout=120).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(lambda: up() or process.poll() is not None, 120)
        assert process.poll() is None, (folder / "error.log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(120)


def test_nginx_balances_two_replicas_and_streams(base_file: Path, tmp_path: Path, free_port: int) -> None:
    with (
        serving(files(base_file)) as one,
        serving(files(base_file)) as other,
        _balancing(tmp_path, free_port, [one.port, other.port]) as url,
    ):
        body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
        for _ in range(6):
            assert httpx.post(url + "/v1/completions", json=body, timeout=120).status_code == 200
        for replica in (one, other):
            assert any("POST /v1/completions 200" in line for line in replica.lines)
        # the page's own requests carry an Origin, which must be recognised behind the proxy
        assert httpx.post(url + "/v1/completions", json=body, headers={"origin": url}, timeout=120).status_code == 200
        long = {**body, "max_tokens": 30_000, "stream": True}
        with httpx.stream("POST", url + "/v1/completions", json=long, timeout=120) as answer:
            pieces = answer.iter_bytes()
            assert next(pieces).startswith(b"data: ")
            assert one.running() + other.running() == 1  # it has only begun: nothing was kept back
        wait_for(lambda: one.running() + other.running() == 0, 10)  # leaving reaches through the proxy


def test_full_queues_are_passed_on_and_are_no_failures(base_file: Path, tmp_path: Path, free_port: int) -> None:
    settings = Settings("tiny", max_sequences=1, max_waiting=0)
    load = files(base_file, max_sequences=1, max_waiting=0)
    long = {"prompt": PROMPT, "max_tokens": 30_000, "temperature": 0, "stream": True}
    short = {"prompt": PROMPT, "max_tokens": 1}
    with (
        serving(load, settings) as one,
        serving(load, settings) as other,
        _balancing(tmp_path, free_port, [one.port, other.port]) as url,
        httpx.Client(timeout=120) as client,
    ):
        held = [
            client.send(client.build_request("POST", replica.url + "/v1/completions", json=long), stream=True)
            for replica in (one, other)
        ]
        for _ in range(8):
            refused = client.post(url + "/v1/completions", json=short)
            assert refused.status_code == 429 and refused.headers["retry-after"] == "2"
            assert refused.json()["error"]["code"] == "queue_full"
            assert client.get(url + "/health").status_code == 200
        for stream in held:
            stream.close()
        wait_for(lambda: one.running() + other.running() == 0)
        assert client.post(url + "/v1/completions", json=short).status_code == 200
