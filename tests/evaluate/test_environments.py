"""Environments of verifiers: refusals here, and the real library in an environment of its own (.ci/peers)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.environments import open_environment

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, math
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.environments import Environment, open_environment

gym = open_environment("reasoning-gym:basic_arithmetic", 6, 3)
again = open_environment("reasoning-gym:basic_arithmetic", 6, 3)
marked = [f"It is <answer>{answer}</answer>." for answer in gym.answers]
found = {"prompts": gym.prompts, "same": gym.prompts == again.prompts, "count": len(gym.tasks)}
found["right"] = [one.value for one in gym(range(6), marked)]
found["bare"] = [one.success for one in gym(range(6), gym.answers)]
found["wrong"] = [(one.value, one.success) for one in gym([0, 1], ["none", ""])]

import verifiers.v1 as vf
import own_environment
mine = open_environment("own_environment:LengthTaskset", 2, 0)
found["own"] = [dict(one.parts) for one in mine([0, 1, 1], ["four", "", "broken"])]
found["own_value"] = [None if math.isnan(one.value) else one.value for one in mine([0, 1, 1], ["four", "", "broken"])]
found["messages"] = mine.prompts
for name in ("reasoning-gym:nonesuch", "own_environment:missing", "own_environment:CONSTANT", "none"):
    try:
        open_environment(name, 2, 0)
    except UserError as error:
        found[name] = str(error)
class Boxed(own_environment.LengthTask):
    NEEDS_CONTAINER = True
try:
    Environment([Boxed(own_environment.LengthData(prompt="a"))])
except UserError as error:
    found["boxed"] = str(error)
print(json.dumps(found))
"""
OWN = """
import verifiers.v1 as vf

CONSTANT = 3


class LengthData(vf.TaskData):
    answer: str = "?"


class LengthTask(vf.Task[LengthData, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.5)
    async def length(self, task, trace) -> float:
        if trace.last_reply == "broken":
            raise ValueError("no")
        return float(len(trace.last_reply))

    @vf.reward
    async def asked(self, trace) -> float:
        return float(trace.messages[-2].content == self.data.prompt_text.splitlines()[-1])


class LengthTaskset(vf.Taskset[LengthTask, vf.TasksetConfig]):
    def load(self):
        yield LengthTask(LengthData(prompt="Say four.", system_prompt="Be short."), self.config.task)
        yield LengthTask(LengthData(prompt="Say nothing."), self.config.task)
"""


@pytest.mark.peer
def test_environments_of_the_real_library_ask_and_judge(tmp_path: Path) -> None:
    python = os.environ.get("NANOCHAT_VERIFIERS_PYTHON")
    if python is None:
        pytest.skip("NANOCHAT_VERIFIERS_PYTHON names no interpreter with verifiers and reasoning-gym")
    (tmp_path / "own_environment.py").write_text(OWN)
    done = subprocess.run(
        [python, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["count"] == 6 and found["same"]
    assert found["prompts"][0][0]["role"] == "user" and "<answer>" in found["prompts"][0][0]["content"]
    assert found["right"] == [1.0] * 6 and found["bare"] == [True] * 6
    assert found["wrong"] == [[0.0, False]] * 2
    assert found["own"] == [{"length": 2.0, "asked": 1.0}, {"length": 0.0, "asked": 1.0}, {}]
    assert found["own_value"] == [3.0, 1.0, None]
    assert [message["role"] for message in found["messages"][0]] == ["system", "user"]
    assert found["reasoning-gym:nonesuch"].startswith("reasoning-gym has no generator nonesuch")
    assert "cannot be imported" in found["own_environment:missing"]
    assert "is no taskset of verifiers" in found["own_environment:CONSTANT"]
    assert "only environments of one reply" in found["boxed"]


def test_a_name_without_an_environment_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="there is no environment arithmetic; give reasoning-gym:NAME"):
        open_environment("arithmetic", 2, 0)
    with pytest.raises(UserError, match=r"the environment no_such_module:x cannot be imported"):
        open_environment("no_such_module:x", 2, 0)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(UserError, match=r"an environment needs verifiers 0\.4 or later; install it with"):
        open_environment("reasoning-gym:basic_arithmetic", 2, 0)
