"""Replies that follow a grammar: alone and in a batch, drawn in every way, with draft tokens and without."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import MERGES, TINY, tiny_tokenizer
from test_sampling import softmax
from tokenizers import Tokenizer

from nanochat_tui.engine.generate.constraint import Grammars, looked_up
from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.run.drafter import MOST, Proposals
from nanochat_tui.engine.run.draw import Draw
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.errors import UserError
from nanochat_tui.model.chat.tools.formats import ToolFormat
from nanochat_tui.model.chat.tools.grammar import call_grammar
from nanochat_tui.model.tokenizer import END_OF_TEXT, byte_level_bpe
from nanochat_tui.model.tokenizer.codec import TextCodec, byte_alphabet
from nanochat_tui.model.tokenizer.sentencepiece import SPACE, spm_tokenizer
from nanochat_tui.request import GenerationRequest, Grammar, SamplingParams

MakeModel = Callable[..., Model]
LONG = replace(TINY, context_length=512)
INDENTED = replace(LONG, indentation=4)
PROMPT = [5, 17, 200, 41]
DRAWS = 2000
WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3, "top_k": 0, "top_p": 1.0},
    {"temperature": 1.4, "seed": 4, "top_k": 7, "min_p": 0.05},
    {"temperature": 0.9, "seed": 5, "top_p": 0.8, "repeat_penalty": 1.2, "typical_p": 0.9},
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"enum": ["small", "large", 3, None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}
PATTERN = r"(fn|let) [a-z]{2,4}: [0-9]{3}é?"
GRAMMARS: list[tuple[Grammar, Callable[[str], object]]] = [
    (Grammar.json_schema(SCHEMA), lambda text: jsonschema_rs.validate(SCHEMA, json.loads(text))),
    (Grammar.regex(PATTERN), lambda text: re.fullmatch(PATTERN, text) or pytest.fail(text)),
    (Grammar.choices(["yes", "no", 'per"haps\n']), ("yes", "no", 'per"haps\n').index),
    (
        Grammar.grammar('root ::= "(" item ("," item){0,2} ")"\nitem ::= [a-c] | "<" last ">"\nlast ::= [x-z]\n'),
        lambda text: re.fullmatch(r"\((([a-c]|<[x-z]>),?){1,3}\)", text) or pytest.fail(text),
    ),
    (Grammar.grammar('start: A B*\nA: /x+y/\nB: "z"\n%ignore / /'), lambda text: text.index("y")),
]


@pytest.fixture(scope="module", params=[1, 2])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Model:
    return make_model(LONG, threads=request.param)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("kind", range(len(GRAMMARS)))
def test_a_reply_follows_its_grammar_with_and_without_drafts(model: Model, way: dict[str, Any], kind: int) -> None:
    grammar, check = GRAMMARS[kind]
    options = {"max_tokens": 300, "grammar": grammar, **way}
    plain = Session(model, speculation="off")
    reply = list(plain.generate(PROMPT, **options))
    if plain.finish_reason == "stop":
        check("".join(token.text for token in reply))
    else:
        assert "*" in grammar.text and len(reply) == 300
    drafting = Session(model, speculation="on")
    assert list(drafting.generate(PROMPT, **options)) == reply


def test_forced_tokens_and_repetitions_are_drafted(model: Model) -> None:
    grammar = Grammar.grammar('root ::= ("let main = " [a-z] "; "){12}')
    session = Session(model, speculation="on")
    text = "".join(token.text for token in session.generate(PROMPT, grammar=grammar, temperature=0, max_tokens=400))
    assert re.fullmatch(r"(let main = [a-z]; ){12}", text)
    assert session.stats.accepted_tokens > 12 * 6


class Stubborn(Proposals):
    """Proposes what is known to be forbidden, behind a token that is not."""

    def propose(self, ids: NDArray[np.int64], most: int) -> list[int]:
        return [ord("a") - 33, ord("!") - 33][:most]  # the alphabet of bytes begins at "!"


def test_a_forbidden_draft_token_is_rejected(model: Model) -> None:
    options: dict[str, Any] = {"grammar": Grammar.regex("[a-z]{20}"), "temperature": 1.0, "seed": 1}
    plain = list(Session(model, speculation="off").generate(PROMPT, **options))
    session = Session(model, speculation="on", drafter=Stubborn)
    assert list(session.generate(PROMPT, **options)) == plain
    assert 0 < session.stats.drafted_tokens <= len(plain)


def test_in_a_batch_each_reply_is_what_it_is_alone(model: Model) -> None:
    asked = [{"grammar": grammar, **way} for grammar, _ in GRAMMARS[:4] for way in WAYS]
    asked += [{"temperature": 0.8, "seed": seed} for seed in range(4)]
    alone = [list(Session(model).generate(PROMPT, max_tokens=60, **each)) for each in asked]
    batcher = Batcher(model, max_sequences=8, max_waiting=64)
    streams = [batcher.submit(PROMPT, max_tokens=60, **each) for each in asked]
    together = [list(stream) for stream in streams]
    batcher.close()
    assert [[t.id for t in reply] for reply in together] == [[t.id for t in reply] for reply in alone]


def test_the_rest_of_the_distribution_keeps_its_proportions(model: Model) -> None:
    class Some:
        def masks(self, drafts: NDArray[np.int64], out: NDArray[np.uint32]) -> int:
            out[0] = np.packbits(allowed, bitorder="little").view(np.uint32)
            return 0

    rng = np.random.default_rng(3)
    logits = model.logits(PROMPT)[-1].astype(np.float64)
    for share, top_k, top_p in ((0.5, 0, 1.0), (0.1, 0, 0.9), (0.9, 8, 1.0)):
        allowed = np.zeros(320, np.uint8)
        allowed[:300] = rng.random(300) < share
        x = np.where(allowed[:300] == 1, logits, -np.inf)
        p = softmax(x)
        order = np.argsort(-p, kind="stable")[: top_k or None]
        taken = p[order] / p[order].sum()
        order = order[: int(np.searchsorted(np.cumsum(taken), top_p)) + 1]
        wanted = np.zeros(300)
        wanted[order] = p[order] / p[order].sum()
        cache, ids = KVCache(model.config, 8), np.array(PROMPT, np.int64)
        model.executor.run(cache, ids[:-1], 0)
        counts = np.zeros(300)
        for seed in range(DRAWS):
            sampling = SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p, seed=seed)
            draw = Draw(GenerationRequest(sampling=sampling), 300, [], 1, Some())
            drawn = model.executor.generate(cache, ids[-1:], 3, draw, 1)
            counts[drawn.ids[0]] += 1
            # log-probabilities are those of the model
            assert drawn.logprobs[0] == pytest.approx(math.log(softmax(logits)[drawn.ids[0]]), abs=1e-4)
        assert not counts[wanted == 0].any()
        error = np.sqrt(wanted * (1 - wanted) / DRAWS)
        assert np.all(np.abs(counts / DRAWS - wanted) <= 5 * error + 1e-9)


# ---- schemas of every shape

scalars = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 5)),
    st.builds(
        lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b}, st.integers(-90, 90), st.integers(0, 99)
    ),
    st.builds(lambda v: {"enum": v}, st.lists(st.sampled_from(["a", "fn main", 1, 2.5, None, 'q"']), min_size=1)),
    st.builds(lambda v: {"const": v}, st.sampled_from(["x\n", [1, 2], {"k": True}])),
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.dictionaries(st.sampled_from(["a", "b", "let", "long name", 'é"']), inner, min_size=1, max_size=3)
    arrays = st.builds(
        lambda i, a: {"type": "array", "items": i, "minItems": a, "maxItems": 2}, inner, st.integers(0, 2)
    )
    objects = st.builds(
        lambda p, n: {
            "type": "object",
            "properties": p,
            "required": sorted(p)[:n],
            "additionalProperties": False,
        },
        names,
        st.integers(0, 3),
    )
    return st.one_of(arrays, objects, st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner))


@pytest.fixture(scope="module")
def roomy(make_model: MakeModel) -> Model:
    return make_model(replace(TINY, context_length=2048), threads=1)


@given(schema=st.recursive(scalars, nested, max_leaves=5), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_every_schema_gives_valid_json(roomy: Model, schema: Any, seed: int) -> None:
    reply = roomy.generate(
        PROMPT, grammar=Grammar.json_schema(schema), max_tokens=None, temperature=1.0, top_k=0, top_p=1.0, seed=seed
    )
    text = reply.read()
    assert reply.finish_reason == "stop"
    jsonschema_rs.validate(schema, json.loads(text))


# ---- endings


def test_end_tokens_come_where_the_grammar_allows_an_end(model: Model) -> None:
    end = model.codec.eos
    grammar = Grammar.grammar('root ::= "ab" [a-z]*')
    session = Session(model)
    for seed in range(20):
        ids = [t.id for t in session.generate(PROMPT, grammar=grammar, temperature=1.0, seed=seed, min_tokens=6)]
        assert end not in ids and len(ids) >= 6
    endless = list(session.generate(PROMPT, grammar=grammar, temperature=1.0, seed=1, ignore_eos=True, max_tokens=90))
    assert len(endless) == 90 and session.finish_reason == "length"
    # where nothing but an end may follow, that is the end
    done = Grammar.choices(["ab"])
    list(session.generate(PROMPT, grammar=done, ignore_eos=True, min_tokens=40, max_tokens=90))
    assert session.finish_reason == "stop"


def test_a_stop_string_ends_a_reply_before_its_grammar_does(model: Model) -> None:
    text = model.generate(PROMPT, grammar=Grammar.choices(["one; two"]), stop=("; t",)).read()
    assert text == "one"


REFUSED = [
    (Grammar.json_schema({"type": "nothing"}), "Invalid type: nothing"),
    (Grammar.json_schema({"not": {"type": "string"}}), '"not"'),
    (Grammar.regex("(a"), "cannot be used"),
    (Grammar.grammar('root ::= ("a"'), "Expected"),
    (Grammar.grammar("start: missing"), "missing"),
    (Grammar.grammar("root ::= " + "(" * 5000), "cannot be used"),
    (Grammar.grammar("a" * (1 << 19)), "characters"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_grammar_that_cannot_be_used_is_refused(model: Model, number: int) -> None:
    grammar, words = REFUSED[number]
    with pytest.raises(UserError) as refused:
        model.generate(PROMPT, grammar=grammar)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    batcher = Batcher(model)
    with pytest.raises(UserError):
        batcher.submit(PROMPT, grammar=grammar)
    batcher.close()


def test_what_no_schema_or_choice_is() -> None:
    for make in (
        lambda: Grammar.json_schema("{"),
        lambda: Grammar.json_schema("[]"),
        lambda: Grammar.json_schema({"a": object()}),
        lambda: Grammar.choices([]),
        lambda: Grammar.choices([""]),
    ):
        with pytest.raises(UserError):
            make()
    with pytest.raises(UserError, match="must be a Grammar"):
        GenerationRequest(grammar="{}")  # type: ignore[arg-type]


def test_a_grammar_of_what_no_token_spells_fails_alone(make_model: MakeModel) -> None:
    # where a line begins this model has no tab: it reads as four spaces
    model = make_model(INDENTED, threads=1)
    assert model.codec.indentation == 4
    impossible = Grammar.choices(["\n\tx"])
    with pytest.raises(UserError, match="cannot be used"):
        model.generate(PROMPT, grammar=impossible).read()
    batcher = Batcher(model)
    good = batcher.submit(PROMPT, grammar=Grammar.choices(["good"]), temperature=0)
    bad = batcher.submit(PROMPT, grammar=impossible)
    with pytest.raises(UserError, match="cannot be used"):
        list(bad)
    assert "".join(token.text for token in good) == "good"
    assert "".join(t.text for t in batcher.submit(PROMPT, grammar=Grammar.choices(["after"]))) == "after"
    batcher.close()


# ---- the text that people see

TABS = [("Ċ", "ĉ"), ("ĉ", "ĉ"), ("Ċĉ", "ĉ"), ("ĉ", "x"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ")]


@pytest.fixture(scope="module")
def tabs() -> Tokenizer:
    names = [*byte_alphabet(), *(a + b for a, b in (*MERGES, *TABS))]
    names += [f"unused{i}" for i in range(300 - len(names) - 1)] + [END_OF_TEXT]
    return byte_level_bpe({name: i for i, name in enumerate(names)}, [*MERGES, *TABS])


@pytest.mark.parametrize("prompt", ["fn main() {", "fn main() {\n", "fn main() {\n    "])
@pytest.mark.parametrize("seed", range(6))
def test_indentation_is_spaces_to_the_grammar(make_model: MakeModel, tabs: Tokenizer, prompt: str, seed: int) -> None:
    model = make_model(INDENTED, write={"tokenizer": tabs, "seed": 3}, threads=1)
    pattern = r"( {4}|\tx|\n {4}x|\n {8,12}x\t| {2}x){6}"
    for speculation in ("off", "on"):
        session = Session(model, speculation=speculation)  # type: ignore[arg-type]
        tokens = list(
            session.generate(model.encode(prompt), grammar=Grammar.regex(pattern), temperature=1.0, seed=seed, top_k=0)
        )
        if speculation == "off":
            first = [token.id for token in tokens]
        text = "".join(token.text for token in tokens)
        assert re.fullmatch(pattern, text), text
        assert [token.id for token in tokens] == first


def test_leading_tabs_are_used_for_indentation(make_model: MakeModel, tabs: Tokenizer) -> None:
    model = make_model(INDENTED, write={"tokenizer": tabs, "seed": 3}, threads=1)
    rules = model.grammars.rules(Grammar.regex(" {8}x|y"), model.encode("{\n"), min_tokens=0, ignore_eos=False)
    assert {model.tokenizer.id_to_token(token) for token in rules.allowed()} == {"Ġ", "ĠĠ", "ĠĠĠĠ", "ĉ", "ĉĉ", "y"}
    middle = model.grammars.rules(Grammar.regex("[ \t]{2}x|y"), model.encode("{"), min_tokens=0, ignore_eos=False)
    assert {model.tokenizer.id_to_token(token) for token in middle.allowed()} == {"Ġ", "ĠĠ", "ĉ", "ĉĉ", "y"}


def test_a_space_in_front_of_a_text_is_none() -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, "a", "b", "ab", SPACE + "ab"]
    tokenizer = spm_tokenizer(
        pieces,
        [-float(i) for i in range(len(pieces))],
        [i > 258 for i in range(len(pieces))],
        unknown="<unk>",
        special=["<s>", "</s>"],
        user_defined=[],
        space_prefix=True,
    )
    codec = TextCodec(tokenizer, bos=1, eos=2, add_bos=True)
    grammars = Grammars(codec, len(pieces))

    def names(grammar: Grammar, prompt: list[int]) -> set[str]:
        rules = grammars.rules(grammar, prompt, min_tokens=0, ignore_eos=False)
        return {tokenizer.id_to_token(token) for token in rules.allowed()}

    assert {"ab", SPACE + "ab", "a"} <= names(Grammar.regex("ab?c"), [1])
    inside = names(Grammar.regex("ab?c"), codec.encode("b"))
    assert "ab" in inside and SPACE + "ab" not in inside
    assert SPACE + "ab" in names(Grammar.regex(" ab?c"), codec.encode("b"))
    assert codec.decode([260, 261]) == "ab"


# ---- thinking first


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("budget", [None, 0, 5])
def test_thinking_comes_before_the_grammar(model: Model, inside: bool, budget: int | None) -> None:
    marks = ("<think>", "</think>")
    for seed in range(8):
        grammar = replace(Grammar.choices(["yes", "no"]), thinking=marks, inside=inside, budget=budget)
        reply = model.generate(PROMPT, grammar=grammar, temperature=1.0, seed=seed, top_k=0, top_p=1.0, max_tokens=400)
        text = reply.read()
        opening = "" if inside else r"(<think>"
        thought = {None: r"(.|\n)*", 0: "", 5: r"(.|\n){0,80}"}[budget]
        closing = "" if inside else ")?"
        if budget is not None or not (inside or text.startswith("<think>")):
            assert reply.finish_reason == "stop"
            assert re.fullmatch(rf"{opening}{thought}</think>\n{{0,2}}{closing}(yes|no)", text), text


def test_only_the_thinking_has_a_budget(model: Model) -> None:
    grammar = replace(Grammar.free(), thinking=("<think>", "</think>"), inside=True, budget=3)
    text = model.generate(PROMPT, grammar=grammar, temperature=1.0, seed=1, ignore_eos=True, max_tokens=120).read()
    thought, closed, rest = text.partition("</think>")
    assert closed and len(thought) <= 6 * len("unused199") and len(rest) > 20


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether a reply may be this text, a token at a time."""
    codec = TextCodec(tiny_tokenizer(), bos=299, eos=299, add_bos=True)
    rules = Grammars(codec, 300).rules(grammar, [299], min_tokens=0, ignore_eos=False)
    for token in codec.encode(text, bos=False, special=False):
        if token not in rules.allowed():
            return False
        rules.take(token)
    return rules.complete or 299 in rules.allowed()


