"""Clients that people use, unchanged. They need packages of Python and JavaScript: see .ci/peers.

pip install '.[clients]' && npm install --prefix tests/serve/clients && pytest -m clients
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import Pages, answering, finished, send, settings, until
from servers import Running, files, serving

pytestmark = pytest.mark.clients

CLIENTS = Path(__file__).with_name("clients")
HELLO = [{"role": "user", "content": "hello"}]


def _said(running: Running, prompt: str = "Q: hello\nA:", tokens: int = 12) -> str:
    return "".join(t.text for t in running.service.model.generate(prompt, max_tokens=tokens, temperature=0))


def _node(script: str, url: str) -> Any:
    node = shutil.which("node")
    if node is None or not (CLIENTS / "node_modules").is_dir():
        pytest.skip("no node, or its packages are not installed: npm install --prefix tests/serve/clients")
    done = subprocess.run([node, str(CLIENTS / script), url], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_openai_for_javascript(chat: Running) -> None:
    found = _node("openai.mjs", chat.url + "/v1")
    expected = _said(chat)
    assert found["whole"] == found["streamed"] == found["helped"] == expected
    assert found["model"] == "tiny" and found["models"] == ["tiny", "gpt-4o"]
    assert found["usage"]["completion_tokens"] == 12 and found["text"] == _said(chat, "fn main")
    refused = {name: (each["kind"], each["status"]) for name, each in found["failures"].items()}
    assert refused == {
        "tools": ("BadRequestError", 400),
        "schema": ("BadRequestError", 400),
        "images": ("NotFoundError", 404),
        "responses": ("BadRequestError", 400),
    }
    assert found["failures"]["tools"]["param"] == "tools"
    assert found["failures"]["responses"]["param"] == "tools"
    assert "/v1/chat/completions" in found["failures"]["images"]["message"]
    for vector, text in zip(found["embedded"], ("x", "fn main"), strict=True):
        assert vector == pytest.approx(chat.service.model.embed(text).tolist(), abs=1e-6)  # type: ignore[union-attr]


def test_openai_for_javascript_without_the_prefix(chat: Running) -> None:
    assert _node("openai.mjs", chat.url)["whole"] == _said(chat)


def test_the_ai_sdk_of_vercel(chat: Running) -> None:
    found = _node("ai-sdk.mjs", chat.url + "/v1")
    assert found["whole"] == found["streamed"] == _said(chat) and found["finish"] == "length"
    assert found["usage"]["outputTokens"] == 12 and found["completion"] > 0


def test_openai_for_python(chat: Running) -> None:
    client = chat.openai()
    whole = client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=12, temperature=0)  # type: ignore[arg-type]
    assert whole.model == "tiny" and whole.choices[0].message.content == _said(chat)
    stop = _said(chat)[6:9]  # the helper takes a reply that its limit ended for a failure
    with client.chat.completions.stream(model="x", messages=HELLO, temperature=0, stop=stop) as stream:  # type: ignore[arg-type]
        assert stream.get_final_completion().choices[0].message.content == _said(chat).partition(stop)[0]


def test_langchain(chat: Running) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        model="any", base_url=chat.url + "/v1", api_key="none", temperature=0, max_tokens=12, max_retries=0
    )
    expected = _said(chat)
    assert model.invoke("hello").content == expected
    assert "".join(str(chunk.content) for chunk in model.stream("hello")) == expected
    assert [each.content for each in model.batch(["hello", "hello"])] == [expected] * 2
    begun = model.invoke([("user", "hello"), ("assistant", "Once upon")])
    assert begun.content == _said(chat, "Q: hello\nA: Once upon")
    completion = langchain.OpenAI(model="any", base_url=chat.url + "/v1", api_key="none", temperature=0, max_tokens=12)
    assert completion.invoke("fn main") == _said(chat, "fn main")


def test_litellm(chat: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for prices
    litellm = pytest.importorskip("litellm")
    common = {"messages": HELLO, "max_tokens": 12, "temperature": 0, "api_key": "none", "num_retries": 0}
    for model in ("openai/any", "hosted_vllm/any", "text-completion-openai/any"):
        whole = litellm.completion(model=model, api_base=chat.url + "/v1", **common)
        parts = litellm.completion(model=model, api_base=chat.url + "/v1", stream=True, **common)
        streamed = "".join(part.choices[0].delta.content or "" for part in parts)
        assert whole.choices[0].message.content == streamed
        if not model.startswith("text-"):
            assert streamed == _said(chat)


def test_the_command_llm(chat: Running, tmp_path: Path) -> None:
    command = shutil.which("llm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if command is None:
        pytest.skip("llm is not installed")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: any\n  api_base: {chat.url}/v1\n"
        f"- model_id: text\n  model_name: any\n  api_base: {chat.url}/v1\n  completion: true\n",
        encoding="utf-8",
    )
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path)}
    options = ["-o", "temperature", "0", "-o", "max_tokens", "12", "--no-log"]
    for stream in ([], ["--no-stream"]):
        for name, expected in (("ours", _said(chat)), ("text", _said(chat, "hello"))):
            done = subprocess.run(
                [command, "-m", name, *options, *stream, "hello"],
                env=environment, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stdout.removesuffix("\n") == expected


AXE = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations.map((v) =>
  `${v.id} (${v.impact}): ${v.nodes.map((n) => n.html).join(" | ")}`)"""
