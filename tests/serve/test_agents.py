"""OpenAI's Agents SDK, unchanged: an agent calls two tools over several turns, whole and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import tool_templates
from servers import LONG, Running, files, serving
from support import write_model

pytestmark = pytest.mark.clients
CITIES = ("Rome", "Oslo")


@pytest.fixture(scope="module", params=["QWEN3", "LLAMA3"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("agent") / "model.gguf"
    template = getattr(tool_templates, request.param)
    with serving(files(write_model(file, LONG, chat_template=template))) as running:
        yield running


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_calls_two_tools_over_several_turns(served: Running, stream: bool, api: str) -> None:
    agents = pytest.importorskip("agents", reason="openai-agents is not installed")
    import openai

    agents.set_tracing_disabled(True)
    made: list[tuple[str, Any]] = []

    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """Tell the weather of a city."""
        made.append(("weather", city))
        return f"sunny in {city}"

    def alarm(on: bool) -> str:
        """Switch the alarm."""
        made.append(("alarm", on))
        return "done"

    client = openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=120)
    kind = agents.OpenAIChatCompletionsModel if api == "chat" else agents.OpenAIResponsesModel
    tools = [agents.function_tool(weather), agents.function_tool(alarm)]

    def agent(choice: str) -> Any:
        settings = agents.ModelSettings(
            tool_choice=choice, temperature=1.0, max_tokens=200 if choice != "none" else 12, parallel_tool_calls=False
        )
        return agents.Agent(
            name="helper",
            instructions="Help.",
            model=kind("tiny", openai_client=client),
            tools=tools,
            model_settings=settings,
            tool_use_behavior="stop_on_first_tool",
        )

    async def run(choice: str, given: Any) -> Any:
        if not stream:
            return await agents.Runner.run(agent(choice), given, max_turns=3)
        result = agents.Runner.run_streamed(agent(choice), given, max_turns=3)
        async for _ in result.stream_events():
            pass
        return result

    async def main() -> list[Any]:
        first = await run("weather", "What is the weather?")
        assert first.final_output == f"sunny in {made[0][1]}"
        second = await run("alarm", [*first.to_input_list(), {"role": "user", "content": "Set the alarm."}])
        assert second.final_output == "done"
        turns = [*second.to_input_list(), {"role": "user", "content": "Thanks."}]
        if api == "chat":  # the SDK takes a response of /v1/responses that was cut for a failure
            third = await run("none", turns)
            assert isinstance(third.final_output, str) and third.final_output
        return turns

    history = asyncio.run(main())
    assert [name for name, _ in made] == ["weather", "alarm"] and made[0][1] in CITIES and isinstance(made[1][1], bool)
    calls = {row["call_id"]: row["name"] for row in history if row.get("type") == "function_call"}
    answers = {row["call_id"]: row["output"] for row in history if row.get("type") == "function_call_output"}
    assert calls.keys() == answers.keys() and list(calls.values()) == ["weather", "alarm"]
    assert f"sunny in {made[0][1]}" in answers.values() and "done" in answers.values()
