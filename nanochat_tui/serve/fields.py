"""Every field that clients are known to send, and what becomes of it: one table for bodies, docs and tests.

A field that changes a reply is done, or refused by its name: a client that asks for JSON must not get prose. Refused
fields are let pass with the values that mean "not used", because many clients always send all they know. The others
are harmless: nothing in a reply depends on them. What no interface knows is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["done", "refused", "harmless"]
Route = Literal["chat", "completions", "messages", "responses", "embeddings", "infill", "tokenize", "detokenize"]
Unused = Callable[[Any, Mapping[str, Any]], bool]
"""Whether a value, in a body, means that the field is not used."""


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _only(*values: Any) -> Unused:
    return lambda value, _: any(_same(value, each) for each in values)


def _empty(value: Any, _: Mapping[str, Any]) -> bool:
    return value in ("", [], {}) or value is False


def _or_empty(*values: Any) -> Unused:
    return lambda value, body: _empty(value, body) or any(_same(value, each) for each in values)


def _without_functions(value: Any, body: Mapping[str, Any]) -> bool:
    return value in ("none", "auto") or not body.get("functions")


NO_VALUE = "no other value"
"""Note of the fields that are refused with every value but null."""


def _never(value: Any, body: Mapping[str, Any]) -> bool:
    return False


def _whole_context(value: Any, body: Mapping[str, Any]) -> bool:
    neutral = {"repeat_penalty": 1, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    return _same(value, -1) or all(body.get(name) in (None, usual) for name, usual in neutral.items())


OUR_ORDER = ["penalties", "temperature", "top_k", "typ_p", "top_p", "min_p"]
"""Samplers in the order in which they are applied; see `request.SamplingParams`."""
SHORT_ORDER = [name for name in OUR_ORDER if name != "typ_p"]
"""The same for clients that do not know typical-p."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field, whose it is, and what becomes of it. `note` says what it does, or the values that are let pass."""

    name: str
    kind: Kind
    of: str
    note: str = ""
    unused: Unused = _empty


def _done(of: str, notes: Mapping[str, str]) -> list[Field]:
    return [Field(name, "done", of, note) for name, note in notes.items()]


def _refused(of: str, note: str, unused: Unused, *names: str) -> list[Field]:
    return [Field(name, "refused", of, note, unused) for name in names]


def _harmless(of: str, *names: str) -> list[Field]:
    return [Field(name, "harmless", of) for name in names]


OPENAI, LLAMA, VLLM, ANTHROPIC = "OpenAI", "llama-server", "vLLM", "Anthropic"

