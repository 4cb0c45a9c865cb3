"""Fields that say what a reply must look like: OpenAI's `response_format`, and the others' names for the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from nanochat_tui.errors import UserError
from nanochat_tui.request import Grammar
from nanochat_tui.serve.body_types import Body, said_as

MAX_GRAMMAR = 1 << 18
"""Characters of a grammar or pattern, and of a schema given as text."""
MAX_CHOICES = 1000
MAX_BIASES = 1024
MOST_BIAS = 100
NEVER = -1e9
"""Bias of a token that llama-server's `false` stands for."""

SchemaObject = Annotated[
    dict[str, Any] | str | bool, said_as('give a JSON schema, an object such as {"type": "object"}')
]
Text = Annotated[str, Field(max_length=MAX_GRAMMAR)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=10_000)]],
    Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
]


class NamedSchema(Body):
    """OpenAI's wrapping of a schema."""

    model_config = ConfigDict(populate_by_name=True)

    name: str | None = Field(None, max_length=1000)
    description: str | None = None
    schema_: SchemaObject | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="The reply follows the schema in either case.")


class ResponseFormat(Body):
    """What a reply is: text, any JSON object, or JSON after a schema."""

    model_config = ConfigDict(populate_by_name=True)

    type: Annotated[
        Literal["text", "json_object", "json_schema"], said_as("it is text, json_object or json_schema")
    ] = "text"
    json_schema: NamedSchema | None = None
    schema_: SchemaObject | None = Field(None, alias="schema", description="llama-server's place for the schema.")

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        inner = None if self.json_schema is None else self.json_schema.schema_
        if self.type == "json_schema" and self.schema_ is None and inner is None:
            raise PydanticCustomError(
                "invalid_parameter",
                'response_format of type json_schema needs {{"json_schema": {{"name": …, "schema": …}}}}',
                {"name": "response_format"},
            )
        return self

    @property
    def grammar(self) -> Grammar | None:
        """The grammar that is meant, None for text."""
        if self.type == "text":
            return None
        if self.schema_ is not None:
            return Grammar.json_schema(self.schema_)
        if self.type == "json_object" or self.json_schema is None or self.json_schema.schema_ is None:
            return Grammar.json_object()
        return Grammar.json_schema(self.json_schema.schema_)


class StructuredOutputs(Body):
    """vLLM's object for the same, of which one field is given."""

    model_config = ConfigDict(populate_by_name=True)

    json_: SchemaObject | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: bool | None = None


class Constrained(Body):
    """Fields of both kinds of completion that leave only some tokens to choose from, or favour some."""

    response_format: ResponseFormat | None = None
    json_schema: SchemaObject | None = Field(None, description="A JSON schema that the reply follows.")
    grammar: Text | None = Field(None, description="A grammar that the reply follows, in GBNF or in Lark's form.")
    guided_json: SchemaObject | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None
    structured_outputs: StructuredOutputs | None = None
    logit_bias: Annotated[
        dict[str, Any] | list[Any] | None,
        said_as('give an object of token ids and numbers from -100 to 100, such as {"15": -100}'),
    ] = Field(None, description="Added to the logits of tokens: ids with numbers from -100 to 100.")

    @model_validator(mode="after")
    def _one_constraint(self) -> Constrained:
        names = [name for name, _ in self._constraints()]
        if len(names) > 1:
            raise PydanticCustomError(
                "invalid_parameter",
                "{name} and {other} exclude each other; give one of them",
                {"name": names[1], "other": names[0]},
            )
        self.biases()
        return self

    def _constraints(self) -> Iterator[tuple[str, Grammar]]:
        given = self.structured_outputs
        pairs: list[tuple[str, Any, Any]] = [
            ("json_schema", self.json_schema or None, Grammar.json_schema),
            ("grammar", self.grammar or None, Grammar.grammar),
            ("guided_json", self.guided_json or None, Grammar.json_schema),
            ("guided_regex", self.guided_regex or None, Grammar.regex),
            ("guided_choice", self.guided_choice, Grammar.choices),
            ("guided_grammar", self.guided_grammar or None, Grammar.grammar),
        ]
        if given is not None:
            where = "structured_outputs"
            pairs += [
                (where, given.json_, Grammar.json_schema),
                (where, given.regex, Grammar.regex),
                (where, given.choice, Grammar.choices),
                (where, given.grammar, Grammar.grammar),
                (where, given.json_object or None, lambda _: Grammar.json_object()),
            ]
        try:
            if self.response_format is not None and self.response_format.grammar is not None:
                name = "response_format"
                yield name, self.response_format.grammar
            for name, value, make in pairs:
                if value is not None:
                    yield name, make(value)
        except UserError as error:
            raise PydanticCustomError("invalid_parameter", "{reason}", {"name": name, "reason": str(error)}) from error

    @property
    def constraint(self) -> tuple[str, Grammar] | None:
        """The field that says what the reply must look like, and the grammar it means; None if there is none."""
        return next(self._constraints(), None)

    def biases(self) -> dict[int, float]:
        """Return the biases by token id. Raises PydanticCustomError for what is none."""
        given = self.logit_bias
        if not given:
            return {}
        pairs = list(given.items()) if isinstance(given, Mapping) else given
        found: dict[int, float] = {}
        if len(pairs) > MAX_BIASES:
            raise _bad_bias(f"logit_bias has {MAX_BIASES} entries at most")
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise _bad_bias("logit_bias is a list of pairs, each a token id and a number")
            token, bias = pair
            if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 19:
                token = int(token)
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < 1 << 62:
                raise _bad_bias("logit_bias names tokens by their ids, whole numbers")
            if bias is False:
                found[token] = NEVER
                continue
            if isinstance(bias, bool) or not isinstance(bias, int | float) or not abs(bias) <= MOST_BIAS:
                raise _bad_bias(f"logit_bias holds numbers from -{MOST_BIAS} to {MOST_BIAS}")
            found[token] = float(bias)
        return found


def _bad_bias(what: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_parameter", "{what}", {"name": "logit_bias", "what": what})
