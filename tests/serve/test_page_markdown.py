"""The page's Markdown: the same whole or in pieces, in linear time, and finished parts are never touched again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat_tui.serve.page import FILE

pytestmark = pytest.mark.slow

PIECES = [
    "*", "**", "***", "_", "__", "~~", "`", "``", "```", "~~~", "[", "]", "](", "(", ")", "[a](http://b)", "\\", "\\*",
    "http://", "https://a.b.", "a", "word", " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\u2028", "- ", "* ", "1. ",
    "10) ", "> ", "#", "# ", "###### ", "|", "a|b\n-|-\n", "---\n", "-", ":", "<b>", "&amp;", "é", "🦀", "\ud83e",
]  # fmt: skip
REPEATED = [
    "`", "`a", "```````a", "*", "**", "**a ", "a** ", "**a** ", "*a ", "*a*", "__a ", "~~a", "[", "[a](", "[a]", "](",
    "[a](b", "[**a", "> ", ">", "- ", "- a\n", "- a\n\n  ", "  - a\n", "1. ", "1. a\n", "#", "# ", "# a #", "|", "-|",
    "a|", "a|b\n-|-\n", "|a\n", "---\n", "- - ", "```\n", "~~~a\n", "~", "\n", " ", " \n", "\t", "http://",
    "https://a. ",
    "http://.", "\\", "\\`", "\\``", "a\n", "a\n\n", "(", "<", "a `b` ", "**`a", "a\u2028", "- \u2028", "é", "🦀",
]  # fmt: skip
"""What a degenerate reply repeats; benchmarks/page_markdown.py measures the same constructs."""
MOST_RATIO = 2.2
"""Of the work for a text of twice the length: 2 is linear, 4 would be quadratic."""
MOST_PER_CHARACTER = 400
"""Work for a character: blocks lie in each other eight deep, and at each depth a line is looked at for every kind."""


@pytest.fixture(scope="module")
def sheet(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    page.set_content(FILE.read_text(encoding="utf-8"))
    yield page
    page.close()


def _whole(page: Any, text: str) -> str:
    return str(page.evaluate("(s) => { const d = make('div'); render(d, s); return d.innerHTML; }", text))


def _in_pieces(page: Any, parts: list[str]) -> str:
    script = """(parts) => { const d = make('div'); let s = '';
      for (const p of parts) render(d, s += p); return d.innerHTML; }"""
    return str(page.evaluate(script, parts))


@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(st.sampled_from(PIECES), max_size=40))
def test_a_text_in_pieces_is_the_text(sheet: Any, parts: list[str]) -> None:
    text = "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert _in_pieces(sheet, list(text)) == _whole(sheet, text)


COUNT = """() => {
  window.work = 0;
  const wrap = (owner, name, cost) => {
    const plain = owner[name];
    owner[name] = function (...given) {
      const before = this.lastIndex, answer = plain.apply(this, given);
      work += 1 + cost(this, given, answer, before);
      return answer;
    };
  };
  for (const name of ["slice", "repeat"]) wrap(String.prototype, name, (text, given, answer) => answer.length);
  for (const name of ["trim", "trimStart", "trimEnd", "split", "includes", "indexOf", "replace", "match", "matchAll"])
    wrap(String.prototype, name, (text) => text.length);
  for (const name of ["startsWith", "endsWith"])
    wrap(String.prototype, name, (text, [part]) => Math.min(text.length, part.length));
  wrap(RegExp.prototype, "exec", (rule, [text], answer, before) =>
    (rule.global || rule.sticky) && answer ? rule.lastIndex - before : text.length);
  wrap(Array.prototype, "splice", (list, given, answer) => answer.length + list.length - given[0]);
  wrap(Array.prototype, "shift", (list) => list.length);
  wrap(Array.prototype, "join", (list, given, answer) => answer.length);
  for (const name of ["slice", "every", "push"])
    wrap(Array.prototype, name, (list, given, answer) => answer.length || 0);
  wrap(Node.prototype, "isEqualNode", (node) => node.textContent.length);
  wrap(Element.prototype, "append", (node, given) => given.length);
}"""
"""Let the page count its work: the characters that its strings and patterns read and write, the nodes it makes."""


@pytest.fixture(scope="module")
def counted(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    page.set_content(FILE.read_text(encoding="utf-8"))
    page.evaluate(COUNT)
    yield page
    page.close()


def _work(page: Any, text: str) -> int:
    return int(page.evaluate("(s) => { const d = make('div'); work = 0; render(d, s); return work; }", text))


LITERAL = re.compile(r"(?<=[=(,\s&|!])/(?![/*])((?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+)/([a-z]*)")
PART = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(\?[:=!<]*|.", re.DOTALL)
UNBOUNDED = re.compile(r"[*+]|\{\d+,\}")


def _patterns(source: str) -> list[tuple[str, str]]:
    section = source.partition("/* Markdown, written as nodes")[2].partition("/* The server */")[0]
    assert section
    return [(m[1], m[2]) for m in LITERAL.finditer(section)]


def _goes_back(pattern: str, flags: str) -> str | None:
    """Return why a pattern may take more than linear time: the browser tries again with less of what it has matched."""
    parts = PART.findall(pattern)
    anchored = pattern.startswith("^") or "y" in flags
    if any(part.startswith("(?") and part != "(?:" for part in parts) or any(re.fullmatch(r"\\\d", p) for p in parts):
        return "looks around or back"
    text = "".join("x" if len(part) > 1 and part[0] in "\\[" else part for part in parts)
    if re.search(r"[*+}?]\?", text):
        return "is lazy"
    if re.search(r"\)([*+]|\{\d+,\})", text):
        return "repeats a group"
    for alternative in re.split(r"\|(?![^(]*\))", text):
        found = list(UNBOUNDED.finditer(alternative))
        if len(found) > 1:
            longest = max(len(UNBOUNDED.findall(each)) for each in alternative.split("|"))
            if longest > 1:
                return "has two parts of any length"
        if found and not anchored and found[-1].end() < len(alternative.rstrip(")")):
            return "asks for something behind a part of any length, from every place"
    return None


def test_no_pattern_goes_back_and_tries_again() -> None:
    found = _patterns(FILE.read_text(encoding="utf-8"))
    assert len(found) >= 12
    assert [(pattern, why) for pattern, flags in found if (why := _goes_back(pattern, flags))] == []
    # as they were before: each of these took seconds for a long reply
    for pattern in (
        r"(`+)([^]*?[^`])\1(?!`)",
        r"\*\*(?=\S)([^]*?\S)\*\*",
        r"\[([^\]\n]*)\]\(([^()\s]*)\)",
        r"^ {0,3}(#{1,6})\s+(.*?)\s*#*$",
        r"^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$",
        r"[.,;]+$",
    ):
        assert _goes_back(pattern, "g"), pattern


def test_what_is_counted_tells_linear_from_quadratic(counted: Any) -> None:
    once, twice = (
        counted.evaluate(
            "(s) => { work = 0; for (let i = 0; i < s.length; i++) s.slice(i).trim(); return work; }", "x" * n
        )
        for n in (1000, 2000)
    )
    assert twice > 3.9 * once


@pytest.mark.parametrize("construct", REPEATED)
def test_twice_the_text_takes_twice_the_work(counted: Any, construct: str) -> None:
    once, twice = (_work(counted, construct * (size // len(construct))) for size in (20_000, 40_000))
    assert once < MOST_PER_CHARACTER * 20_000 and twice < MOST_RATIO * once, (once, twice)


@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(st.sampled_from(PIECES[:-1]), min_size=1, max_size=6))
def test_any_repeated_construct_takes_linear_work(counted: Any, parts: list[str]) -> None:
    construct = "".join(parts)
    once, twice = (_work(counted, construct * (size // len(construct))) for size in (6000, 12_000))
    assert once < MOST_PER_CHARACTER * 6000 and twice < MOST_RATIO * once, (once, twice)


def test_growing_runs_of_backticks_take_linear_work(counted: Any) -> None:
    def runs(size: int) -> str:
        text, length = "", 1
        while len(text) < size:
            text += "`" * length + "a"
            length += 1
        return text

    assert _work(counted, runs(60_000)) < MOST_RATIO * _work(counted, runs(30_000))


@pytest.mark.parametrize("tail", ["more words", "- a\n", "```\ncode\n", "**bold** ", "a|b\n-|-\n1|2\n", "> q\n"])
def test_what_is_finished_is_not_touched_again(sheet: Any, tail: str) -> None:
    head = "# Title\n\nA paragraph with **marks**.\n\n- one\n- two\n\n```rust\nfn a() {}\n```\n\nlast words\n\nnow "
    script = """([head, parts]) => {
      const box = make("div"); document.body.append(box); render(box, head);
      const before = [...box.childNodes].slice(0, -1), seen = [];
      const watch = new MutationObserver((all) => seen.push(...all));
      watch.observe(box, { childList: true, characterData: true, attributes: true, subtree: true });
      let text = head;
      for (const part of parts) render(box, text += part);
      seen.push(...watch.takeRecords());
      const touched = before.filter((n, i) => box.childNodes[i] !== n || seen.some((r) => n.contains(r.target)));
      box.remove();
      return [before.length, touched.length];
    }"""
    count, touched = sheet.evaluate(script, [head, list(tail * 20)])
    assert count == 5 and touched == 0


def test_a_paragraph_that_grows_is_appended_to(sheet: Any) -> None:
    script = """(words) => {
      const box = make("div"); document.body.append(box); render(box, "It **begins** with");
      const seen = [], watch = new MutationObserver((all) => seen.push(...all));
      watch.observe(box, { childList: true, subtree: true });
      let text = "It **begins** with";
      for (const word of words) render(box, text += " " + word);
      seen.push(...watch.takeRecords());
      const added = seen.reduce((n, r) => n + r.addedNodes.length, 0), whole = box.textContent;
      box.remove();
      return [added, whole];
    }"""
    words = [f"word{i}" for i in range(200)]
    assert sheet.evaluate(script, words) == [0, "It begins with " + " ".join(words)]


@pytest.mark.parametrize(
    "construct", ["**a** ", "- a\n", "a|b\n-|-\n", "a\n\n", "`a` ", "> - a\n", "```\n", "[a](http://b) "]
)
def test_more_elements_than_a_browser_draws_are_plain_text(sheet: Any, construct: str) -> None:
    script = """([part, n]) => { const d = make('div'), e = make('div'); let s = '';
      render(d, part.repeat(n)); for (let i = 0; i < 40; i++) render(e, s += part.repeat(n / 40));
      return [d.querySelectorAll('*').length, d.textContent.length, d.isEqualNode(e)]; }"""
    made, length, same = sheet.evaluate(script, [construct, 20_000])
    assert made <= 10_100 and length >= 10_000 and same


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("***both*** a *b*c", "<p><strong><em>both</em></strong> a <em>b</em>c</p>"),
        ("**a *b* c** _d_", "<p><strong>a <em>b</em> c</strong> _d_</p>"),
        ("snake__case__x __init__", "<p>snake__case__x <strong>init</strong></p>"),
        ("2 * 3 * 4 ** 5", "<p>2 * 3 * 4 ** 5</p>"),
        ("`` a`b `` `c", "<p><code>a`b</code> `c</p>"),
        ("\\*not\\* \\`code\\`", "<p>*not* `code`</p>"),
        ("**open [a** b](http://c)", None),
        ("# Title ##\n## C#\n#no", "<h2>Title</h2><h3>C#</h3><p>#no</p>"),
        ("- - -\n***\n- a", "<hr><hr><ul><li>a</li></ul>"),
        ("~~~\n```\n~~~~\nx", '<pre><code>```</code><button type="button">Copy</button></pre><p>x</p>'),
        ("```a``` b", "<p><code>a</code> b</p>"),
        ("|a|b|\n|-|:-:|\n|1|2|3|", None),
    ],
)
def test_constructs(sheet: Any, source: str, expected: str | None) -> None:
    found = _whole(sheet, source)
    assert expected is None or found == expected
    assert _in_pieces(sheet, list(source)) == found