REPLY = (
    "# Title\n\nText with **marks**, `code` and [a link](https://a.b).\n\n- one\n- two\n\n```rust\nfn a() {}\n```\n\n"
)
WIDE = "|" + "column |" * 30 + "\n|" + "-|" * 30 + "\n|" + "cell |" * 30 + "\n"


def _axe(page: Any) -> list[str]:
    source = CLIENTS / "node_modules" / "axe-core" / "axe.min.js"
    if not source.is_file():
        pytest.skip("axe-core is not installed: npm install --prefix tests/serve/clients")
    page.evaluate(source.read_text(encoding="utf-8"))
    return list(page.evaluate(AXE))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_page(pages: Pages, chat: Running, scheme: str) -> None:
    page = pages(chat.url, color_scheme=scheme)
    assert _axe(page) == []
    entries = [{"token": t, "bytes": list(t.encode()), "logprob": -0.7, "top_logprobs": []} for t in ("a", " b", " c")]
    answering(page, {"delta": {"content": REPLY + WIDE}, "logprobs": None, "finish_reason": "stop"})
    send(page, "hello")
    finished(page)
    assert _axe(page) == []
    answering(page, {"delta": {"content": "a b c"}, "logprobs": {"content": entries}, "finish_reason": "stop"})
    page.click("#open")
    page.evaluate("$('probabilities').click()")
    assert _axe(page) == []  # with the settings open
    settings_shut = page.evaluate("(panel(false), $('side').hidden)")
    assert settings_shut
    send(page, "and now?")
    finished(page)
    page.locator(".tokens span").first.focus()
    assert page.locator("#tip").is_visible() and _axe(page) == []


def test_axe_finds_nothing_in_a_page_of_a_base_model_or_with_an_error(pages: Pages, base: Running) -> None:
    page = pages(base.url)
    settings(page, max_tokens=8)
    send(page, "fn main")
    finished(page)
    assert _axe(page) == []
    page.evaluate("keep(null, () => { kept.settings.temperature = -1; })")
    page.press("#text", "Enter")
    until(page, "document.querySelector('.note')")
    finished(page)
    assert _axe(page) == []
    page.complaints.clear()


def test_axe_finds_nothing_while_a_key_is_asked_for(browser: Any, chat_file: Path) -> None:
    from nanochat_tui.serve.settings import Settings

    with serving(files(chat_file), Settings("tiny", api_keys=("k",))) as running:
        page = browser.new_page()
        page.goto(running.url)
        until(page, "$('state').textContent.includes('API key')")
        assert _axe(page) == []
        page.close()
