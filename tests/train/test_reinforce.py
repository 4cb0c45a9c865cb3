"""A reinforcement run on a tiny model: it learns what is rewarded, and a resume repeats an unbroken run bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from trained import settings

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.reinforce import ReinforceConfig
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.reinforce.log_probs import log_probs, padded
from nanochat_tui.train.reinforce.rollouts import Completion, GenerationBatch, Rolled, prompts_of, seeds_of
from nanochat_tui.train.reinforce.trainer import START, ReinforceTrainer, Tasks

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10]]
LONGEST = 4
HALF = 128
"""Ids below it are rewarded: half of the vocabulary."""


@dataclass(frozen=True)
class Share:
    value: float
    success: bool
    parts: Mapping[str, float] = field(default_factory=dict)


def shape() -> Any:
    return parse_config(settings(steps=1, head_frequent=0)).model_shape()


def drawn(weights: Mapping[str, NDArray[np.float32]], prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> Rolled:
    """Completions drawn token by token by the trainer's own model; those that draw the id 0 end with it."""
    model = NanochatModel(shape())
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    found = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        ids: list[int] = []
        probabilities: list[float] = []
        while len(ids) < LONGEST and 0 not in ids:
            with torch.no_grad():
                logits = model.logits(torch.tensor([[*prompt, *ids]]))[0, -1].log_softmax(-1)
            ids.append(int(torch.multinomial(logits.exp(), 1, generator=generator)))
            probabilities.append(float(logits[ids[-1]]))
        found.append(Completion(ids, probabilities, " ".join(map(str, ids)), truncated=0 not in ids))
    return Rolled(found, 0.5, 1.0)


def share_below(numbers: Sequence[int], texts: Sequence[str]) -> list[Share]:
    ids = [[int(word) for word in text.split()] for text in texts]
    values = [sum(i < HALF for i in one) / len(one) for one in ids]
    return [Share(value, value >= 0.75, {"below": value}) for value in values]


def practise(
    directory: Path, resume: Path | None = None, *, rewards: Any = share_below, config: Any = (), **changes: Any
) -> list[dict[str, Any]]:
    own = ReinforceConfig(
        **{"prompts_per_step": 2, "num_generations": 4, "max_completion_length": LONGEST, **changes}  # type: ignore[arg-type]
    )
    training = parse_config(settings(head_frequent=0, loader_workers=0, **dict(config)))
    ReinforceTrainer(training, directory, own, Tasks(PROMPTS, drawn, rewards, {}), resume=resume).run()
    return RunDirectory(directory).metrics()


@pytest.mark.parametrize("algorithm", ["grpo", "maxrl"])
def test_what_is_rewarded_becomes_likelier(tmp_path: Path, algorithm: str) -> None:
    rows = practise(tmp_path / "run", algorithm=algorithm, prompts_per_step=4, config={"steps": 12})
    rewards = [row["reward"] for row in rows]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.15
    last = rows[-1]
    assert last["reward_below"] == last["reward"]
    assert 0 <= last["frac_reward_zero_std"] <= 1 and last["completion_length"] <= LONGEST
    assert last["weights_to_engine_s"] == 0.5 and last["rollout_s"] == 1.0
    learned = next(row for row in reversed(rows) if "entropy" in row)
    assert learned["perplexity"] == pytest.approx(math.exp(learned["entropy"]))
    assert last["tokens"] == sum(round(row["completion_length"] * 16) for row in rows)
    # what drew the tokens is the model in training itself, so that nothing has to be corrected
    assert learned["engine_log_prob_difference"] < 1e-4
    assert learned["importance_sampling_ratio"] == pytest.approx(1, abs=1e-3)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["reinforce"]
    assert saved["settings"]["algorithm"] == algorithm
    sample = RunDirectory(tmp_path / "run").samples()[-1]
    assert set(sample) >= {"step", "prompt", "text", "reward"}


