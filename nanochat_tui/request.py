"""What is asked of a model and what comes back, declared once for the library, the engine, the chat and the server.

A setting is a field of `SamplingParams` or `GenerationRequest`: its default, bounds, title and help stand there, and
the command line, the preferences, the forms and the server's request bodies are made from them.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, cast

from nanochat_tui.arguments import ArgumentError, described, number, token_ids, whole
from nanochat_tui.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound="GenerationRequest")
FinishReason = Literal["stop", "length", "cancelled"]
"""Why a reply ended: an end token or stop string, a limit (max_tokens or the context), or the caller."""
MAX_ALTERNATIVES = 1000
MAX_PENALTY = 1e6
"""Largest repeat penalty, and the inverse of the smallest: products with logits stay finite in float32."""
MAX_BIAS = 1e9
"""Largest bias of a logit, up or down: beyond every logit, and sums stay finite in float32."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One numeric setting: how it is called and explained, its default and its bounds (None: unbounded).

    above: `low` itself is not allowed. blank: what None means, '' where None is not allowed. unsent: the value that
    changes nothing, so that a server need not receive it. openai: whether OpenAI's protocol has the field.
    everyday: whether forms and the command line offer it.
    """

    name: str
    default: float | None
    is_whole: bool
    title: str
    help: str
    low: float | None = None
    high: float | None = None
    above: bool = False
    blank: str = ""
    unsent: float | None = None
    openai: bool = False
    everyday: bool = True

    @property
    def range(self) -> str:
        """The bounds in words, such as "above 0 and at most 1"."""
        if self.low is None:
            return "a finite number"
        if self.above:
            return f"above {self.low:g}" + (f" and at most {self.high:g}" if self.high is not None else "")
        if self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"{self.low:g} or more"

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds as Pydantic's `Field` takes them."""
        found = {} if self.low is None else {"gt" if self.above else "ge": self.low}
        return found if self.high is None else {**found, "le": self.high}

    def check(self, value: object) -> None:
        """Raise ArgumentError for a value of a wrong type, UserError for one that is not finite or out of bounds."""
        if value is None and self.blank:
            return
        if self.is_whole:
            whole(self.name, value, optional=bool(self.blank))
        else:
            number(self.name, value)
        if not self._holds(value):
            raise UserError(f"{self.name} must be {self.range}, not {_shown(value)}.")

    def _holds(self, value: Any) -> bool:
        try:
            if not self.is_whole and not math.isfinite(value):
                return False
        except OverflowError:  # an integer that no float holds
            return False
        least = self.low is None or (value > self.low if self.above else value >= self.low)
        return bool(least and (self.high is None or value <= self.high))


