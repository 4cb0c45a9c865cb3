"""The training loop. It talks to the outside through its run directory only."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.formats.mhc import write_mhc
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.train.checkpoint import load_checkpoint, prune, save_checkpoint
from nanochat_tui.train.data import BatchLoader, Dataset, open_dataset, token_counts
from nanochat_tui.train.environment import EXACT_KEYS, resolve_environment
from nanochat_tui.train.evaluation import Evaluation, evaluate
from nanochat_tui.train.loss import VocabularySampler, head_loss
from nanochat_tui.train.model import NanochatModel, mix_coefficients
from nanochat_tui.train.optim import Optimizer
from nanochat_tui.train.sampling import write_sample
from nanochat_tui.train.schedule import Schedule, total_steps

HEARTBEAT_SECONDS = 10.0
SETTLING_STEPS = 5
"""Steps of a process that compile or fill caches, left out of the estimate of a step's time."""


class Trainer:
    """One training run, new or resumed. `run()` returns when the run ends or is asked to stop."""

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        *,
        resume: Path | None = None,
        tokenizer: Path | None = None,
    ) -> None:
        self.config = config
        self.run_directory = RunDirectory(directory)
        self.environment = resolve_environment(config)
        shape = config.model_shape()
        self.data: Dataset = open_dataset(config, shape.vocab_size)
        shape = shape.with_(indentation=self.data.indentation)
        torch.manual_seed(config.seed)
        self.model = NanochatModel(shape, init_std=config.init_std, dtype=self.environment.dtype).to(
            self.environment.device
        )
        self.optimizer = Optimizer(self.model, config)
        self.loader = BatchLoader(self.data.train, config)
        self.tokenizer = Tokenizer.from_file(str(tokenizer)) if tokenizer else None
        self.whitespace = self._whitespace()
        self.sampler = (
            VocabularySampler(
                token_counts(self.data.train, shape.vocab_size),
                config.head_frequent,
                config.head_sampled,
                config.seed,
            )
            if config.head_frequent
            else None
        )
        compiled = self.environment.compiled
        self.trunk = torch.compile(self.model.trunk, dynamic=False) if compiled else self.model.trunk
        self.step = 0
        self.seconds = 0.0
        # a command of before this start was meant for an earlier trainer
        self.control_done = self.run_directory.last_control()
        self.stop_requested = False
        self._last_status = 0.0
        self._per_step: float | None = None
        total = total_steps(config, self.data.train.size, 0, 0.0, None)
        self.schedule = Schedule(config.warmup_steps, total, config.decay_fraction)
        if resume:
            self._resume(resume)

    # -- start

    def _whitespace(self) -> Tensor:
        vocab = self.model.config.vocab_size
        flags = torch.zeros(vocab, dtype=torch.bool)
        if self.tokenizer is not None:
            texts = self.tokenizer.decode_batch([[i] for i in range(min(vocab, self.tokenizer.get_vocab_size()))])
            flags[: len(texts)] = torch.tensor([bool(t) and t.isspace() for t in texts])
        return flags.to(self.environment.device)

    def _resume(self, path: Path) -> None:
        weights, moments, state = load_checkpoint(path)
        try:
            saved_shape = state["model"]
            if saved_shape != asdict(self.model.config):
                different = [k for k, v in asdict(self.model.config).items() if saved_shape.get(k) != v]
                raise UserError(f"{path} is of another model: {', '.join(different)} differ")
            self.model.load_state_dict(weights)
            self.optimizer.load_state(moments)
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            old = state["environment"]
            saved = Schedule(**state["schedule"])
            steps = {k: state["config"].get(k) for k in ("batch_size", "grad_accum", "seq_len", "seed")}
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"the checkpoint {path} does not fit this trainer: {error}") from None
        for key in EXACT_KEYS:
            now = self.environment.to_json()[key]
            if old.get(key) != now:
                self._log(f"note: {key} was {old.get(key)!r} and is {now!r}; losses will not repeat bit for bit")
        for key, value in steps.items():
            if value != getattr(self.config, key):
                self._log(f"note: {key} was {value} and is {getattr(self.config, key)}; the data order changes")
        self._per_step = self.seconds / self.step if self.step else None
        total = total_steps(self.config, self.data.train.size, self.step, self.seconds, self._per_step)
        saved.warmup, saved.decay_fraction = self.config.warmup_steps, self.config.decay_fraction
        if saved.decay_start is None:
            saved.total = total
        else:
            saved.extend(total, self.step)
        self.schedule = saved

    def _log(self, text: str) -> None:
        print(text, flush=True)
        self.run_directory.path.mkdir(parents=True, exist_ok=True)
        with (self.run_directory.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    # -- the loop

    def run(self) -> None:
        """Train until the schedule ends, a stop is asked for, or an error; always leaves a truthful status."""
        run = self.run_directory
        run.create(
            {
                "config": self.config.model_dump(mode="json"),
                "model": asdict(self.model.config),
                "parameters": self.model.parameters_total,
                "environment": self.environment.to_json(),
                "data": self.data.description,
                "started": time.time(),
            }
        )
        self._log(
            f"{self.config.config}: {self.model.parameters_total:,} parameters, {self.data.train.size:,} training "
            f"tokens, {self.environment.to_json()}"
        )
        previous = [signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)]
        try:
            self._loop()
        except BaseException as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._log(f"failed at step {self.step}: {reason}")
            self._status("failed", error=reason)
            raise
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), previous, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True

    def _loop(self) -> None:
        config = self.config
        self._status("compiling" if self.environment.compiled else "running")
        window: list[tuple[float, float]] = []
        tokens_seen = self.step * config.tokens_per_step
        started, settled = self.step, None
        while self.step < self.schedule.total and not self.stop_requested:
            began = time.perf_counter()
            decaying = self.schedule.enter(self.step)
            multiplier = self.schedule.multiplier(self.step)
            loss, norm = self._optimise(multiplier)
            took = time.perf_counter() - began
            self.step += 1
            self.seconds += took
            tokens_seen += config.tokens_per_step
            window.append((loss, took))
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss became {loss} at step {self.step}; resume from an earlier checkpoint with a lower rate"
                )
            if self.step - started == SETTLING_STEPS:
                settled = (self.step, self.seconds)
            if config.minutes and not decaying and settled and self.step > settled[0]:
                # the mean of this process, not a recent one: a busy minute must not end a long run early
                self._per_step = (self.seconds - settled[1]) / max(1, self.step - settled[0])
                self.schedule.total = total_steps(config, self.data.train.size, self.step, self.seconds, self._per_step)
            last = self.step >= self.schedule.total
            evaluation = None
            if last or (config.eval_interval and self.step % config.eval_interval == 0):
                evaluation = self._evaluate(final=last)
                self._sample()
            if self.step % config.log_interval == 0 or self.step == 1 or last or evaluation:
                self._record(window, multiplier, norm, tokens_seen, evaluation)
                window.clear()
            self._heartbeat("running")
            self._obey_control()
            if config.checkpoint_interval and self.step % config.checkpoint_interval == 0 and not last:
                self._checkpoint(f"step_{self.step}")
        finished = self.step >= self.schedule.total
        name = "final" if finished else f"step_{self.step}"
        self._checkpoint(name)
        self._status("finished" if finished else "stopped")
        self._log(f"{'finished' if finished else 'stopped'} at step {self.step}; checkpoint {name}")

    def _sequence_length(self) -> int:
        short = self.config.short_seq_len
        return (
            short
            if short and self.step < self.config.short_fraction * self.schedule.total
            else (self.config.sequence_length)
        )

    def _optimise(self, multiplier: float) -> tuple[float, float]:
        """One optimiser step; returns its mean loss and the gradient norm before clipping."""
        config, model, device = self.config, self.model, self.environment.device
        total = torch.zeros((), device=device)
        length = self._sequence_length()
        for micro in range(config.grad_accum):
            inputs, targets = self.loader.batch_at(self.step * config.grad_accum + micro)
            sample = self.sampler.sample(targets.reshape(-1), self.step) if self.sampler else None
            inputs, targets = inputs.view(-1, length).to(device), targets.reshape(-1).to(device)
            hidden = self.trunk(model.embed(inputs), model.effective(), model.mixing())
            states = model.head_input(hidden).reshape(-1, model.config.dim)
            loss = head_loss(
                states,
                model.head_weight,
                targets,
                quantise=model.quantise,
                dtype=model.compute_dtype,
                sample=sample,
            )
            (loss / config.grad_accum).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        norm = self.optimizer.clip(config.grad_clip)
        self.optimizer.step(multiplier)
        model.zero_grad(set_to_none=True)
        return float(total) / config.grad_accum, norm

    # -- what the run directory is told

    def _hidden(self, tokens: Tensor) -> Tensor:
        model = self.model
        with torch.no_grad():
            return self.trunk(model.embed(tokens), model.effective(), model.mixing())

    def _evaluate(self, *, final: bool) -> Evaluation | None:
        self._status("evaluating")
        found = evaluate(
            self.model,
            self._hidden,
            self.data,
            batch=self.config.batch_size,
            length=self.config.sequence_length,
            max_tokens=self.config.final_eval_tokens if final else self.config.eval_tokens,
            whitespace=self.whitespace,
            tick=lambda: self._heartbeat("evaluating"),
        )
        self._status("running")  # the next beat may be seconds off, or the next evaluation before it
        return found

    def _sample(self) -> None:
        if self.tokenizer is None or not self.config.sample_tokens:
            return
        text = write_sample(
            self.model,
            self.tokenizer,
            self.config.sample_prompt,
            tokens=self.config.sample_tokens,
            seed=self.config.seed,
            indentation=self.model.config.indentation,
        )
        self.run_directory.append(
            "samples.jsonl", {"step": self.step, "prompt": self.config.sample_prompt, "text": text}
        )

    def _record(
        self,
        window: list[tuple[float, float]],
        multiplier: float,
        norm: float,
        tokens_seen: int,
        evaluation: Evaluation | None,
    ) -> None:
        config = self.config
        loss = sum(value for value, _ in window) / len(window)
        speed = len(window) * config.tokens_per_step / sum(took for _, took in window)
        row: dict[str, Any] = {
            "step": self.step,
            "tokens": tokens_seen,
            "seconds": round(self.seconds, 3),
            "loss": loss,
            "perplexity": math.exp(min(loss, 80.0)),
            "lr": config.muon_lr * multiplier,
            "grad_norm": norm,
            "tok_per_s": round(speed, 1),
        }
        line = (
            f"[{self.step:>6}/{self.schedule.total:<6}] loss={loss:.4f} lr={row['lr']:.6f} gnorm={norm:.2f} "
            f"tok/s={speed:.0f} elapsed={self.seconds:.0f}s"
        )
        if evaluation:
            row |= evaluation.metrics()
            row["mhc"] = self._mhc_row()
            per_byte = evaluation.bits_per_byte
            line += f" val_loss={evaluation.loss:.4f} accuracy={evaluation.accuracy:.3f}" + (
                f" bits/byte={per_byte:.4f}" if per_byte else ""
            )
        self.run_directory.append("metrics.jsonl", row)
        self._log(line)

    def _mhc_row(self) -> list[dict[str, Any]]:
        config = self.model.config
        if config.n_streams == 1:
            return []
        with torch.no_grad():
            records = self.model.records().cpu()
            read, matrix, write = mix_coefficients(records, config.n_streams, config.mhc_version)
        return [
            {
                "alpha": round(float(m[0, 0]), 6),
                "p": [round(v, 5) for v in p.tolist()],
                "q": [round(v, 5) for v in q.tolist()],
            }
            for p, m, q in zip(read, matrix, write, strict=True)
        ]

    def _heartbeat(self, state: str) -> None:
        if time.monotonic() - self._last_status > HEARTBEAT_SECONDS:
            self._status(state)

    def _status(self, state: str, **extra: Any) -> None:
        self._last_status = time.monotonic()
        self.run_directory.write_status(
            state=state,
            step=self.step,
            total=self.schedule.total,
            seconds=round(self.seconds, 1),
            control_done=self.control_done,
            **extra,
        )

    def _obey_control(self) -> None:
        pending = self.run_directory.pending_control(self.control_done)
        if pending is None:
            return
        request, command = pending
        self._checkpoint(f"step_{self.step}")
        self.control_done = request
        self.stop_requested = command == "stop"
        self._status("running")

    def _checkpoint(self, name: str) -> None:
        run = self.run_directory
        state = {
            "step": self.step,
            "tokens": self.step * self.config.tokens_per_step,
            "seconds": self.seconds,
            "model": asdict(self.model.config),
            "config": self.config.model_dump(mode="json"),
            "schedule": self.schedule.to_json(),
            "environment": self.environment.to_json(),
        }
        save_checkpoint(run.path / name, self.model.state_dict(), self.optimizer.state(), state)
        if self.model.config.n_streams > 1:
            records = self.model.records().detach().cpu().numpy()
            write_mhc(run.path / name / "model.mhc", self.model.config.n_streams, records)
        prune(run.checkpoints(), self.config.keep_last)
