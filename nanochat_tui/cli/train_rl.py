"""`nanochat-train rl`: a model practises, and learns from what its attempts are worth (GRPO, MaxRL)."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanochat_tui.cli.train_finetune import DATA
from nanochat_tui.cli.train_finetune import defaults as finetuning
from nanochat_tui.cli.train_options import config_parameters, merged_config
from nanochat_tui.cli.train_plan import resolve_resume
from nanochat_tui.cli.train_run import restart_if_needed
from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RunDirectory, read_json
from nanochat_tui.runs.ending import record_failure
from nanochat_tui.runs.reinforce import ReinforceConfig, parse_reinforce
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.cli.reinforce_tasks import Source, TaskSet
    from nanochat_tui.evaluate.compiler_reward import RewardWeights

REINFORCE, REWARD = "reinforce", "reward"
"""Tables of a configuration file with the settings that are not the trainer's."""
OWN = (
    *("init_from", "data_path", "data_mix", "dataset", "val_path", "token_dtype", "config", "verify_data", "tokenizer"),
    *("fim_rate", "fim_spm_rate", "loader_workers", "prefetch", "short_seq_len", "short_fraction", "grad_accum"),
    *("tokens", "epochs", "z_loss", "balance_weight", "full_precision", "quantise_with_decay", "least_squares"),
    *("head_frequent", "head_exact_fraction", "head_sampled", "mtp_depth", "mtp_weight", "collider_ratio"),
    *("collider_reference", "fire", "fire_step", "fire_iterations", "fire_matrices", "processes", "parallel"),
    *("init_std", "sample_tokens", "sample_prompt", "compile", "seq_len"),
)
"""Settings of the trainer that the command decides, or that have no place here."""
SHAPES = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "context_length", "vocab_size", "n_streams")
LONGEST_PROMPT = 0.5
"""Share of the context that a prompt may take; longer ones are left out."""


def defaults() -> dict[str, Any]:
    """The trainer's settings where a reinforcement differs from a fine-tuning."""
    return finetuning() | {
        "warmup_steps": 5,
        "decay_fraction": 0.0,
        "batch_size": 8,
        "log_interval": 1,
        "eval_interval": 20,
        "checkpoint_interval": 20,
        "sample_tokens": 0,
        "loader_workers": 0,
        "head_frequent": 0,
        "compile": False,
    }


