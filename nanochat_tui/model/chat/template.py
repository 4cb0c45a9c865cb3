"""Chat templates: the Jinja text inside a model file that turns messages into a prompt.

A template comes from a stranger's file, so it runs in Jinja's immutable sandbox, on a copy of the messages, with
its output and its running time bounded. What templates expect to find is what Hugging Face's
`apply_chat_template` gives them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn, cast

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

MAX_TEMPLATE = 1 << 18
"""Characters of a template; the longest published ones have 30,000."""
MAX_PROMPT = 1 << 24
"""Characters that a template may write, or put together in one expression."""
MAX_SECONDS = 5.0
"""How long it may take; checked at every turn of a loop, every call and every piece that is written."""
MAX_NUMBER = 1 << 63
"""Largest base of a power; with an exponent of at most 64 the result stays small."""


_CONTINUED = "\ufdcf\ufdef"
"""Marks where a continued message ends; one of Unicode's characters for a program's own use."""


class ChatTemplateError(UserError):
    """A chat template that is damaged, that refuses the messages, or that does not end."""


def _check_time(context: Context) -> None:
    if time.monotonic() > context["_deadline"]:
        raise TemplateError(f"it takes longer than {MAX_SECONDS:g} seconds")


def _check_size(size: int) -> None:
    if size > MAX_PROMPT:
        raise TemplateError(f"it makes a text or list longer than {MAX_PROMPT}")


class _Generation(Extension):
    """`{% generation %}` marks what a trainer learns from; a prompt takes its body as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements up to `{% endgeneration %}`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounded(NodeTransformer):
    """Rewrites a parsed template so that its loops and its `~` go through the checks of the sandbox."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 (Jinja's name)
        """Let the loop draw from `_Sandbox.steps`."""
        self.generic_visit(node)
        node.iter = self._call("steps", [cast("nodes.Expr", node.iter)])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        """Let `_Sandbox.joined` put the parts together."""
        self.generic_visit(node)
        return self._call("joined", node.nodes)

    @staticmethod
    def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, without the operators by which one expression can take unlimited time or memory."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute a binary operator after looking at the size of its result."""
        if operator == "**" and not (abs(right) <= 64 and abs(left) <= MAX_NUMBER):
            raise TemplateError("it raises a number to an absurd power")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, Sequence) and isinstance(other, int):
                    _check_size(len(one) * other)
        if operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
            _check_size(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            raise TemplateError("it formats text with %, which is not allowed")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, unless the time is up or an argument asks for a very long text."""
        _check_time(context)
        if getattr(obj, "__name__", "") in _PADDING:
            _check_padding(args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    @staticmethod
    @pass_context
    def steps(context: Context, items: Iterable[Any] | None) -> Iterator[Any]:
        """Yield the items of a loop, watching the time; absent `tools` are None and count as none."""
        for item in () if items is None else items:
            _check_time(context)
            yield item

    @staticmethod
    def joined(*parts: Any) -> str:
        """Return parts as one text, watching its length."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)


_PADDING = ("ljust", "rjust", "center", "zfill", "expandtabs")


def _check_padding(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if any(isinstance(value, int) and value > 1000 for value in (*args, *kwargs.values())):
        raise TemplateError("it pads a text to an absurd width")


def _padding_filter(original: Callable[..., str]) -> Callable[..., str]:
    @wraps(original)
    def checked(*args: Any, **kwargs: Any) -> str:
        _check_padding(args[1:], kwargs)  # the first is what is filtered
        return original(*args, **kwargs)

    return checked


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """Write JSON as templates expect: no escaping for HTML, other scripts as they are."""
    separators = options.get("separators")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=tuple(separators) if separators else None,
        sort_keys=bool(options.get("sort_keys", False)),
    )


def _raise_exception(message: object) -> NoReturn:
    raise ChatTemplateError(f"the model's chat template refuses: {display_safe(str(message))}")


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    if len(template) > MAX_TEMPLATE:
        raise ChatTemplateError(f"the model's chat template is longer than {MAX_TEMPLATE} characters; it is damaged")
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
        autoescape=False,  # the text is for a tokenizer, not for a web page
    )
    for name in ("center", "indent"):
        environment.filters[name] = _padding_filter(environment.filters[name])
    del environment.filters["format"]  # "%9999999999d"
    environment.filters["tojson"] = _padding_filter(_tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    tree = _Bounded().visit(environment.parse(template))
    return Template.from_code(environment, environment.compile(tree), environment.globals)


def is_usable(template: str) -> bool:
    """Whether a template is Jinja at all; what it does with messages, only rendering can tell."""
    try:
        _compile(template)
    except (ChatTemplateError, TemplateError, RecursionError):
        return False
    return True


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
    continue_last: bool = False,
) -> str:
    """Return the prompt that a chat template makes of messages ({"role", "content"}, oldest first).

    `enable_thinking` is left undefined when None, so that the template's own default holds. `continue_last`: the last
    message is the beginning of the reply, so that the prompt ends with its text and opens no turn of its own.
    Raises ChatTemplateError, in one sentence, if the template is not Jinja, raises an exception of its own (such as
    roles that do not alternate), or runs or writes too long.
    """
    talk = [dict(message) for message in messages]
    beginning = ""
    if continue_last:
        add_generation_prompt = False
        if not talk or not isinstance(talk[-1].get("content"), str):
            raise ChatTemplateError("there is no message whose text could be continued")
        beginning = str(talk[-1]["content"])
        # some templates trim a message, and then its text would not be found again
        talk[-1]["content"] = _CONTINUED if not beginning else beginning.rstrip() + _CONTINUED
    variables: dict[str, Any] = {
        "messages": talk,
        "tools": [dict(tool) for tool in tools] if tools else None,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "add_generation_prompt": add_generation_prompt,
        "_deadline": time.monotonic() + MAX_SECONDS,
    }
    if enable_thinking is not None:
        variables["enable_thinking"] = enable_thinking
    written: list[str] = []
    length = 0
    try:
        for piece in _compile(template).generate(variables):
            written.append(piece)
            length += len(piece)
            _check_size(length)
    except ChatTemplateError:
        raise
    except (RecursionError, MemoryError) as error:
        raise ChatTemplateError("the model's chat template does not end; it is damaged") from error
    except Exception as error:  # a template can raise anything Python can, such as TypeError from an operator
        raise ChatTemplateError(
            f"the model's chat template cannot be used ({display_safe(str(error))}); try --raw for plain completion"
        ) from error
    text = "".join(written)
    if not continue_last:
        return text
    before, found, _ = text.rpartition(_CONTINUED)
    if not found:
        raise ChatTemplateError("the model's chat template leaves the last message out, so it cannot be continued")
    return before + beginning[len(beginning.rstrip()) :]