_COMMON = [
    *_done(
        OPENAI,
        {
            "model": "any name means the only model; of several, or with `--strict-model`, unknown ones are 404",
            "stream": "server-sent events; several tokens may come in one",
            "stream_options": "`include_usage`; of vLLM `continuous_usage_stats`; `include_obfuscation` is harmless",
            "max_tokens": "-1: to the end of the context",
            "temperature": "0 takes the likeliest token; left out, 0.8",
            "top_p": "left out, 0.95",
            "presence_penalty": "",
            "frequency_penalty": "",
            "seed": "-1: drawn; the i-th of `n` replies has the seed `seed` + i",
            "stop": "up to 16 texts; empty ones are left out",
            "n": "",
            "logit_bias": "ids with -100 to 100; llama-server's list of pairs, with `false` for never, too",
            "response_format": "`text`, `json_object`, `json_schema` (always as if `strict`); of llama-server `schema`",
        },
    ),
    *_done(
        LLAMA,
        {
            "top_k": "0 or -1: all; left out, 40",
            "min_p": "",
            "typical_p": "after top-k, before top-p; left out, 1: all",
            "typ_p": "see `typical_p`",
            "repeat_penalty": "over prompt and reply; vLLM's name is `repetition_penalty`",
            "grammar": "GBNF, or Lark's form as llguidance has it",
            "json_schema": "as `response_format` with that schema",
            "n_predict": "another name of `max_tokens`",
            "ignore_eos": "end tokens end nothing, the reply continues behind them (as vLLM)",
            "cache_prompt": "false: nothing of the prompt is taken from the cache, or left in it",
            "timings_per_token": "every event of a stream has `timings`",
            "return_progress": "a stream says how much of the prompt has been read, twice a second (`prompt_progress`)",
        },
    ),
    *_done(
        VLLM,
        {
            "repetition_penalty": "see `repeat_penalty`",
            "structured_outputs": "one of `json`, `regex`, `choice`, `grammar`, `json_object`",
            "guided_json": "vLLM's older name of `json_schema`",
            "guided_regex": "a regular expression (Rust's syntax) that the whole reply matches",
            "guided_choice": "the reply is one of these texts",
            "guided_grammar": "see `grammar`",
            "min_tokens": "so many tokens come before an end token, a stop token or a stop string counts",
            "stop_token_ids": "up to 16; such a token ends the reply and is no part of it",
            "cache_salt": "prompts share the cache with those of the same salt and API key only",
        },
    ),
    *_refused(LLAMA, "", _empty, "logit_bias_exp", "lora", "image_data", "response_fields"),
    *_refused(LLAMA, "", _empty, "return_tokens", "post_sampling_probs", "thinking_forced_open", "input_extra"),
    *_refused(LLAMA, "0", _or_empty(0), "n_probs", "min_keep", "n_indent", "mirostat", "dynatemp_range"),
    *_refused(LLAMA, "0", _or_empty(0), "dry_multiplier", "xtc_probability"),
    *_refused(LLAMA, "0 or -1", _or_empty(0, -1), "top_n_sigma", "t_max_predict_ms", "t_max_prompt_ms"),
    *_refused(LLAMA, "1", _only(1), "tfs_z", "n_cmpl"),
    *_refused(LLAMA, "-1", _only(-1), "adaptive_target"),
    *_refused(LLAMA, "-1, or any without penalties: they look at all tokens", _whole_context, "repeat_last_n"),
    *_refused(
        LLAMA, f"`{OUR_ORDER}`, which is the order".replace("'", '"'), _or_empty(OUR_ORDER, SHORT_ORDER), "samplers"
    ),
    *_refused(VLLM, "", _empty, "include_stop_str_in_output", "allowed_token_ids", "bad_words", "use_beam_search"),
    *_refused(VLLM, "", _empty, "logits_processors", "return_tokens_as_token_ids", "return_token_ids", "vllm_xargs"),
    *_refused(VLLM, "", _empty, "kv_transfer_params", "repetition_detection"),
    *_refused(VLLM, NO_VALUE, _never, "prompt_logprobs", "truncate_prompt_tokens", "prompt_embeds"),
    *_refused(VLLM, "true", _only(True), "skip_special_tokens", "spaces_between_special_tokens"),
    *_harmless(OPENAI, "user", "metadata", "store", "service_tier", "safety_identifier"),
    *_harmless(OPENAI, "prompt_cache_key", "prompt_cache_retention"),
    *_harmless(LLAMA, "id_slot", "n_keep", "n_discard", "mirostat_tau", "mirostat_eta", "dynatemp_exponent"),
    *_harmless(LLAMA, "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    *_harmless(LLAMA, "xtc_threshold", "adaptive_decay", "backend_sampling", "n_cache_reuse"),
    *_harmless(LLAMA, "speculative.n_max", "speculative.n_min", "speculative.p_min"),
    *_harmless(VLLM, "length_penalty", "priority", "request_id"),
]

_CHAT = [
    *_done(
        OPENAI,
        {
            "messages": "text only; see below",
            "tools": "functions; of models whose chat template knows tools, others refuse",
            "tool_choice": "`none`, `auto`, `required`, or a function by name",
            "parallel_tool_calls": "false: one call at most",
            "max_completion_tokens": "the newer name of `max_tokens`",
            "logprobs": "of the tokens before temperature and cuts",
            "top_logprobs": "up to 20",
            "reasoning_effort": "`none`: no thinking; `minimal`: 256 tokens of it; `low`: 1,024; others: no limit",
        },
    ),
    *_done(
        LLAMA,
        {
            "reasoning_budget": "tokens of thinking at most, then its closing mark is written; -1: no limit",
            "reasoning_budget_tokens": "see `reasoning_budget`",
            "thinking_budget_tokens": "see `reasoning_budget`",
        },
    ),
    *_done(
        VLLM,
        {
            "thinking_token_budget": "see `reasoning_budget`",
            "chat_template_kwargs": "`enable_thinking`; other names are refused",
            "continue_final_message": "left out, true when the last message is the assistant's (as llama-server)",
            "add_generation_prompt": "false: no turn of the assistant is opened; true: one is, whatever the last role",
        },
    ),
    *_refused(OPENAI, "", _empty, "functions"),
    *_refused(OPENAI, "any without `functions`", _without_functions, "function_call"),
    *_refused(OPENAI, '`["text"]`', _or_empty(["text"]), "modalities"),
    *_refused(OPENAI, "", _empty, "audio"),
    *_refused(OPENAI, NO_VALUE, _never, "web_search_options"),
    *_refused(OPENAI, '"medium"', _only("medium"), "verbosity"),
    *_refused(LLAMA, '"auto" or "deepseek"', _only("auto", "deepseek", "deepseek-legacy"), "reasoning_format"),
    *_refused(VLLM, "", _empty, "chat_template", "documents", "echo", "add_special_tokens"),
    *_refused(VLLM, "true", _only(True), "include_reasoning"),
    *_harmless(OPENAI, "prediction"),
    *_harmless(LLAMA, "parse_tool_calls", "grammar_lazy", "grammar_triggers", "preserved_tokens"),
    *_harmless(VLLM, "mm_processor_kwargs", "chat_template_content_format"),
]

_COMPLETIONS = [
    *_done(
        OPENAI,
        {
            "prompt": "a text, a list of texts, token ids, or a list of those",
            "suffix": "the text behind a gap to fill in, with prompts of text; refused by models without marks for it",
            "logprobs": "up to 20; the chosen token is always among them",
            "echo": "with `logprobs` the prompt's tokens have theirs, the first null; so has one that ends the reply",
            "best_of": "so many replies are written, and counted; the `n` with the highest mean log-probability return",
        },
    ),
    *_done(VLLM, {"add_special_tokens": "false: no begin-of-text token in front of a text"}),
    *_refused(LLAMA, "", _empty, "input_prefix", "input_suffix"),
]

_TOKENIZE = [
    *_done(
        LLAMA,
        {
            "content": "",
            "add_special": "begin with the model's begin-of-text token",
            "parse_special": "false: marks such as `</s>` are text",
            "with_pieces": "",
        },
    ),
    *_done(OPENAI, {"model": "of several models the one whose tokens are meant"}),
]
_DETOKENIZE = [*_done(LLAMA, {"tokens": ""}), *_done(OPENAI, {"model": "as for `/tokenize`"})]

_MESSAGES = [
    *_done(
        ANTHROPIC,
        {
            "model": "as in completions",
            "messages": "text only; thinking is given to templates that want it; a last turn of the assistant goes on",
            "system": "",
            "max_tokens": "thinking included",
            "stop_sequences": "up to 16; the one that was found is in `stop_sequence`",
            "stream": "Anthropic's events",
            "temperature": "0 takes the likeliest token; left out, 0.8",
            "top_p": "left out, 0.95",
            "top_k": "0 or -1: all; left out, 40",
            "tools": "of type custom, as functions of chat completions",
            "tool_choice": "auto, any, none or a tool by name; `disable_parallel_tool_use`",
            "output_config": "`format` of type json_schema; `effort` is a hint that is not kept",
            "thinking": "enabled, disabled, or the model's own (adaptive, between_tools); `budget_tokens` is not kept",
        },
    ),
    *_refused(ANTHROPIC, "", _empty, "mcp_servers", "container", "output_format"),
    *_harmless(ANTHROPIC, "metadata", "service_tier", "context_management", "cache_control", "inference_geo"),
    *_harmless(ANTHROPIC, "diagnostics", "speed", "user_profile_id", "workspace_id"),
]
_RESPONSES = [
    *_done(
        OPENAI,
        {
            "model": "as in completions",
            "input": "a text, or messages of text; `reasoning` items are given to templates that want them",
            "instructions": "",
            "tools": "functions; `strict` left out is false",
            "tool_choice": "none, auto, required, or a function by name",
            "parallel_tool_calls": "false: one call at most",
            "text": "`format`: text, json_object or json_schema; `verbosity` medium",
            "max_output_tokens": "thinking included; left out, to the end of the context",
            "temperature": "0 takes the likeliest token; left out, 0.8",
            "top_p": "left out, 0.95",
            "stream": "OpenAI's events of responses",
            "store": "left out, true: kept in memory, see below",
            "previous_response_id": "of the same API key",
            "reasoning": "`effort` as `reasoning_effort` of chat completions; summaries are not written",
            "metadata": "given back",
        },
    ),
    *_refused(OPENAI, '`["reasoning.encrypted_content"]`', _or_empty(["reasoning.encrypted_content"]), "include"),
    *_refused(OPENAI, '"disabled"', _or_empty("disabled"), "truncation"),
    *_refused(OPENAI, "0", _or_empty(0), "top_logprobs"),
    *_refused(OPENAI, "", _empty, "background", "conversation", "prompt", "context_management"),
    *_harmless(OPENAI, "user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *_harmless(OPENAI, "max_tool_calls", "stream_options"),
]

_EMBEDDINGS = [
    *_done(
        OPENAI,
        {
            "model": "as in completions",
            "input": "a text, up to 2,048 texts, token ids, or a list of those",
            "encoding_format": "`float` or `base64`",
            "dimensions": "so many of the first ones, scaled to length 1 again",
        },
    ),
    *_refused(LLAMA, "2", _only(2), "embd_normalize"),
    *_refused(VLLM, "true", _only(True), "normalize", "add_special_tokens"),
    *_refused(VLLM, NO_VALUE, _never, "truncate_prompt_tokens"),
    *_harmless(OPENAI, "user"),
    *_harmless(VLLM, "priority", "request_id"),
]
_INFILL = [
    *_done(
        LLAMA,
        {
            "input_prefix": "the text before the gap",
            "input_suffix": "the text behind it",
            "input_extra": "other files (`filename`, `text`), written before them with the model's marks for that",
            "prompt": "a text that follows the prefix",
        },
    ),
    *_harmless(LLAMA, "n_indent", "samplers", "t_max_prompt_ms", "t_max_predict_ms", "response_fields"),
]
"""Editors always send the last ones, as hints."""

FIELDS: dict[Route, tuple[Field, ...]] = {
    "chat": (*_COMMON, *_CHAT),
    "completions": (*_COMMON, *_COMPLETIONS),
    "messages": tuple(_MESSAGES),
    "responses": tuple(_RESPONSES),
    "embeddings": tuple(_EMBEDDINGS),
    "infill": (*(f for f in _COMMON if f.name not in {g.name for g in _INFILL}), *_INFILL),
    "tokenize": tuple(_TOKENIZE),
    "detokenize": tuple(_DETOKENIZE),
}
"""The fields of each route that takes a body, every name once."""
PATHS: dict[Route, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "infill": "/infill",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}


def refusals(route: Route, body: Mapping[str, Any]) -> Iterator[Field]:
    """Yield the fields of a body that are refused."""
    for field in FIELDS[route]:
        if field.kind == "refused":
            value = body.get(field.name)
            if value is not None and not field.unused(value, body):
                yield field


def markdown() -> str:
    """Return the table as docs/server.md has it."""
    parts = []
    both = [field for field in _COMMON if field.kind != "harmless"]
    for title, fields in (
        ("Both completions", both),
        (f"`{PATHS['chat']}` alone", _CHAT),
        (f"`{PATHS['completions']}` alone", _COMPLETIONS),
        (f"`{PATHS['messages']}`", _MESSAGES),
        (f"`{PATHS['responses']}`", _RESPONSES),
        (f"`{PATHS['embeddings']}`", _EMBEDDINGS),
        (f"`{PATHS['infill']}`, in addition to what both completions have", _INFILL),
        (f"`{PATHS['tokenize']}`", _TOKENIZE),
        (f"`{PATHS['detokenize']}`", _DETOKENIZE),
    ):
        rows = [f"| `{f.name}` | {f.of} | {f.note} |" for f in fields if f.kind == "done"]
        parts += ["", f"{title}, done:", "", "| field | whose | |", "|---|---|---|", *rows]
        refused: dict[str, list[str]] = {}
        for field in fields:
            if field.kind == "refused":
                refused.setdefault(field.note, []).append(f"`{field.name}`")
        if refused:
            parts += ["", f"{title}, refused unless null or:", "", "| let pass | fields |", "|---|---|"]
            parts += [f"| {note or 'empty or false'} | {', '.join(names)} |" for note, names in refused.items()]
    names = dict.fromkeys(f"`{f.name}`" for fields in FIELDS.values() for f in fields if f.kind == "harmless")
    parts += ["", f"Harmless, and ignored: {', '.join(names)}.", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    print(markdown())