def rl(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DATA]...",
            help='Requests for Rust functions: JSON lines of {"prompt", "completion"}, as prepare-data --pairs rustdoc '
            "makes them. The reward is the compiler's.",
        ),
    ] = None,
    *,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="CHECKPOINT|GGUF", help="Model to start from.", show_default=False),
    ] = None,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Run directory to write.", show_default=False)] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Continue from a checkpoint folder, a run directory, latest or auto.", show_default=False),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Resume an older checkpoint; later ones are set aside.")
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="TOML file: settings of the trainer, a table [reinforce] and a table [reward].",
            show_default=False,
        ),
    ] = None,
    problems: Annotated[
        bool, typer.Option("--problems", help="Also practise three quarters of the 60 small problems with tests.")
    ] = False,
    hold_out: Annotated[
        list[Path] | None,
        typer.Option(help="Requests that must not be practised: prompts, names and parameters.", show_default=False),
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Practise an environment of verifiers: reasoning-gym:NAME, or module:attribute of a taskset.",
            show_default=False,
        ),
    ] = None,
    environment_size: Annotated[int, typer.Option(min=2, help="Most tasks of an environment.")] = 1000,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Compile and run where no isolation works.")] = False,
    **options: Any,
) -> None:
    """Reinforcement: the model answers prompts, a reward judges, and better answers of a group become likelier.

    Rewards for Rust come from rustc in the sandbox. The run is one like any other: watch it, stop it, --resume it, and
    export its checkpoints; --held-out measures what is forgotten. Exit codes as of train.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        checkpoint = resolve_resume(resume, checkpoint_dir)
        directory = checkpoint_dir or (None if checkpoint is None else checkpoint.parent)
        if directory is None:
            raise UserError("say where the run goes with --checkpoint-dir")
        if checkpoint is not None:
            for name, value in (("DATA", files), ("--from", start), ("--environment", environment)):
                if value:
                    raise UserError(f"{name} has no place with --resume: the run says itself what it practises")
            continue_run(checkpoint, directory, config, given, force=force)
            return
    except UserError as error:
        if checkpoint_dir is not None:
            record_failure(checkpoint_dir, str(error))
        raise
    if start is None:
        raise UserError("say which model to start from with --from")
    for path in (*(files or ()), *(hold_out or ())):
        if not path.is_file():
            raise UserError(f"there is no file {display_safe(str(path))}; check the path")
    from nanochat_tui.cli.reinforce_tasks import Source

    source = Source(
        tuple(str(path.absolute()) for path in files or ()),
        tuple(str(path.absolute()) for path in hold_out or ()),
        problems,
        environment,
        environment_size,
        int(given.get("seed") or 0),
        unsafe,
    )
    _begin(source, start, directory, config, given)


def _begin(source: Source, start: Path, directory: Path, config: str | None, given: dict[str, Any]) -> None:
    from nanochat_tui.cli.reinforce_tasks import open_tasks, write_tasks
    from nanochat_tui.export.start import starting_text
    from nanochat_tui.model.chat.families import INSTRUCT
    from nanochat_tui.train.chat_data import ChatOptions, prepare_chat

    if RunDirectory(directory).checkpoints():
        shown = display_safe(str(directory))
        raise UserError(f"{shown} holds a run already; continue it with --resume {shown}, or name another")
    if not (source.files or source.problems or source.environment):
        raise UserError("give a file with requests, --problems or --environment: what the model is to practise")
    read, own, reward = _settings_of(config)
    own |= _own(given)
    settings = parse_reinforce(own)
    weights = _weights(reward | _rewards(given))
    text = starting_text(start)
    template = text.template or INSTRUCT
    data = directory / DATA
    fixed = {"init_from": start, "data_path": data, "dataset": "tokens"}
    rest = {name: value for name, value in given.items() if name in TrainConfig.model_fields}
    probe = merged_config(None, {**read, **rest, **fixed}, **defaults())  # for its errors, before the work
    restart_if_needed()
    found = open_tasks(source, weights)
    directory.mkdir(parents=True, exist_ok=True)
    for name, tasks in (("practised", found.tasks), ("kept", found.kept)):
        write_tasks(directory / f"{name}.jsonl", tasks)
    report = prepare_chat(
        ChatOptions(
            files=(directory / "practised.jsonl",),
            start=text,
            template=template,
            longest=probe.model_shape().context_length,
            output=data,
            val=directory / "kept.jsonl",
        )
    )
    prompts = _prompts(found, text.codec, template, probe.model_shape().context_length)
    # of the windows in which losses are measured; few tasks have no tokens for long ones
    length: dict[str, Any] = {
        "seq_len": min(probe.model_shape().context_length, *(n - 1 for n in report.tokens.values()))
    }
    if not (probe.steps or probe.minutes):
        length["steps"] = _one_pass(len(prompts), settings)
    config_of_run = merged_config(None, {**read, **rest, **fixed, **length}, **defaults())
    about = source.about(weights) | {"start": str(start.absolute()), "template": template}
    typer.echo(
        f"{len(prompts):,} prompts to practise, {settings.batch} completions a step; "
        f"{len(found.kept):,} tasks kept for validation",
        err=True,
    )
    _run(config_of_run, directory, settings, (prompts, found), about, None, force=False)


def continue_run(checkpoint: Path, directory: Path, config: str | None, given: dict[str, Any], *, force: bool) -> None:
    """Continue a reinforcement run with the options given, as `rl --resume` does. Raises UserError."""
    from nanochat_tui.cli.reinforce_tasks import open_tasks, read_source
    from nanochat_tui.export.start import starting_text

    saved = read_json(checkpoint / "state.json").get(REINFORCE)
    if not isinstance(saved, dict):
        shown = display_safe(str(checkpoint))
        raise UserError(
            f"{shown} is not of a reinforcement run; continue it with nanochat-train train --resume {shown}"
        )
    read, own, reward = _settings_of(config)
    settings = parse_reinforce({**saved.get("settings", {}), **own, **_own(given)})
    about = saved.get("tasks", {})
    if reward or _rewards(given):
        raise UserError("the reward of a run stays as it is; start another run for other weights")
    rest = {name: value for name, value in given.items() if name in TrainConfig.model_fields}
    config_of_run = merged_config(None, {**read, **rest}, checkpoint)
    restart_if_needed()
    source, weights = read_source(about, checkpoint)
    found = open_tasks(source, weights)
    text = starting_text(checkpoint)
    prompts = _prompts(found, text.codec, about["template"], config_of_run.model_shape().context_length)
    _run(config_of_run, directory, settings, (prompts, found), about, checkpoint, force=force)


def _run(
    config: TrainConfig,
    directory: Path,
    settings: ReinforceConfig,
    practised: tuple[dict[int, list[int]], TaskSet],
    about: dict[str, Any],
    checkpoint: Path | None,
    *,
    force: bool,
) -> None:
    from nanochat_tui.cli.reinforce_engine import EngineRollouts
    from nanochat_tui.train.reinforce.trainer import ReinforceTrainer, Tasks

    prompts, found = practised
    numbers = list(prompts)
    start = checkpoint if checkpoint is not None else Path(about["start"])
    with EngineRollouts(
        start, max_tokens=settings.max_completion_length, temperature=settings.temperature, threads=config.threads
    ) as rollouts:
        tasks = Tasks(
            list(prompts.values()),
            rollouts,
            lambda places, texts: found.reward([numbers[place] for place in places], texts),
            about,
        )
        try:
            ReinforceTrainer(config, directory, settings, tasks, resume=checkpoint, force=force).run()
        except UserError as error:
            record_failure(directory, str(error))
            raise


def _prompts(found: TaskSet, codec: Any, template: str, context: int) -> dict[int, list[int]]:
    """Token ids of the prompts that are short enough, by the number that the reward knows them by. Raises UserError."""
    from nanochat_tui.model.chat.prompt import encode_chat

    longest = int(LONGEST_PROMPT * context)
    ids = {task.number: encode_chat(codec, template, task.messages) for task in found.tasks}
    kept = {number: prompt for number, prompt in ids.items() if len(prompt) <= longest}
    if not kept:
        raise UserError(f"every prompt is longer than {longest} tokens, half of the model's context")
    return kept


def _one_pass(prompts: int, settings: ReinforceConfig) -> int:
    return math.ceil(prompts / settings.prompts_per_step) * settings.num_iterations


def _settings_of(config: str | None) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Settings of a file: the trainer's, the reinforcement's, and the weights of the reward. Raises UserError."""
    if config is None:
        return {}, {}, {}
    from nanochat_tui.runs.config_file import find_settings

    values = dict(find_settings(config).values)
    tables = []
    for name in (REINFORCE, REWARD):
        table = values.pop(name, {})
        if not isinstance(table, dict):
            raise UserError(f"{display_safe(config)}: {name} must be a table, [{name}]")
        tables.append(table)
    if refused := [name for name in (*OWN, *SHAPES) if name in values and name != "config"]:
        raise UserError(f"{display_safe(config)}: {refused[0]} has no place in a reinforcement run; leave it out")
    values.pop("config", None)
    return values, tables[0], tables[1]


