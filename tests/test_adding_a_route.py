"""The recipe of docs/adding-a-route.md, followed: its one file is found, checked, guarded and documented."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import serving
from tests.serving import NAME, AccessPolicy, Server

from cutaway import serve  # isort: skip
from cutaway.serve import app, routes  # isort: skip
from cutaway.serve.operations.api_keys import KeyRing, Role  # isort: skip

PAGE = Path(__file__).parent.parent / "docs" / "adding-a-route.md"
KEYS = "the-key-of-a-user", "the-key-of-metrics"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose package has the page's file too, from a folder beside its own."""
    [source] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    folder = tmp_path_factory.mktemp("serve")
    (folder / "longest.py").write_text(source, encoding="utf-8")
    ring = KeyRing(KEYS)
    other = ring.find(KEYS[1])
    assert other is not None
    other.roles = frozenset[Role]({"metrics"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "__path__", [*serve.__path__, str(folder)])
        importlib.invalidate_caches()
        patch.setattr(app, "ROUTES", routes.found())
        with serving.running(serving.model(), AccessPolicy(hosts=None, keys=ring)) as server:
            yield server
    sys.modules.pop("cutaway.serve.longest", None)


def ask(server: Server, body: dict[str, str], path: str = "/v1/longest", key: str = KEYS[0]):
    return server.post(path, body, headers={"Authorization": f"Bearer {key}"})


def test_the_recipes_route_answers_under_both_of_its_paths(server: Server) -> None:
    tokenizer = server.service.lm.tokenizer
    id = max(tokenizer.encode("a river bank"), key=lambda one: len(tokenizer.token_bytes(one)))
    wanted = {"id": id, "bytes": len(tokenizer.token_bytes(id))}
    for path in ("/v1/longest", "/longest"):
        assert ask(server, {"text": "a river bank", "model": NAME}, path).json() == wanted


def test_what_does_not_fit_is_refused_in_a_sentence(server: Server) -> None:
    for body, param, status in (
        ({"text": ""}, "text", 400),
        ({"text": "x", "colour": "red"}, "colour", 400),
        ({}, "text", 400),
        ({"text": "x", "model": "another"}, "model", 404),
    ):
        answer = ask(server, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    refused = ask(server, {"text": "x"}, key=KEYS[1])
    assert refused.status_code == 403 and "has not the role" in refused.text


def test_the_document_has_the_route_and_its_body(server: Server) -> None:
    document = server.get("/openapi.json", headers={"Authorization": f"Bearer {KEYS[0]}"}).json()
    of = document["paths"]["/v1/longest"]["post"]
    assert of["summary"] == "The longest token of a text."
    body = of["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/LongestRequest"}
