"""The trainer's own loop with another step: rollouts, rewards, and the policy loss in place of the next token's."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import read_json
from nanochat_tui.runs.reinforce import ReinforceConfig
from nanochat_tui.text import display_safe
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.reinforce.advantages import advantages_of, same_rewards
from nanochat_tui.train.reinforce.bookkeeping import Bookkeeping, batch_figures
from nanochat_tui.train.reinforce.log_probs import log_probs, padded
from nanochat_tui.train.reinforce.loss import Policy, Scope, engine_correction, policy_loss
from nanochat_tui.train.reinforce.rollouts import GenerationBatch, Rewards, Rollouts, prompts_of, seeds_of
from nanochat_tui.train.trainer import Trainer

START = "start.safetensors"
"""File of a run with the weights it began with, which the KL divergence is measured to."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """What is practised: prompts as token ids, what draws completions of them, and what judges those.

    about: where prompts and rewards come from, for config.json and a resume.
    """

    prompts: Sequence[Sequence[int]]
    rollouts: Rollouts
    rewards: Rewards
    about: Mapping[str, Any]


class ReinforceTrainer(Trainer):
    """A reinforcement run, new or resumed; its run directory, schedule, control and checkpoints are any run's.

    `config.batch_size` is the number of completions of a micro-batch. Raises UserError when the run cannot be started.
    """

    methods: Bookkeeping

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        settings: ReinforceConfig,
        tasks: Tasks,
        *,
        resume: Path | None = None,
        force: bool = False,
    ) -> None:
        if not tasks.prompts or not all(tasks.prompts):
            raise UserError("there is no prompt to practise; give a file with requests, or an environment")
        self.settings, self.tasks = settings, tasks
        self._start: NanochatModel | None = None
        self._start_file = None if resume is None else resume.parent / START
        super().__init__(config, directory, resume=resume, force=force)

    def _prepare(
        self, config: TrainConfig, directory: Path, resume: Path | None, tokenizer: Path | None, force: bool
    ) -> None:
        if self.world.size > 1:
            raise UserError("reinforcement runs in one process; start it without torchrun")
        for name in ("mtp_depth", "collider_ratio", "fire", "fire_step", "short_seq_len", "full_precision"):
            if getattr(config, name):
                raise UserError(f"{name} has no place in a reinforcement run; leave it out")
        super()._prepare(config, directory, resume, tokenizer, force)
        methods = Bookkeeping(self.config, self.model, self.report.log, self.settings, self.tasks.about)
        if resume is not None:
            methods.take_over(read_json(resume / "state.json").get("methods") or {})
        self.methods = methods
        longest = max(map(len, self.tasks.prompts))
        if longest >= self.model.config.context_length:
            raise UserError(
                f"a prompt has {longest} tokens and the context {self.model.config.context_length}; leave it out"
            )
        if self.settings.beta:
            self._start = self._model_of_start()

    # -- the model that the run starts from

    def _model_of_start(self) -> NanochatModel:
        start = NanochatModel(self.model.config, dtype=self.environment.dtype).to(self.environment.device)
        start.use_ternary(True)
        weights = self.model.state_dict()
        if self._start_file is not None:
            if not self._start_file.is_file():
                raise UserError(
                    f"there is no {display_safe(str(self._start_file))}, to which the KL divergence is measured; "
                    "put it back, or resume with --beta 0"
                )
            weights = load_file(self._start_file)
        start.load_state_dict(weights)
        return start.requires_grad_(False)

    def _begin(self) -> None:
        super()._begin()
        place = self.run_directory.path / START
        if self._start is not None and not place.exists():
            if self._start_file is not None:
                shutil.copyfile(self._start_file, place)
            else:
                save_file({name: value.cpu().contiguous() for name, value in self._start.state_dict().items()}, place)

    # -- a step

    def _optimise(self, multiplier: float) -> tuple[float, float]:
        """One optimiser step; returns its loss and the gradient norm before clipping."""
        self.optimizer.settle(multiplier)
        started = time.perf_counter()
        batch = self.methods.batch
        figures: dict[str, float] = {}
        if batch is None:
            batch, figures = self._generate()
            self.methods.batch = batch
        began = time.perf_counter()
        loss, found = self._learn(batch)
        figures |= found
        norm = self.optimizer.clip(self.config.grad_clip)
        if self.divergence.accepts(loss, norm):
            self.optimizer.step(multiplier, self.step)
        else:
            self.optimizer.drop()
            self.methods.drop()
        self.model.zero_grad(set_to_none=True)
        figures["train_s"] = time.perf_counter() - began
        read = sum(len(completion.ids) for completion in batch.completions)
        figures["tok_per_s"] = read / max(1e-9, time.perf_counter() - started)
        self.tokens += read - self.config.tokens_per_step  # which the loop adds: here batches have no fixed size
        self.methods.steps.append(figures)
        self.report.log(_words(figures))
        if (self.step + 1) % self.settings.num_iterations == 0:
            self.methods.batch = None
        return loss, norm

    def _generate(self) -> tuple[GenerationBatch, dict[str, float]]:
        """Draw completions with the present weights and have them judged."""
        settings, seed = self.settings, self.config.seed
        number = self.step // settings.num_iterations
        chosen = prompts_of(number, len(self.tasks.prompts), settings, seed)
        numbers = [prompt for prompt in chosen for _ in range(settings.num_generations)]
        prompts = [self.tasks.prompts[prompt] for prompt in numbers]
        weights = {name: value.detach().cpu().numpy() for name, value in self.model.state_dict().items()}
        rolled = self.tasks.rollouts(weights, prompts, seeds_of(number, len(prompts), seed))
        completions = rolled.completions
        if self.report.is_late:
            self._status("running")
        began = time.perf_counter()
        rewards = self.tasks.rewards(numbers, [completion.text for completion in completions])
        judged = time.perf_counter() - began
        if not len(prompts) == len(completions) == len(rewards):
            raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions and {len(rewards)} rewards")
        batch = GenerationBatch(
            numbers, completions, [float(r.value) for r in rewards], [float(r.success) for r in rewards]
        )
        groups = torch.tensor(batch.rewards).view(-1, settings.num_generations)
        figures = batch_figures(
            completions, rewards, float(same_rewards(groups).float().mean()), float(groups.std(dim=1).mean())
        )
        self._show(batch)
        return batch, figures | {
            "weights_to_engine_s": rolled.weights_seconds,
            "rollout_s": rolled.seconds,
            "rollout_tok_per_s": sum(len(c.ids) for c in completions) / max(1e-9, rolled.seconds),
            "reward_s": judged,
        }

    def _show(self, batch: GenerationBatch) -> None:
        """Append the best completion of the batch's first group to samples.jsonl."""
        group = range(self.settings.num_generations)
        best = max(group, key=lambda i: -math.inf if math.isnan(batch.rewards[i]) else batch.rewards[i])
        prompt = self.tasks.prompts[batch.numbers[0]]
        text = self.tokenizer.decode(list(prompt), skip_special_tokens=False) if self.tokenizer is not None else ""
        row = {"step": self.step, "prompt": text, "text": batch.completions[best].text}
        reward = batch.rewards[best]
        self.report.append("samples.jsonl", row | ({} if math.isnan(reward) else {"reward": reward}))

    def _learn(self, batch: GenerationBatch) -> tuple[float, dict[str, float]]:
        """Add the gradient of a generation batch; returns its loss and figures."""
        settings = self.settings
        advantages = self._advantages(batch)
        counted = [
            bool(completion.ids) and not (settings.mask_truncated_completions and completion.truncated)
            for completion in batch.completions
        ]
        tokens = sum(len(c.ids) for c, counts in zip(batch.completions, counted, strict=True) if counts)
        # a completion of advantage 0 has a gradient through the KL divergence alone
        needed = [i for i, counts in enumerate(counted) if counts and (settings.beta or float(advantages[i]))]
        needed.sort(key=lambda i: (len(self.tasks.prompts[batch.numbers[i]]) + len(batch.completions[i].ids), i))
        size = self.config.batch_size
        parts = [needed[at : at + size] for at in range(0, len(needed), size)]
        scope = Scope(float(tokens), len(batch.completions), max(1, len(parts)))
        old = [[0.0] * len(c.ids) for c in batch.completions] if batch.old is None else None
        total, sums = 0.0, _Sums()
        for part in parts:
            total += self._part(batch, part, advantages, scope, sums, old)
            if self.report.is_late:
                self._status("running")
        for p in self.model.parameters():
            if p.grad is None:  # a batch that taught nothing
                p.grad = torch.zeros_like(p)
        if old is not None:
            batch.old = old
        return total, sums.means(settings)

    def _advantages(self, batch: GenerationBatch) -> Tensor:
        size = self.settings.num_generations
        rewards = torch.tensor(batch.rewards).view(-1, size)
        return advantages_of(rewards, torch.tensor(batch.successes).view(-1, size), self.settings).reshape(-1)

    def _part(
        self,
        batch: GenerationBatch,
        part: list[int],
        advantages: Tensor,
        scope: Scope,
        sums: _Sums,
        old: list[list[float]] | None,
    ) -> float:
        """Add the gradient of a micro-batch; returns its share of the loss. `old` is filled in, where it is given."""
        settings, device = self.settings, self.environment.device
        completions = [batch.completions[i] for i in part]
        rows = padded([self.tasks.prompts[batch.numbers[i]] for i in part], [c.ids for c in completions])
        mask = rows.present.to(device)
        found, entropy = log_probs(self.model, rows, settings.temperature)
        before = None
        if old is not None:
            for i, values in zip(part, found.detach().cpu(), strict=True):
                old[i] = values[: len(batch.completions[i].ids)].tolist()
        elif batch.old is not None:
            before = _rows([batch.old[i] for i in part], mask)
        engine = _rows([c.log_probs for c in completions], mask)
        generated = found.detach() if before is None else before
        correction = engine_correction(generated, engine, mask, settings) if settings.corrects else None
        reference = None
        if self._start is not None:
            with torch.no_grad():
                reference = log_probs(self._start, rows, settings.temperature)[0]
        policy = Policy(mask, advantages[part].to(device), before, reference, correction)
        result = policy_loss(found, policy, settings, scope)
        result.loss.backward()  # type: ignore[no-untyped-call]
        sums.add(mask, entropy, result.kl, (result.clipped_low, result.clipped_high))
        if settings.temperature == 1.0:
            sums.compare(mask, generated - engine, correction)
        return float(result.loss.detach())


