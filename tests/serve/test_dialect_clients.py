"""OpenAI's client with `/v1/responses`, and Anthropic's with `/v1/messages`, both unchanged."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from servers import Running
from test_dialects import said

HELLO: Any = [{"role": "user", "content": "hello"}]


def test_openais_responses(chat: Running) -> None:
    client = chat.openai()
    whole = client.responses.create(model="tiny", input="hello", max_output_tokens=12, temperature=0)
    assert whole.output_text == said(chat) and whole.status == "incomplete"
    assert whole.incomplete_details is not None and whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None and whole.usage.output_tokens == 12
    with client.responses.stream(model="tiny", input="hello", max_output_tokens=12, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == whole.output_text
    stop = client.responses.create(
        model="tiny", input="more", previous_response_id=whole.id, max_output_tokens=4, temperature=0
    )
    assert stop.previous_response_id == whole.id
    assert client.responses.retrieve(whole.id).output_text == whole.output_text
    assert [item.type for item in client.responses.input_items.list(stop.id)] == ["message"]
    client.responses.delete(whole.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(whole.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="tiny", input="x", tools=[{"type": "web_search"}])
    assert refused.value.param == "tools.0.type"


@pytest.mark.clients
def test_anthropics_messages(chat: Running) -> None:
    anthropic = pytest.importorskip("anthropic")
    greedy: Any = {"extra_body": {"temperature": 0}}  # newer versions of the client do not name it
    client = anthropic.Anthropic(base_url=chat.url, api_key="none", max_retries=0, timeout=60)
    whole = client.messages.create(model="tiny", max_tokens=12, messages=HELLO, system="be", **greedy)
    assert whole.content[0].text == said(chat, "# be\nQ: hello\nA:")
    assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 12
    with client.messages.stream(model="tiny", max_tokens=12, messages=HELLO, **greedy) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == said(chat) == final.content[0].text
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 12
    mark = said(chat)[4:7]
    stopped = client.messages.create(model="tiny", max_tokens=12, messages=HELLO, stop_sequences=[mark], **greedy)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", mark)
    counted = client.messages.count_tokens(model="tiny", messages=HELLO)
    assert counted.input_tokens == final.usage.input_tokens + final.usage.cache_read_input_tokens
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(
            model="tiny", max_tokens=1, messages=HELLO, tools=[{"name": "f", "input_schema": {"type": "object"}}]
        )
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    assert [model.id for model in client.models.list()] == ["tiny", "gpt-4o"]
