"""``/openapi.json`` says what the routes take and answer, and requests made from it are answered as it says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from live_server import Running, running
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tuyi.serve.app import create_app
from tuyi.serve.opening import Served
from tuyi.serve.settings import ServeSettings

SECRETS = ("Traceback", "site-packages", "/work", "/home", ".py", "tuyi/serve", "a-secret-token")
OTHERS = ("positive_data_acceptance",)  # a schema cannot say which base64 is a picture


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[Running]:
    with running(create_app(served, ServeSettings(workers=2, max_output_tokens=6))) as one:
        yield one


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    with server.client() as client:
        found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(one)


def test_every_route_is_described(server: Running, document: dict[str, Any]):
    said = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    routes = {
        (route.path.replace(":path", ""), method)
        for route in server.app.routes
        if route.path != "/openapi.json"
        for method in route.methods
    }
    assert said == routes
    assert len(said) == 6


def test_every_reference_leads_somewhere(document: dict[str, Any]):
    named = [one["$ref"] for one in nodes(document) if isinstance(one.get("$ref"), str)]
    schemas = document["components"]["schemas"]
    assert len(named) > 30
    assert {name.removeprefix("#/components/schemas/") for name in named} == schemas.keys()
    assert not [name for name in schemas if name.startswith("_")]


def test_examples_are_answered(server: Running, document: dict[str, Any]):
    asked = 0
    with server.client() as client:
        for path, methods in document["paths"].items():
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            for example in content.get("application/json", {}).get("examples", {}).values():
                answer = client.post(path, json=example["value"])
                assert answer.status_code == 200, answer.text
                asked += 1
    assert asked == 5


def test_limits_and_tasks_of_this_server_are_told(document: dict[str, Any]):
    schemas = document["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["max_tokens"]["anyOf"][0]["maximum"] == 6
    assert schemas["ClassifyRequest"]["properties"]["task"]["anyOf"][0]["enum"] == ["colour", "shape", "talk"]


def test_tokens_are_a_security_scheme(serving: Callable[..., Running], tmp_path: Path):
    file = tmp_path / "tokens"
    file.write_text("a-secret-token\n")
    server = serving(token_file=file)
    with server.client() as client:
        assert client.get("/openapi.json").status_code == 401
        answer = client.get("/openapi.json", headers={"Authorization": "Bearer a-secret-token"})
    document = answer.json()
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    secured = {path for path, methods in document["paths"].items() for one in methods.values() if "security" in one}
    assert secured == document["paths"].keys() - {"/healthz"}
    assert "a-secret-token" not in answer.text


@pytest.mark.parametrize("examples", [10, pytest.param(150, marks=pytest.mark.slow)])
def test_made_requests_are_answered_as_it_says(server: Running, document: dict[str, Any], examples: int):
    found: Counter[int] = Counter()
    load_all_checks()
    excluded = CHECKS.get_by_names(list(OTHERS))
    schema = schemathesis.openapi.from_dict(document)
    for result in schema.get_all_operations():
        operation = result.ok()
        modes = (GenerationMode.NEGATIVE, GenerationMode.POSITIVE)
        for mode in modes if operation.method == "post" else modes[1:]:

            @settings(
                max_examples=examples, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                answer = case.call_and_validate(base_url=server.url, excluded_checks=excluded)
                assert answer.status_code == 200 or json.loads(answer.content)["error"]["message"]
                assert not [secret for secret in SECRETS if secret in answer.text and secret not in str(case.body)]
                found[answer.status_code] += 1

            check()
    assert found.keys() == {200, 400, 404}
    assert found[400] > 2 * examples
    assert found.total() > 4 * examples