def _shown(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"


def _setting(default: float | None, title: str, help: str, **more: Any) -> Any:
    """Declare a field of a request; `more` are fields of `Setting`."""
    return field(default=default, metadata={"setting": {"title": title, "help": help, **more}})


def settings_of(kind: type) -> dict[str, Setting]:
    """Return the numeric settings that a class declares, by name, in their order."""
    found = {}
    for one in fields(kind):
        if "setting" in one.metadata:
            is_whole = str(one.type).startswith("int")
            found[one.name] = Setting(one.name, cast("float | None", one.default), is_whole, **one.metadata["setting"])
    return found


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; applied in the order penalties, temperature, top-k, typical-p, top-p, min-p, draw.

    top_p is the share of the probability that the cuts before it left, min_p is relative to the likeliest token left.
    typical_p keeps the tokens whose surprise is nearest to the mean (locally typical sampling, Meister et al. 2022).
    repeat_penalty divides positive and multiplies negative logits of every token of prompt and reply. presence_penalty
    is subtracted from the logit of every token in the reply, frequency_penalty once per occurrence (OpenAI's API).
    Raises UserError naming the first value that is out of its bounds, ArgumentError for a wrong type.
    """

    temperature: float = _setting(0.8, "Temperature", "0 is greedy; higher is more random", low=0, openai=True)
    top_k: int = _setting(40, "Top-k", "keep this many of the likeliest tokens; 0: all", low=0)
    top_p: float = _setting(
        0.95, "Top-p", "keep the likeliest tokens with this total probability", low=0, high=1, above=True, openai=True
    )
    min_p: float = _setting(0.0, "Min-p", "drop tokens below this share of the likeliest", low=0, high=1, unsent=0)
    repeat_penalty: float = _setting(
        1.0, "Repeat penalty", "1: none; 1.1 discourages loops", low=1 / MAX_PENALTY, high=MAX_PENALTY, unsent=1
    )
    seed: int | None = _setting(None, "Seed", "the same seed gives the same text", blank="random", openai=True)
    typical_p: float = _setting(
        1.0,
        "Typical-p",
        "keep tokens of typical surprise with this total probability",
        low=0,
        high=1,
        above=True,
        unsent=1,
    )
    presence_penalty: float = _setting(
        0.0, "Presence penalty", "of tokens in the reply", low=-2, high=2, unsent=0, openai=True, everyday=False
    )
    frequency_penalty: float = _setting(
        0.0,
        "Frequency penalty",
        "of tokens in the reply, per occurrence",
        low=-2,
        high=2,
        unsent=0,
        openai=True,
        everyday=False,
    )

    def __post_init__(self) -> None:
        for name, setting in SAMPLING.items():
            setting.check(getattr(self, name))

    @property
    def counts_tokens(self) -> bool:
        """Whether the next token's distribution depends on which tokens were seen."""
        return self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply must look like, of the text that people see: made by one of the class methods.

    kind: what `text` is: a JSON schema, a regular expression (Rust's syntax, of the whole reply), a grammar in GBNF
    (llama.cpp's) or Lark's form, or a JSON list of texts. thinking: the marks around what the model may write before
    that, freely; inside: the prompt ends within it. budget: tokens that this may have at most.
    """

    kind: Literal["json_schema", "regex", "grammar", "choices", "text"]
    text: str
    thinking: tuple[str, str] | None = None
    inside: bool = False
    budget: int | None = None

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """Return the grammar of a JSON schema, given as Python values or as JSON. Raises UserError if it is no JSON."""
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise UserError(f"the JSON schema is not valid JSON ({error}); correct it") from error
        if not isinstance(schema, Mapping | bool):
            raise UserError('a JSON schema is an object such as {"type": "object"}')
        try:
            return cls("json_schema", json.dumps(schema, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"the JSON schema cannot be written as JSON ({error}); correct it") from error

    @classmethod
    def json_object(cls) -> Grammar:
        """Return the grammar of any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Return the grammar of a regular expression that the whole reply matches."""
        return cls("regex", pattern)

    @classmethod
    def grammar(cls, text: str) -> Grammar:
        """Return a grammar that is written out, in GBNF or in Lark's form."""
        return cls("grammar", text)

    @classmethod
    def choices(cls, texts: Iterable[str]) -> Grammar:
        """Return the grammar of a reply that is one of some texts. Raises UserError if there is none."""
        found = list(texts)
        if not found or not all(isinstance(text, str) and text for text in found):
            raise UserError("the choices for a reply are one or more texts, none of them empty")
        return cls("choices", json.dumps(found, ensure_ascii=False))

    @classmethod
    def free(cls) -> Grammar:
        """Return the grammar of any text: what follows thinking that has a budget."""
        return cls("text", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What a reply shall be, whatever its prompt is.

    stop: texts that end the reply and are not part of it; stop_token_ids: tokens that do the same. min_tokens: so many
    tokens come before anything ends the reply. ignore_eos: the model's own end tokens end nothing. top_logprobs: how
    many of the likeliest tokens come with each token. logprobs: False leaves out the log-probability of each token,
    which is faster with large vocabularies. grammar: what the reply must look like. logit_bias: what is added to the
    logits of some tokens, by id, after the penalties.
    Raises UserError or ArgumentError, naming what is wrong.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = _setting(256, "Max tokens", "longest reply, in tokens", low=0, blank="all that fit")
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = _setting(0, "Min tokens", "shortest reply, in tokens", low=0, everyday=False)
    ignore_eos: bool = False
    top_logprobs: int = _setting(
        0, "Alternatives", "likeliest tokens listed with each token", low=0, high=MAX_ALTERNATIVES, everyday=False
    )
    logprobs: bool = True
    grammar: Grammar | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for name, setting in REQUEST.items():
            setting.check(getattr(self, name))
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise ArgumentError(f"grammar is {described(self.grammar)} and must be a Grammar")
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "stop", _texts(self.stop))
        object.__setattr__(self, "stop_token_ids", frozenset(token_ids("stop_token_ids", self.stop_token_ids)))

    @classmethod
    def of(cls, given: GenerationRequest | SamplingParams | None = None, /, **settings: Any) -> GenerationRequest:
        """Return a request with some settings, fields of this class or of `SamplingParams`, set by name.

        Raises ArgumentError for a name that neither has, and as the constructors do.
        """
        if isinstance(given, SamplingParams):
            given = GenerationRequest(sampling=given)
        elif given is not None and not isinstance(given, GenerationRequest):
            raise ArgumentError(f"params is {described(given)} and must be SamplingParams or a GenerationRequest")
        return with_settings(GenerationRequest() if given is None else given, **settings)

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probability of each token is computed."""
        return self.logprobs or self.top_logprobs > 0


def _biases(given: object) -> tuple[tuple[int, float], ...]:
    try:
        pairs = dict(given)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"logit_bias is {described(given)} and must be a dictionary of ids and numbers") from error
    ids = token_ids("logit_bias", pairs)
    for token, bias in zip(ids, pairs.values(), strict=True):
        number("logit_bias", bias)
        if token < 0 or not abs(bias) <= MAX_BIAS:
            raise UserError(f"logit_bias holds ids of 0 or more and numbers from -{MAX_BIAS:g} to {MAX_BIAS:g}")
    return tuple(sorted(zip(ids, map(float, pairs.values()), strict=True)))


def _texts(stop: object) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | Mapping):
        raise ArgumentError(f"stop is {described(stop)} and must be a text or a list of texts")
    found = tuple(texts)
    for text in found:
        if not isinstance(text, str):
            raise ArgumentError(f"stop holds something {described(text)} and must hold texts")
    return found


def with_settings(request: R, **settings: Any) -> R:
    """Return a request with some settings changed, see `GenerationRequest.of`."""
    if not settings:
        return request
    unknown = next((name for name in settings if name not in _NAMES), None)
    if unknown is not None:
        raise ArgumentError(f"there is no such setting ({unknown!r}); see SamplingParams and GenerationRequest")
    chosen = {name: settings.pop(name) for name in list(settings) if name in SAMPLING}
    if chosen:
        settings["sampling"] = replace(settings.get("sampling", request.sampling), **chosen)
    return replace(request, **settings)


SAMPLING = settings_of(SamplingParams)
"""Settings of `SamplingParams` by name."""
REQUEST = settings_of(GenerationRequest)
"""The numeric settings of `GenerationRequest` by name."""
_NAMES = {one.name: one for kind in (SamplingParams, GenerationRequest) for one in fields(kind)}


def shows_settings(function: F) -> F:
    """Let `help` and editors see, in place of a function's `**settings`, every setting with its default."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name, one in _NAMES.items():
        if name != "sampling" and name not in signature.parameters:
            default = one.default if one.default is not MISSING else None
            own.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=one.type))
    function.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a reply. `text` has whole characters only and may be empty.

    id: None where a server does not tell it. logprob: natural log of the token's probability before temperature and
    cuts; nan where it was not asked for, None where it is not known. top: the likeliest tokens (id, text, logprob) of
    the same distribution, likeliest first, as many as asked for; a server's have the id -1. thinking: whether the
    text belongs to what a model thinks before it answers; always False where the request does not tell them apart.
    """

    text: str
    id: int | None = None
    logprob: float | None = None
    top: tuple[tuple[int, str, float], ...] = ()
    thinking: bool = False


@dataclass(slots=True)
class Stats:
    """Counts and seconds of one reply. Prompt figures leave out tokens re-used from the cache and include the first
    generated token; decode figures count the others. Of drafted tokens, accepted ones were right."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    reused_tokens: int = 0
    generated_tokens: int = 0
    decode_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prompt_tps(self) -> float | None:
        """Prompt tokens computed per second; None before there is anything to measure."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds > 0 else None

    @property
    def decode_tps(self) -> float | None:
        """Tokens generated per second after the first one; None before there is anything to measure."""
        return self.generated_tokens / self.decode_seconds if self.decode_seconds > 0 else None
