"""Load with tools and grammars: is every call and every object valid, is anything lost, does memory stay where it is?

    python benchmarks/server_tools.py [--model M.gguf] [--clients 1 4 16] [--seconds 60] [--seed 0] [--json]

Clients send conversations one after the other, streamed and whole in turns: with tools of which one must be called,
with a JSON schema, with a regular expression. Every answer is read as a client would read it, and arguments and
objects are checked against their schemas. Resident memory of the server is taken before and after each row; before the
first one each kind was asked for by as many clients as there will ever be. The chat template is Qwen3's, which knows
tools, whatever the model. Exit code 1 if an answer was lost or invalid.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import psutil
from server import start  # the file next to this one

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tool_templates import QWEN3

SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Rome", "Oslo", "Lima"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "detail": {"type": "boolean"},
        },
        "required": ["city", "days", "detail"],
        "additionalProperties": False,
    },
    "alarm": {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "label": {"type": "string", "maxLength": 20}},
        "required": ["on", "label"],
        "additionalProperties": False,
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"Use {name}.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
PATTERN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMAS["weather"]}}
KINDS: dict[str, dict[str, Any]] = {
    "tools": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    "schema": {"response_format": FORMAT},
    "regex": {"guided_regex": PATTERN},
}


@dataclass
class Row:
    clients: int
    seconds: float
    requests: int
    calls: int
    objects: int
    lost: int
    invalid: int
    tokens: int
    tokens_per_second: float
    rss_start_mib: float
    rss_end_mib: float


def read(http: httpx.Client, body: dict[str, Any]) -> tuple[str, list[dict[str, str]], str | None, int]:
    """Return content, calls, finish reason and tokens of an answer, put together from its events if it is a stream."""
    if not body["stream"]:
        answer = http.post("/v1/chat/completions", json=body).raise_for_status().json()
        choice = answer["choices"][0]
        calls = [call["function"] for call in choice["message"].get("tool_calls") or ()]
        tokens = answer["usage"]["completion_tokens"]
        return choice["message"]["content"] or "", calls, choice["finish_reason"], tokens
    content, found, reason, tokens, done = "", {}, None, 0, False
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            done = done or line == "data: [DONE]"
            if not line.startswith("data: {"):
                continue
            row = json.loads(line[6:])
            tokens = (row.get("usage") or {}).get("completion_tokens", tokens)
            for choice in row["choices"]:
                reason = choice["finish_reason"] or reason
                content += choice["delta"].get("content") or ""
                for part in choice["delta"].get("tool_calls") or ():
                    call = found.setdefault(part["index"], {"name": "", "arguments": ""})
                    for name, text in part["function"].items():
                        call[name] += text
    return content, list(found.values()), reason if done else None, tokens


def wrong(kind: str, content: str, calls: list[dict[str, str]], reason: str | None) -> bool:
    """Return whether an answer is not what its request demands."""
    try:
        if kind == "tools":
            (call,) = calls
            jsonschema_rs.validate(SCHEMAS[call["name"]], json.loads(call["arguments"]))
            return reason != "tool_calls"
        if kind == "schema":
            jsonschema_rs.validate(SCHEMAS["weather"], json.loads(content))
        elif not re.fullmatch(PATTERN, content):
            return True
    except (ValueError, KeyError, jsonschema_rs.ValidationError):
        return True
    return reason != "stop"


class Load:
    def __init__(self, url: str, seed: int) -> None:
        self.url, self.seed = url, seed
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self._lock = threading.Lock()

    def client(self, number: int, end: float) -> None:
        rng = random.Random(self.seed * 1000 + number)  # noqa: S311 (no secret)
        with httpx.Client(base_url=self.url, timeout=600) as http:
            for turn in range(1 << 30):
                if turn >= len(KINDS) and time.monotonic() >= end:
                    return
                kind = list(KINDS)[turn % len(KINDS)]
                ask = f"Question {rng.randrange(1 << 30)}: what is the weather in Rome?"
                body = {"messages": [{"role": "user", "content": ask}], "stream": turn % 2 == 0, **KINDS[kind]}
                body |= {"max_tokens": 200, "temperature": 1.0, "seed": rng.randrange(1 << 30)}
                if body["stream"]:
                    body["stream_options"] = {"include_usage": True}
                try:
                    content, calls, reason, tokens = read(http, body)
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.note(kind, lost=f"{kind}: {error!r}")
                    continue
                if reason is None:
                    self.note(kind, lost=f"{kind}: the stream had no end")
                elif wrong(kind, content, calls, reason):
                    self.note(kind, invalid=f"{kind}: {reason} {content!r} {calls}", tokens=tokens)
                else:
                    self.note(kind, tokens=tokens)

    def note(self, kind: str, *, tokens: int = 0, lost: str = "", invalid: str = "") -> None:
        with self._lock:
            self.counts.update({kind: 1, "tokens": tokens, "lost": bool(lost), "invalid": bool(invalid)})
            self.notes += [text[:300] for text in (lost, invalid) if text]

    def run(self, clients: int, seconds: float, process: psutil.Process) -> Row:
        self.counts.clear()
        before, began = process.memory_info().rss, time.monotonic()
        threads = [threading.Thread(target=self.client, args=(i, began + seconds)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took, counts = time.monotonic() - began, self.counts
        return Row(
            clients=clients,
            seconds=took,
            requests=sum(counts[kind] for kind in KINDS),
            calls=counts["tools"],
            objects=counts["schema"],
            lost=counts["lost"],
            invalid=counts["invalid"],
            tokens=counts["tokens"],
            tokens_per_second=counts["tokens"] / took,
            rss_start_mib=before / 2**20,
            rss_end_mib=process.memory_info().rss / 2**20,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "tools.jinja"
        template.write_text(QWEN3)
        process, url = start(options.model, 16, more=("--chat-template", str(template)))
    try:
        load, server = Load(url, options.seed), psutil.Process(process.pid)
        load.run(max(options.clients), 0, server)
        rows = [load.run(clients, options.seconds, server) for clients in options.clients]
    finally:
        process.terminate()
        code = process.wait(60)
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "notes": load.notes, "exit_code": code}))
    else:
        print("clients requests  calls objects lost invalid  tok/s  MiB before  MiB after")
        for row in rows:
            print(
                f"{row.clients:7} {row.requests:8} {row.calls:6} {row.objects:7} {row.lost:4} {row.invalid:7} "
                f"{row.tokens_per_second:6.0f} {row.rss_start_mib:11.0f} {row.rss_end_mib:10.0f}"
            )
        print(*load.notes[:10], sep="\n", end="\n" if load.notes else "")
    sys.exit(bool(load.notes) or code not in (0, -15))


if __name__ == "__main__":
    main()