def test_a_resume_in_the_middle_of_a_generation_batch_repeats_the_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_iterations": 3, "beta": 0.1, "loss_type": "grpo"}
    steps = {"steps": 7, "checkpoint_interval": 1, "grad_clip": 0.5}
    whole = practise(tmp_path / "whole", config=steps, **options)
    assert whole[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert whole[-1]["kl"] > 0 and any(row["clip_ratio_low"] + row["clip_ratio_high"] > 0 for row in whole)
    for step in (2, 3, 5):
        place = tmp_path / f"part{step}"
        part = practise(place, tmp_path / "whole" / f"step_{step}", config=steps, **options)
        # the row of the checkpoint's own step is written again, for the other directory has none
        assert [figures(row) for row in part] == [figures(row) for row in whole[step - 1 :]]
        assert (place / START).read_bytes() == (tmp_path / "whole" / START).read_bytes()
        ends = [load_file(run / "final" / "model.safetensors") for run in (place, tmp_path / "whole")]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """What of a row does not depend on the time it took."""
    keys = ("step", "loss", "grad_norm", "lr", "tokens", "reward", "reward_std", "kl", "entropy", "clip_ratio_low")
    return {key: row.get(key) for key in keys}


def test_a_batch_that_teaches_nothing_moves_nothing(tmp_path: Path) -> None:
    rows = practise(
        tmp_path / "run", rewards=lambda numbers, texts: [Share(1.0, True)] * len(texts), config={"steps": 2}
    )
    assert rows[-1]["frac_reward_zero_std"] == 1 and rows[-1]["loss"] == 0 and "entropy" not in rows[-1]
    fresh = ReinforceTrainer(
        parse_config(settings(head_frequent=0, steps=2)),
        tmp_path / "fresh",
        ReinforceConfig(),
        Tasks(PROMPTS, drawn, share_below, {}),
    )
    saved = load_file(tmp_path / "run" / "final" / "model.safetensors")
    for name, value in fresh.model.state_dict().items():
        assert torch.equal(saved[name], value), name
    fresh._lock.release()


def test_truncated_completions_and_unknown_rewards_are_left_out(tmp_path: Path) -> None:
    cut = practise(tmp_path / "cut", mask_truncated_completions=True, config={"steps": 1})
    assert cut[0]["completion_clipped"] > 0.5 and cut[0]["loss"] == pytest.approx(cut[0]["loss"])

    def unknown(numbers: Sequence[int], texts: Sequence[str]) -> list[Share]:
        return [Share(math.nan, False), *share_below(numbers, texts)[1:]]

    rows = practise(tmp_path / "unknown", rewards=unknown, config={"steps": 1})
    assert math.isfinite(rows[0]["reward"]) and math.isfinite(rows[0]["loss"]) and rows[0]["grad_norm"] > 0


def test_log_probs_are_those_of_each_sequence_alone() -> None:
    torch.manual_seed(0)
    model = NanochatModel(shape())
    prompts, completions = [[1, 2, 3], [4]], [[5, 6], [7, 8, 9]]
    found, entropy = log_probs(model, padded(prompts, completions), 0.7)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logits = (model.logits(torch.tensor([[*prompt, *completion]]))[0] / 0.7).log_softmax(-1)
        for place, token in enumerate(completion):
            at = logits[len(prompt) + place - 1]
            assert float(found[row, place]) == pytest.approx(float(at[token]), abs=1e-5)
            assert float(entropy[row, place]) == pytest.approx(float(-(at.exp() * at).sum()), abs=1e-4)
    assert float(found[0, 2].detach()) == 0 and found.requires_grad and not entropy.requires_grad


def test_prompts_come_once_in_an_epoch_and_seeds_are_never_the_same() -> None:
    own = ReinforceConfig(prompts_per_step=2)
    epochs = [prompts_of(number, 4, own, seed=3) for number in range(6)]
    for at in (0, 2, 4):
        assert sorted(epochs[at] + epochs[at + 1]) == [0, 1, 2, 3]
    assert len({tuple(epochs[at] + epochs[at + 1]) for at in (0, 2, 4)}) > 1
    seeds = [seed for number in range(50) for seed in seeds_of(number, 16, 3)]
    assert len(set(seeds)) == len(seeds) and seeds_of(1, 16, 3) == seeds[16:32]


def test_a_generation_batch_survives_json() -> None:
    batch = GenerationBatch([0, 0], [Completion([1], [math.nan], "a", True)] * 2, [0.1, math.nan], [1.0, 0.0], [[0.25]])
    again = GenerationBatch.from_json(json.loads(json.dumps(batch.to_json(), allow_nan=False)))
    assert str(again) == str(batch)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    for changes, words in (({"mtp_depth": 1}, "mtp_depth has no place"), ({"fire": True}, "fire has no place")):
        with pytest.raises(UserError, match=words):
            practise(tmp_path / "run", config={"steps": 1, **changes})
    with pytest.raises(UserError, match="there is no prompt"):
        ReinforceTrainer(
            parse_config(settings(steps=1)), tmp_path / "run", ReinforceConfig(), Tasks([], drawn, share_below, {})
        )
    practise(tmp_path / "run", beta=0.1, config={"steps": 2, "checkpoint_interval": 1})
    (tmp_path / "run" / START).unlink()
    with pytest.raises(UserError, match=r"start\.safetensors, to which the KL divergence is measured"):
        practise(tmp_path / "again", tmp_path / "run" / "step_1", beta=0.1, config={"steps": 2})
