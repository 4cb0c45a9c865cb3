"""The training loop. It talks to the outside through its run directory only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.model.tokenizer import load_tokenizer
from nanochat_tui.model.tokenizer.identity import TokenizerIdentity
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.identity import fitted
from nanochat_tui.runs.lock import RunLock
from nanochat_tui.text import display_safe
from nanochat_tui.train.beginning import chosen_tokenizer, copy_tokenizer, go_back
from nanochat_tui.train.budget import TimeBudget
from nanochat_tui.train.checkpoint import clean_up, prune
from nanochat_tui.train.control import ControlFile
from nanochat_tui.train.data import Dataset, open_dataset, open_sampler
from nanochat_tui.train.divergence import DivergedError, Divergence
from nanochat_tui.train.environment import resolve_environment
from nanochat_tui.train.evaluation import Evaluation, evaluate_both
from nanochat_tui.train.failures import Interrupted, OutOfMemoryError, is_memory, on_stop_signals, reason_of
from nanochat_tui.train.loading import open_loader
from nanochat_tui.train.making import load_shares, make_model, save
from nanochat_tui.train.methods import Methods
from nanochat_tui.train.optim import Optimizer
from nanochat_tui.train.recovery import RECOVERY, BestCheckpoint, DataLostError, Recovery
from nanochat_tui.train.reporter import Reporter
from nanochat_tui.train.resuming import Resumed, continued_schedule, later_checkpoints, read_resumed
from nanochat_tui.train.rows import Progress, evaluation_row, metrics_row
from nanochat_tui.train.sampling import whitespace_flags
from nanochat_tui.train.schedule import Schedule, sequence_length, total_steps
from nanochat_tui.train.step import Batch, backward
from nanochat_tui.train.telling import facts, sample, state
from nanochat_tui.train.world import open_world

Result = TypeVar("Result")


class Trainer:
    """One training run, new or resumed. `run()` returns when the run ends or is asked to stop.

    `force` lets a resume go back behind later checkpoints of the same directory, which are set aside. Holds the run
    directory's lock from its making to the end of `run()`. Raises UserError when the run cannot be started.
    """

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        *,
        resume: Path | None = None,
        tokenizer: Path | None = None,
        force: bool = False,
    ) -> None:
        self._lock = RunLock(directory)
        self.world = open_world(config.device)
        with self.world.agreeing():
            if self.world.leads:
                self._lock.acquire()
        try:
            config, resume = self.world.decide(lambda: (fitted(config.with_absolute_paths()), resume))
            with self.world.agreeing():
                self._prepare(config, directory, resume, tokenizer, force)
        except BaseException:
            self._lock.abandon()
            raise

    def _prepare(
        self, config: TrainConfig, directory: Path, resume: Path | None, tokenizer: Path | None, force: bool
    ) -> None:
        self.budget = TimeBudget(config.minutes * 60 if config.minutes else None)
        self.run_directory = RunDirectory(directory)
        world = self.world
        self.report = Reporter(self.run_directory, silent=not world.leads)
        if world.leads:
            clean_up(directory)
        self.environment = resolve_environment(config, world)
        self.sharded = config.parallel == "fsdp" and world.size > 1
        frequent = 0 if self.sharded else config.head_columns(cuda=self.environment.device.type == "cuda")
        # what the run did, for its readers: not that it was left to the trainer
        self.config = config = config.model_copy(update={"head_frequent": frequent, "processes": world.size})
        shape = config.model_shape()
        self.data: Dataset = open_dataset(config, shape.vocab_size)
        if world.size > 1 and self.data.train_roles is not None:
            # each process would average over the answers it has, and the sum weigh them differently
            raise UserError("conversations are learned in one process; start the training without torchrun")
        shape = shape.with_(indentation=self.data.indentation)
        choice = chosen_tokenizer(config, tokenizer, self.report.log)
        self.identity: TokenizerIdentity = choice.identity
        self.tokenizer: Tokenizer | None = load_tokenizer(choice.path) if choice.path else None
        self.tokenizer_path = choice.path
        torch.manual_seed(config.seed)
        device = self.environment.device
        fresh = resume is None
        self.model = make_model(shape, config, self.environment, world if self.sharded else None, fresh=fresh)
        self.optimizer = Optimizer(self.model, config, self.environment.dtype)
        self.methods = Methods(config, self.model, self.report.log, compiled=self.environment.compiled)
        self.loader = open_loader(self.data, config, self.tokenizer, cuda=device.type == "cuda", rank=world.rank)
        self.marks = self.loader.infill.marks if self.loader.infill is not None else None
        self.whitespace = whitespace_flags(self.tokenizer, shape.vocab_size).to(self.environment.device)
        self.sampler = open_sampler(self.data.train, shape.vocab_size, frequent, config)
        if self.sampler is not None:
            self.sampler.gather = world.gather
        compiled = self.environment.compiled and not self.sharded
        self.trunk = torch.compile(self.model.trunk, dynamic=False) if compiled else self.model.trunk
        self.divergence = Divergence(shape.vocab_size, stops=config.stop_on_divergence, skips=config.skip_steps)
        self.recovery, self.best = Recovery(config.rollbacks), BestCheckpoint()
        self.step = self.tokens = 0
        self.seconds = self.norm = self.multiplier = 0.0
        self.window: list[tuple[float, float]] = []
        """Loss and seconds of the steps since the last row."""
        self.control = ControlFile(self.run_directory)
        self.stop_requested = self._signalled = self._interruptible = self._resumed = False
        self._saved_at = self._kept_at = -1
        self._later: list[Path] = []
        total = total_steps(config, self.data.train.size, 0, 0.0, None)
        self.schedule = Schedule(config.warmup_steps, total, config.decay_fraction, shape=config.decay_shape)
        if resume:
            self._resume(resume, force)
        self.model.use_ternary(self.schedule.is_ternary(config))

    # -- start

    def _resume(self, path: Path, force: bool) -> None:
        config = self.config
        shape, environment = asdict(self.model.config), self.environment.to_json()
        found: Resumed = read_resumed(path, config, shape, environment, self.data.description, arrays=not self.sharded)
        self._later = later_checkpoints(self.run_directory, path, found.step, force=force)
        try:
            if self.sharded:
                load_shares(path, self.model, self.optimizer)
            else:
                self.model.load_state_dict(found.weights)
                self.optimizer.load_state(found.moments)
        except (KeyError, RuntimeError):
            raise UserError(f"the checkpoint {display_safe(str(path))} lacks arrays this model needs") from None
        self.step, self.tokens, self.seconds, self.norm = found.step, found.tokens, found.seconds, found.norm
        self.window, self.multiplier = found.window, found.multiplier
        self.loader.origin = found.sequences - self.step * config.sequences_per_step
        self.marks = self.marks or found.marks
        self.budget.used = found.wall_seconds
        self.divergence.skipped = self.recovery.load(found.state.get(RECOVERY) or {})
        per_step = self.seconds / self.step if self.step else None
        self.schedule = continued_schedule(found, config, self.data.train.size, per_step)
        self.methods.resumed(found, self.schedule)
        for note in found.notes:
            self.report.log(f"note: {note}")
        self._resumed = True

    # -- the loop

    def run(self) -> None:
        """Train until the schedule ends, a stop is asked for, or an error; always leaves a truthful status.

        Raises UserError for what a person can act on: a full disk, a loss that is not a number, too little memory.
        """
        with on_stop_signals(self._on_signal):
            try:
                self._begin()
                self._loop()
                self.world.close()
            except BaseException as raised:
                error = self.world.explain(raised)
                alone = self.world.size == 1  # others may not have lost it, and would not come to save
                if isinstance(error, DataLostError) and alone and self.step and self._saved_at != self.step:
                    self._try("checkpoint", lambda: self._checkpoint(f"step_{self.step}"))
                reason = reason_of(error)
                self.report.log(f"failed at step {self.step}: {reason}")
                self._status("failed", error=reason)
                if isinstance(error, Exception) and is_memory(error):
                    raise OutOfMemoryError(reason) from error
                if error is not raised:
                    raise error from None
                raise
            finally:
                self.loader.close()
                self._lock.release()

    def _begin(self) -> None:
        run = self.run_directory
        if not self.world.leads:
            return
        run.create(facts(self) | {"parameters": self.model.parameters_total, "started": time.time()})
        copy_tokenizer(self.tokenizer_path, run)
        go_back(self.run_directory, self.report, self.step if self._resumed else None, self._later)
        self.best.load(self.run_directory)
        self.report.log(
            f"{self.config.config}: {self.model.parameters_total:,} parameters, {self.data.train.size:,} training "
            f"tokens, {self.environment.to_json()}"
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.world.size > 1:  # the others must stop at the same step: agreed where commands are
            self.stop_requested = True
            return
        if self._signalled and not self._interruptible:
            raise KeyboardInterrupt
        self.stop_requested = self._signalled = True
        if self._interruptible:
            raise Interrupted

    def _loop(self) -> None:
        config = self.config
        self._status("compiling" if self.environment.compiled else "running")
        interrupted = self._catch_up()
        while self.step < self.schedule.total and not self.stop_requested:
            began = time.perf_counter()
            self.schedule.enter(self.step)
            self.multiplier = self._rate()
            self.model.use_ternary(self.schedule.is_ternary(config))
            self.methods.begin_step(self.step, self._reset_optimizer)
            loss, self.norm = self._optimise(self.multiplier)
            took = time.perf_counter() - began
            self.step += 1
            self.seconds += took
            self.tokens += config.tokens_per_step
            if not self.divergence.broken:
                self.window.append((loss, took))
            self.budget.step_done()
            self._follow_the_clock()
            last = self.step >= self.schedule.total
            if not self._watch_loss(loss, last):
                continue
            if last:
                # before the evaluation: it may take long, and nothing that happens in it may cost the weights
                self._checkpoint("final")
            elif config.checkpoint_interval and self.step % config.checkpoint_interval == 0:
                self._checkpoint(f"step_{self.step}")
            interrupted = not self._tell()
            self._obey_control()
        self._end(interrupted)

    def _end(self, interrupted: bool) -> None:
        finished = self.step >= self.schedule.total
        name = "final" if finished else f"step_{self.step}"
        if self._saved_at != self.step and not (finished and self._resumed):
            self._checkpoint(name)
        if interrupted and self.window:
            self._record(None)  # only now: the checkpoint keeps what the evaluation's own row will need
        if finished and interrupted:
            self._status("stopped")
            self.report.log(f"stopped in the last evaluation; {name} is saved, and a resume of it evaluates")
            return
        self._status("finished" if finished else "stopped")
        self.report.log(f"{'finished' if finished else 'stopped'} at step {self.step}; checkpoint {name}")

    def _follow_the_clock(self) -> None:
        """Move the end to where the time will be up."""
        config = self.config
        if config.minutes:
            kept = self.budget.reserve(self.data.evaluation_tokens(config), config.tokens_per_step)
            self.schedule.total = self.world.decide(
                lambda: self.budget.total(config, self.schedule, self.data.train.size, self.step, self.tokens, kept)
            )

    def _watch_loss(self, loss: float, last: bool) -> bool:
        """Judge a step; returns False when the run went back to a checkpoint. Raises DivergedError when it cannot."""
        try:
            self.divergence.look(self.step, loss, last=last)
        except DivergedError as error:
            if self.window:
                self._record(None)
            target = self.world.decide(lambda: self.recovery.target(self.run_directory))
            if target is None:
                raise
            self._roll_back(target, error)
            return False
        return True

    def _roll_back(self, target: Path, error: DivergedError) -> None:
        """Continue from a checkpoint, behind the data of the steps that are given up."""
        config, diverged_at, used, done = self.config, self.step, self.budget.elapsed, self.recovery.done
        skipped = self.divergence.skipped
        self._resume(target, force=True)
        self.loader.origin += (diverged_at - self.step) * config.sequences_per_step
        self.budget.used += used - self.budget.elapsed
        self.recovery.done = done + 1
        self.divergence.skipped = skipped
        self.divergence.begin()
        self.report.log(
            f"note: {error}; went back to {target.name}, with {self.recovery.scale:g} of the rate, past the data since"
        )
        if self.world.leads:
            go_back(self.run_directory, self.report, self.step if self._resumed else None, self._later)
            self.best.load(self.run_directory)
        self._saved_at = self.step

    def _optimise(self, multiplier: float) -> tuple[float, float]:
        """One optimiser step; returns its mean loss and the gradient norm before clipping."""
        config, model, device = self.config, self.model, self.environment.device
        first, length = self.step * config.grad_accum, sequence_length(config, self.step, self.schedule.total)
        # the last steps of a run are exact
        estimates = self.step < (1 - config.head_exact_fraction) * self.schedule.total
        sampler = self.sampler if estimates else None
        if sampler is None:
            self.optimizer.settle(multiplier)
        total = torch.zeros((), device=device)
        for micro in range(config.grad_accum):
            inputs, targets = self.loader.batch_at(first + micro, length)
            batch = Batch(inputs, targets.reshape(-1), self.step, 1 / config.grad_accum, config.z_loss)
            total += backward(model, self.trunk, batch, self.optimizer, sampler, multiplier, *self.methods.backward)
        self.world.average(self.optimizer.gradients()[0] if self.world.size > 1 else [])
        self.methods.observe(inputs)
        norm = self.optimizer.clip(config.grad_clip)
        loss = self.world.mean(float(total) / config.grad_accum)
        if self.divergence.accepts(loss, norm):
            self.optimizer.step(multiplier, self.step)
        else:
            self.optimizer.drop()
            self.methods.drop()
        model.zero_grad(set_to_none=True)
        return loss, norm

    def _rate(self) -> float:
        """Factor of all learning rates in this step."""
        return self.recovery.scale * self.schedule.multiplier(self.step)

    def _settle(self) -> None:
        """Bring the whole table up to the present, before anything but a step reads it."""
        self.optimizer.settle(self._rate())

    def _reset_optimizer(self) -> None:
        self._settle()
        self.optimizer = Optimizer(self.model, self.config, self.environment.dtype)

    # -- what the run directory is told

    def _is_due(self, interval: int) -> bool:
        return bool(interval) and self.step % interval == 0

    def _tell(self) -> bool:
        """Evaluate, sample and log what this step is due; returns False when a stop interrupted it."""
        config, last = self.config, self.step >= self.schedule.total
        evaluates = last or self._is_due(config.eval_interval)
        evaluation = None
        if evaluates:
            self._settle()  # here, where no signal can interrupt it
            try:
                evaluation = self._try("evaluation", lambda: self._evaluate(final=last))
                self._try("sample", lambda: sample(self))
            except Interrupted:
                return False
        if evaluation and config.keep_best and self._is_best(evaluation.loss) and self._saved_at != self.step:
            self._checkpoint(f"step_{self.step}")
        if evaluates or last or self.step == 1 or self._is_due(config.log_interval):
            self._record(evaluation)
        elif self.report.is_late:
            self._status("running")
        return True

    def _is_best(self, loss: float) -> bool:
        return self.world.decide(lambda: self.best.look(self.step, loss))

    def _catch_up(self) -> bool:
        """After a resume, do what the checkpoint's own step was due and a kill prevented; True: stopped again."""
        if not self._resumed and self.data.held_out is not None:
            return not self._tell()  # what a fine-tuning forgets, it forgets from here
        if not self._resumed or not self.window:
            return False
        rows = self.world.decide(self.run_directory.metrics)
        row: dict[str, Any] = next((r for r in reversed(rows) if r["step"] == self.step), {})
        last = self.step >= self.schedule.total
        evaluates = self.data.val is not None and (last or self._is_due(self.config.eval_interval))
        if "val_loss" in row or (row and not evaluates):
            self.window.clear()
            self.methods.take_row()
            return False
        return not self._tell()

    def _try(self, what: str, work: Callable[[], Result]) -> Result | None:
        """Do what a training can do without: a failure is said, not raised."""
        try:
            with self._interrupting():
                return work()
        except Exception as error:
            if self.world.size > 1:  # perhaps in this process alone, and the others would wait for it
                raise
            self.report.log(f"note: the {what} at step {self.step} failed ({reason_of(error)}); the training continues")
            return None

    @contextmanager
    def _interrupting(self, possible: bool = True) -> Iterator[None]:
        """Let a signal interrupt what is done here, or not."""
        before = self._interruptible
        self._interruptible = possible
        try:
            if possible and self.stop_requested:
                raise Interrupted
            yield
        finally:
            self._interruptible = before

    def _hidden(self, tokens: Tensor) -> Tensor:
        model = self.model
        with torch.no_grad():
            found: Tensor = model(lambda: self.trunk(model.embed(tokens), model.effective(), model.mixing()))
        return found

    def _evaluate(self, *, final: bool) -> Evaluation | None:
        self._status("evaluating")
        began = time.monotonic()
        found = evaluate_both(
            self.model,
            self._hidden,
            self.data,
            batch=self.config.batch_size,
            length=self.config.sequence_length,
            max_tokens=self.config.final_eval_tokens if final else self.config.eval_tokens,
            whitespace=self.whitespace,
            tick=self._tick,
            enough=(lambda: self.world.decide(lambda: self.budget.is_over)) if final and self.config.minutes else None,
            held_out_tokens=self.config.eval_tokens,
            world=self.world,
        )
        if found is not None:
            self.budget.evaluation_rate = found.read / max(1e-6, time.monotonic() - began)
            if final and found.read < self.data.evaluation_tokens(self.config) - self.config.sequence_length:
                self.report.log(f"note: the last evaluation saw {found.tokens:,} tokens, for the time is up")
        return found

    def _tick(self) -> None:
        """Between batches of an evaluation: show life, obey."""
        with self._interrupting(False):
            if self.report.is_late:
                self._status("evaluating")
            self._obey_control()
        if self.stop_requested:
            raise Interrupted

    def _record(self, evaluation: Evaluation | None) -> None:
        """Write the row of this step, which stands for all since the last one, and begin the next."""
        config = self.config
        progress = Progress(self.step, self.schedule.total, self.tokens, self.seconds)
        rate = config.muon_lr * self.multiplier
        row, line = metrics_row(progress, self.window, rate, self.norm, config.tokens_per_step)
        row |= {"skipped": self.divergence.skipped} if self.divergence.skipped else {}
        if evaluation:
            more, words = evaluation_row(evaluation, self.model)
            row, line = row | more, line + words
        self.report.append("metrics.jsonl", row | self.world.average_row(self.methods.take_row()))
        self.report.log(line)
        self.window.clear()
        self._status("running")

    def _status(self, state: str, **extra: Any) -> None:
        self.report.status(
            state=state,
            step=self.step,
            total=self.schedule.total,
            seconds=round(self.seconds, 1),
            control_done=self.control.done,
            control_result=self.control.result,
            **extra,
        )

    def _obey_control(self) -> None:
        if self.control.obey(self.world.decide(self.control.pending), self._asked_for, self.report.log):
            self._status("running")
        self.stop_requested = self.world.any(self.stop_requested)

    def _asked_for(self, command: str) -> str:
        """Do what the control file asks for; returns the checkpoint's name. Raises SaveError."""
        name = f"step_{self.step}"
        self._checkpoint(name, kept=command == "checkpoint")
        self.stop_requested = self.stop_requested or command == "stop"
        return name

    def _checkpoint(self, name: str, *, kept: bool = False) -> None:
        run = self.run_directory
        self._settle()
        if kept:
            self._kept_at = self.step
        found = state(self, kept=self._kept_at == self.step)
        with self._interrupting(False):
            arrays = self.model.state_dict(), self.optimizer.state()
            if self.config.keep_best and self.world.leads:
                self.best.spare(run, name, self.step)
            save(self.world, run.path / name, arrays, found, self.model.write_records, sharded=self.sharded)
            self._saved_at = self.step
            if self.world.leads and not self.divergence.is_suspected:
                best = f"step_{self.best.step}" if self.config.keep_best else ""
                prune(run.checkpoints(), self.config.keep_last, best)