def test_a_thought_ends_where_the_model_closes_it() -> None:
    for budget in (None, 100):
        grammar = replace(Grammar.choices(["yes"]), thinking=("<think>", "</think>"), budget=budget)
        assert accepts(grammar, "yes") and accepts(grammar, "<think>a </thin b\n</think>\n\nyes")
        assert not accepts(grammar, "<think>a</think>no") and not accepts(grammar, "<think>yes")
        assert accepts(replace(grammar, inside=True), "</think>yes")


@pytest.mark.parametrize("style", ["json", "function", "bare"])
@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("parallel", [False, True])
def test_the_grammar_of_calls_takes_calls_and_what_may_stand_next_to_them(
    style: str, choice: Any, parallel: bool
) -> None:
    tools: dict[str, Any] = {
        "f": {
            "type": "object",
            "properties": {"a": {"type": "string"}, "n": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/q"}]}},
            "required": ["a"],
            "additionalProperties": False,
            "$defs": {"q": {"const": True}},
        },
        "g": {"type": "object"},
    }
    form = {
        "json": ToolFormat("json", "<tool_call>\n", "\n</tool_call>"),
        "function": ToolFormat("function", "<tool_call>\n", "\n</tool_call>"),
        "bare": ToolFormat("json", "", "", "name", "parameters"),
    }[style]
    grammar = call_grammar(form, tools, choice=choice, parallel=parallel, strict={"f"})
    good, bad = (
        f"{form.opening}<function=f>\n<parameter=a>\nx\ny\n</parameter>\n<parameter=n>\n{n}\n</parameter>\n</function>"
        f"{form.closing}"
        if style == "function"
        else f'{form.opening}{{"name": "f", "{form.arguments_key}": {{"a": "x\\ny", "n": {n}}}}}{form.closing}'
        for n in ("true", "false")
    )
    assert accepts(grammar, good)
    assert accepts(grammar, f"{good}\n{good}") == parallel
    assert accepts(grammar, "hello") == (choice == "auto")
    assert accepts(grammar, "hello\n" + good) == (choice == "auto")
    assert not accepts(grammar, bad)


# ---- parts


def test_lookup_finds_what_the_program_finds() -> None:
    assert looked_up(np.array([1, 2, 3, 4, 1, 2, 3]), 3) == [4, 1, 2]
    assert looked_up(np.array([1, 2, 9, 7, 1, 2, 8, 5, 1, 2]), 1) == [8]
    assert looked_up(np.array([7, 1, 2, 9, 1, 2, 8, 7, 1, 2]), 1) == [9]
    assert looked_up(np.array([5, 5, 5, 5]), MOST) == [5]
    assert looked_up(np.array([1, 2, 3]), 3) == [] == looked_up(np.array([1]), 3)


def test_biases_are_added_to_logits(model: Model) -> None:
    plain = [token.id for token in model.generate(PROMPT, temperature=0, max_tokens=8)]
    banned = model.generate(PROMPT, temperature=0, max_tokens=8, logit_bias={plain[0]: -100})
    first = next(banned)
    second = int(np.argsort(-model.logits(PROMPT)[-1])[1])
    assert first.id == second
    assert first.logprob == pytest.approx(math.log(softmax(model.logits(PROMPT)[-1].astype(float))[second]), abs=1e-4)
    forced = [token.id for token in model.generate(PROMPT, temperature=1.0, max_tokens=8, logit_bias={77: 100})]
    assert forced == [77] * 8
    drafted = Session(model, speculation="on").generate(PROMPT, temperature=1.0, max_tokens=8, logit_bias={77: 100})
    assert [token.id for token in drafted] == forced
    for wrong in ({300: 1.0}, {-1: 1.0}, {3: math.nan}, {3: "much"}, [1]):
        with pytest.raises(UserError, match="logit_bias"):
            model.generate(PROMPT, logit_bias=wrong)