def _words(figures: Mapping[str, float]) -> str:
    """A line for the log: what came of the step."""
    shown = (
        "reward",
        "success",
        "reward_std",
        "completion_length",
        "entropy",
        "kl",
        "weights_to_engine_s",
        "rollout_s",
    )
    return "  " + " ".join(f"{name}={figures[name]:.3g}" for name in (*shown, "reward_s", "train_s") if name in figures)


def _rows(values: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Numbers of each token as a tensor of the mask's shape, 0 behind them."""
    found = torch.zeros_like(mask)
    for row, numbers in enumerate(values):
        found[row, : len(numbers)] = torch.tensor(numbers)
    return found


@dataclass(slots=True)
class _Sums:
    """Sums over the tokens of a step that were looked at."""

    tokens: float = 0.0
    entropy: float = 0.0
    kl: float = 0.0
    low: float = 0.0
    high: float = 0.0
    difference: float = 0.0
    compared: float = 0.0
    weights: float = 0.0
    weighed: int = 0

    def add(self, mask: Tensor, entropy: Tensor, kl: float, clipped: tuple[float, float]) -> None:
        self.tokens += float(mask.sum())
        self.entropy += float((entropy * mask).sum())
        self.kl += kl
        self.low += clipped[0]
        self.high += clipped[1]

    def compare(self, mask: Tensor, difference: Tensor, correction: Tensor | None) -> None:
        known = (mask > 0) & ~difference.isnan()
        self.difference += float(difference[known].abs().sum())
        self.compared += float(known.sum())
        if correction is not None:
            weights = correction.expand_as(mask)[mask > 0]
            self.weights += float(weights.sum())
            self.weighed += len(weights)

    def means(self, settings: ReinforceConfig) -> dict[str, float]:
        """Figures by token, called as TRL's where it has them."""
        if not self.tokens:
            return {}
        found = {
            "entropy": self.entropy / self.tokens,
            "clip_ratio_low": self.low / self.tokens,
            "clip_ratio_high": self.high / self.tokens,
        }
        if settings.beta:
            found["kl"] = self.kl / self.tokens
        if self.compared:
            found["engine_log_prob_difference"] = self.difference / self.compared
        if self.weighed:
            found["importance_sampling_ratio"] = self.weights / self.weighed
        return found
