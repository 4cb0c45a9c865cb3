"""Schemathesis reads the server's own OpenAPI document and sends whatever it allows, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import InvalidArgument, Unsatisfiable
from servers import Running, files, serving

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from schemathesis import Case, GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.slow
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module", params=["base_file", "chat_file"])
def fuzzed(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving(files(request.getfixturevalue(request.param))) as running:
        yield running
        assert httpx.get(running.url + "/health", timeout=120).json() == {"status": "ok"}
        assert not any("error:" in line for line in running.lines), running.lines[-20:]


ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/infill"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/responses/input_tokens"),
    ("GET", "/v1/responses/{name}"),
    ("DELETE", "/v1/responses/{name}"),
    ("GET", "/v1/responses/{name}/input_items"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/props"),
    ("GET", "/slots"),
    ("GET", "/health"),
    ("GET", "/metrics"),
]


def test_the_document_has_every_route(fuzzed: Running) -> None:
    paths = httpx.get(fuzzed.url + "/openapi.json", timeout=120).json()["paths"]
    assert {(m.upper(), path) for path, item in paths.items() for m in item} == set(ROUTES)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_request_is_answered_with_a_server_error(
    fuzzed: Running, method: str, path: str, mode: GenerationMode
) -> None:
    # Schemathesis' own pytest plugin is not used: it lags behind pytest
    operation = schemathesis.openapi.from_url(fuzzed.url + "/openapi.json")[path][method]

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Case) -> None:
        if isinstance(case.body, dict):
            for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"):
                if not isinstance(case.body.get(name), str):
                    case.body[name] = 4  # a reply of thousands of tokens finds no more faults than a short one
        case.call_and_validate(checks=CHECKS, timeout=120)

    try:
        send()
    except (Unsatisfiable, InvalidArgument):
        # a route without parameters takes nothing that could be wrong
        assert method != "POST" and mode is GenerationMode.NEGATIVE
