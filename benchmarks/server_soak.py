"""Ten minutes of everything a server meets, and its resident memory: does it grow, does it lose a reply?

    python benchmarks/server_soak.py [--model M.gguf] [--minutes 10] [--clients 8] [--seed 0] [--json]

Clients stream, ask for whole replies, leave in the middle, use salts of their own, tokenise, look at pages and routes
that are not there, send too long prompts and broken JSON, at random. Memory is sampled every five seconds; the line
through its second half says how much an hour would add. Exit code 1 if a request was answered wrong or if memory kept
growing after the first quarter.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter

import httpx
import psutil
from server import start  # the file next to this one

GROWTH_BYTES = 24 << 20
"""Between the second quarter's median and the last's; allocators keep some, a leak of 1 kB per token is more."""
SAMPLE_SECONDS = 5.0
WORDS = ["fn", "let", "mut", "self", "match", "impl", "struct", "return", "// note", "for", "in", "{", "}", "();\n"]


class Soak:
    def __init__(self, url: str, seed: int) -> None:
        self.url, self.seed = url, seed
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self._lock = threading.Lock()

    def note(self, what: str, error: str | None = None) -> None:
        with self._lock:
            self.counts[what] += 1
            if error is not None:
                self.errors.append(f"{what}: {error}"[:300])

    def client(self, number: int, end: float) -> None:
        rng = random.Random(self.seed * 1000 + number)  # noqa: S311 (no secret)
        kinds = [self.stream] * 5 + [self.whole] * 3 + [self.leave] * 2
        kinds += [self.too_long, self.broken, self.chat, self.salted, self.others]
        with httpx.Client(base_url=self.url, timeout=600) as http:
            while time.monotonic() < end:
                kind = rng.choice(kinds)
                try:
                    self.note(kind.__name__, kind(http, rng))
                except httpx.HTTPError as error:
                    self.note(kind.__name__, repr(error))

    def body(self, rng: random.Random, **more: object) -> dict[str, object]:
        text = " ".join(rng.choices(WORDS, k=rng.randrange(4, 300)))
        if rng.random() < 0.3:  # a prompt known already, for the prefix cache
            text = "fn main() {\n" * 40 + text[:40]
        return {"prompt": text, "max_tokens": rng.randrange(1, 200), "seed": rng.randrange(1 << 30), **more}

    def stream(self, http: httpx.Client, rng: random.Random) -> str | None:
        body = self.body(rng, stream=True, logprobs=rng.choice([None, 5]))
        with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        return None if answer.status_code == 200 and lines[-1:] == ["data: [DONE]"] else f"{answer.status_code} {lines}"

    def whole(self, http: httpx.Client, rng: random.Random) -> str | None:
        answer = http.post("/v1/completions", json=self.body(rng, n=rng.randrange(1, 4)))
        right = answer.status_code == 200 and all(one["finish_reason"] for one in answer.json()["choices"])
        return None if right else answer.text

    def chat(self, http: httpx.Client, rng: random.Random) -> str | None:
        body = self.body(rng)
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        answer = http.post("/v1/chat/completions", json=body)
        return None if answer.status_code == 200 else answer.text

    def salted(self, http: httpx.Client, rng: random.Random) -> str | None:
        salts = [{"cache_salt": f"{rng.random()}"}, {"cache_prompt": False}, {"cache_salt": "shared"}]
        answer = http.post("/v1/completions", json=self.body(rng, ignore_eos=True, min_tokens=1, **rng.choice(salts)))
        return None if answer.status_code == 200 else answer.text

    def others(self, http: httpx.Client, rng: random.Random) -> str | None:
        path, status = rng.choice([("/", 200), ("/metrics", 200), ("/v1/models", 200), (f"/{rng.random()}", 404)])
        found = http.get(path).status_code
        ids = http.post("/tokenize", json={"content": " ".join(rng.choices(WORDS, k=500))}).json()["tokens"]
        back = http.post("/detokenize", json={"tokens": ids})
        return None if (found, back.status_code) == (status, 200) else f"{path}: {found}, {back.text}"

    def leave(self, http: httpx.Client, rng: random.Random) -> str | None:
        after = rng.randrange(1, 20)
        with http.stream("POST", "/v1/completions", json=self.body(rng, stream=True)) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if number >= after:
                    break
        return None if answer.status_code == 200 else str(answer.status_code)

    def too_long(self, http: httpx.Client, rng: random.Random) -> str | None:
        answer = http.post("/v1/completions", json={"prompt": "word " * rng.randrange(5_000, 200_000)})
        return None if answer.status_code == 400 else f"{answer.status_code} {answer.text}"

    def broken(self, http: httpx.Client, rng: random.Random) -> str | None:
        content = rng.choice([b'{"prompt": "', b"\xff\xfe", b"[]", b'{"prompt": 3.5}'])
        answer = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        return None if 400 <= answer.status_code < 500 else f"{answer.status_code} {answer.text}"


def slope(memory: list[int]) -> float:
    """Return how many MiB an hour adds, by the line of least squares through samples in bytes."""
    if len(memory) < 2:
        return 0.0
    hours = [number * SAMPLE_SECONDS / 3600 for number in range(len(memory))]
    return statistics.linear_regression(hours, [value / 2**20 for value in memory]).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    process, url = start(options.model, parallel=8)
    memory: list[int] = []
    try:
        soak, end = Soak(url, options.seed), time.monotonic() + 60 * options.minutes
        threads = [threading.Thread(target=soak.client, args=(i, end)) for i in range(options.clients)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end and process.poll() is None:
            memory.append(psutil.Process(process.pid).memory_info().rss)
            time.sleep(SAMPLE_SECONDS)
        for thread in threads:
            thread.join()
        handles = psutil.Process(process.pid).num_fds() if hasattr(psutil.Process, "num_fds") else -1
        page = httpx.get(f"{url}/metrics").text
        left = [line for line in page.splitlines() if line.startswith(("nanochat_num_requests", "nanochat_kv"))]
    finally:
        process.terminate()
        code = process.wait(60)
    quarter = max(1, len(memory) // 4)
    early, late = statistics.median(memory[quarter : 2 * quarter] or memory), statistics.median(memory[-quarter:])
    found = {
        "requests": sum(soak.counts.values()),
        "by_kind": dict(soak.counts),
        "wrong": soak.errors,
        "memory_mib": [round(value / 2**20) for value in memory],
        "growth_mib": round((late - early) / 2**20, 1),
        "mib_per_hour": round(slope(memory[len(memory) // 2 :]), 1),
        "open_files": handles,
        "left": left,
        "exit_code": code,
    }
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    sys.exit(bool(soak.errors) or late - early > GROWTH_BYTES)


if __name__ == "__main__":
    main()
