"""Load on the server: tokens per second and time to first token with 1, 4, 8, ... streams at once.

    python benchmarks/server.py [--model M.gguf] [--clients 1 4 8] [--seconds 10] [--max-tokens 128] [--json]
    python benchmarks/server.py --model M.gguf --clients 1 4 --rounds 7 --seconds 0 --prompt fn    # four against one
    python benchmarks/server.py --model M.gguf --long 4000 [--tree CHECKOUT]      # short prompts next to a long one
    python benchmarks/server.py --url http://127.0.0.1:8000 --name llama-cpp-python    # a server that runs already

Every client sends one streamed completion after the other, with a prompt of its own, and measures on the wire: always
one, and more until the seconds are over. A row holds aggregate and per-stream tokens per second, the first token's p50
and p99, and what was lost (0, or it is a bug). Rounds take the numbers of clients in turns, so that a machine that is
slower for a while is so for all, and end with the median ratio of the last number's tokens per second to the first's.
--long measures instead what a long prompt does to the first tokens of short ones and to a running reply (see `mixed`),
--tree with the server of another checkout.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from mixed import as_text, measure_mixed

PROMPT = "fn main() {\n    let values = vec!["


@dataclass
class Row:
    server: str
    clients: int
    seconds: float
    requests: int
    lost: int
    tokens: int
    tokens_per_second: float
    per_stream: float
    first_p50: float
    first_p99: float


@dataclass
class Seen:
    first: list[float] = field(default_factory=list)
    writing: float = 0.0
    """Seconds between first and last tokens, of all replies together."""
    written: int = 0
    """Tokens that came in that time."""
    tokens: int = 0
    requests: int = 0
    lost: int = 0


def stream(connection: http.client.HTTPConnection, body: dict[str, object]) -> tuple[float | None, float, int, bool]:
    """Ask for one streamed reply; return when its first and last text came, its tokens, and whether it was complete.

    With the plainest client there is, because it shares the processors with the server.
    """
    first, last, count, done = None, 0.0, 0, False
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        for line in answer:
            if line.startswith(b"data: [DONE]"):
                done = answer.status == 200
            elif line.startswith(b"data: "):
                row = json.loads(line[6:])
                if row.get("choices") and row["choices"][0].get("text"):
                    last = time.monotonic()
                    first = first or last
                    count += 1
                count = (row.get("usage") or {}).get("completion_tokens", count)
    except (OSError, http.client.HTTPException):
        connection.close()  # the next request opens it again
        done = False
    return first, last, count, done


def client(
    connection: http.client.HTTPConnection, number: int, end: float, max_tokens: int, prompt: str, seen: Seen
) -> None:
    turn = 0
    while not turn or time.monotonic() < end:
        turn += 1
        body = {
            "prompt": f"// {number}.{turn}\n{prompt}",
            "max_tokens": max_tokens,
            "temperature": 0.8,
            "seed": 1000 * number + turn,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.monotonic()
        first, last, count, done = stream(connection, body)
        seen.requests += 1
        seen.lost += not done
        seen.tokens += count
        if first is not None:
            seen.first.append(first - began)
            if count > 1 and last > first:
                seen.written += count - 1
                seen.writing += last - first


def measure(url: str, name: str, clients: int, seconds: float, max_tokens: int, prompt: str = PROMPT) -> Row:
    seen = [Seen() for _ in range(clients)]
    opened = [http.client.HTTPConnection(urlsplit(url).netloc, timeout=120) for _ in seen]
    began = time.monotonic()
    threads = [
        threading.Thread(target=client, args=(connection, i, began + seconds, max_tokens, prompt, one))
        for i, (connection, one) in enumerate(zip(opened, seen, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    for connection in opened:
        connection.close()
    first = sorted(value for one in seen for value in one.first)
    writing = sum(one.writing for one in seen)
    tokens = sum(one.tokens for one in seen)
    return Row(
        server=name,
        clients=clients,
        seconds=took,
        requests=sum(one.requests for one in seen),
        lost=sum(one.lost for one in seen),
        tokens=tokens,
        tokens_per_second=tokens / took,
        per_stream=sum(one.written for one in seen) / writing if writing else 0.0,
        first_p50=first[len(first) // 2] if first else float("nan"),
        first_p99=first[min(len(first) - 1, int(len(first) * 0.99))] if first else float("nan"),
    )


def start(
    model: str | None, parallel: int, tree: str | None = None, *, more: Sequence[str] = ()
) -> tuple[subprocess.Popen[str], str]:
    module = ["-P", "-m", "nanochat_tui.cli.serve_entry"]
    command = [sys.executable, *module, "--port", "0", "-q", "--parallel", str(parallel), *more]
    environment = {**os.environ, **({"PYTHONPATH": tree} if tree else {})}
    process = subprocess.Popen(
        [*command, *(["--model", model] if model else [])], stderr=subprocess.PIPE, text=True, env=environment
    )
    url = ""
    for line in process.stderr or ():
        if "listening on " in line:
            url = line.split("listening on ")[1].split(": the chat")[0]
        if "is ready" in line:
            return process, url
    raise SystemExit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--url", help="measure this server; left out, ours is started")
    parser.add_argument("--name", default="nanochat-serve")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=1, help="how often the numbers of clients are gone through")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompt", default=PROMPT, help="its end; every request begins with a line of its own")
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--long", type=int, default=0, help="tokens of a long prompt; measures what it does to others")
    parser.add_argument("--tree", help="start the server of this checkout")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    process, url = (None, options.url) if options.url else start(options.model, options.parallel, options.tree)
    try:
        if options.long:
            found = measure_mixed(url, options.name, options.long, options.rounds)
            print(json.dumps(asdict(found)) if options.json else as_text(found))
            return
        measure(url, options.name, 1, 0.5, 16)  # no first request pays for what is made once
        rows = [
            measure(url, options.name, count, options.seconds, options.max_tokens, options.prompt)
            for _ in range(options.rounds)
            for count in options.clients
        ]
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    report(rows, options.clients)


def report(rows: list[Row], clients: list[int]) -> None:
    print(f"{'server':<18} clients requests lost   tok/s  per stream  first p50  first p99")
    for row in rows:
        print(
            f"{row.server:<18} {row.clients:>7} {row.requests:>8} {row.lost:>4} {row.tokens_per_second:>7.1f} "
            f"{row.per_stream:>11.1f} {row.first_p50 * 1e3:>7.1f} ms {row.first_p99 * 1e3:>7.1f} ms"
        )
    rounds = [rows[at : at + len(clients)] for at in range(0, len(rows), len(clients))]
    if len(rounds) > 1 and len(clients) > 1:
        ratios = [one[-1].tokens_per_second / one[0].tokens_per_second for one in rounds]
        print(
            f"{clients[-1]} clients against {clients[0]}: {statistics.median(ratios):.2f} times the tok/s (median of "
            f"{', '.join(f'{ratio:.2f}' for ratio in ratios)})"
        )


if __name__ == "__main__":
    main()
