"""How long the chat page's Markdown takes for the worst texts a model could write, in Chromium.

    python benchmarks/page_markdown.py [--size 100000] [--most 100] [--chromium PATH] [--json]

Every construct is repeated to the size (characters) and rendered at once, the fastest of three times: parsing and
making the nodes, without layout. With --pieces the same text also arrives in pieces of 200 characters, as it is
streamed. Exit code 1 if one of the first takes longer than so many milliseconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "serve"))
from test_page_markdown import REPEATED  # the constructs whose work is counted there

from nanochat_tui.serve.page import FILE

WHOLE = """(s) => { const times = []; for (let i = 0; i < 3; i++) { const t = performance.now(); render(make('div'), s);
  times.push(performance.now() - t); } return Math.min(...times); }"""
PIECES = """(s) => { const d = make('div'), t = performance.now();
  for (let i = 200; i <= s.length; i += 200) render(d, s.slice(0, i)); return performance.now() - t; }"""


def growing(size: int) -> str:
    text, length = "", 1
    while len(text) < size:
        text += "`" * length + "a"
        length += 1
    return text[:size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--most", type=float, default=100.0)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--pieces", action="store_true", help="measure streaming too (minutes)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content(FILE.read_text(encoding="utf-8"))
        texts = {repr(each): each * (options.size // len(each)) for each in REPEATED}
        texts["growing runs of backticks"] = growing(options.size)
        for name, text in texts.items():
            rows[name] = {"whole_ms": round(page.evaluate(WHOLE, text), 1)}
            if options.pieces:
                rows[name]["pieces_ms"] = round(page.evaluate(PIECES, text))
        browser.close()
    slow = [name for name, row in rows.items() if row["whole_ms"] > options.most]
    if options.json:
        print(json.dumps({"size": options.size, "rows": rows, "slow": slow}))
    else:
        for name, row in sorted(rows.items(), key=lambda item: -item[1]["whole_ms"]):
            print(f"{name:28}", *(f"{key} {value}" for key, value in row.items()))
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