def _own(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in ReinforceConfig.model_fields}


def _rewards(given: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix("reward_"): value for name, value in given.items() if name.startswith("reward_")}


def _weights(values: dict[str, Any]) -> RewardWeights:
    from nanochat_tui.evaluate.compiler_reward import RewardWeights

    known = [one.name for one in fields(RewardWeights)]
    for name, value in values.items():
        if name not in known:
            raise UserError(f"the reward has no part {display_safe(name)}; its parts are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"the reward for {name} must be a number")
    return RewardWeights(**values)


def _reward_parameters() -> list[inspect.Parameter]:
    words = {
        "parses": "a reply that parses [default: 0.1]",
        "asked_for": "the asked name and parameters [default: 0.3]",
        "compiles": "compiling alone, with a body that does something [default: 0.6]",
        "passes": "passing its tests, where there are any [default: 1.0]",
    }
    return [
        inspect.Parameter(
            f"reward_{name}",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                float | None,
                typer.Option(
                    help=f"Reward for {text}".replace("[", r"\["), show_default=False, rich_help_panel="Reward"
                ),
            ],
        )
        for name, text in words.items()
    ]


def _parameters() -> list[inspect.Parameter]:
    own = inspect.signature(rl, eval_str=True).parameters.values()
    settings = [p for p in config_parameters() if p.name not in (*OWN, *SHAPES, "n_experts", "n_active_experts")]
    return [
        *(p for p in own if p.kind is not p.VAR_KEYWORD),
        *config_parameters(ReinforceConfig, {"algorithm": "Reinforcement"}),
        *_reward_parameters(),
        *settings,
    ]


rl.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
rl.__annotations__ |= {p.name: p.annotation for p in _parameters()}
