"""A server in this process: SmolLM2's first two layers behind the API, with a template that knows tools."""

import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import cutaway
from cutaway.lm import LanguageModel
from cutaway.weights.named_tensors import Tensors
from tests import inputs
from tests.waiting import wait_until

for needed in ("fastapi", "sse_starlette", "prometheus_client", "llguidance"):
    pytest.importorskip(needed)
uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx2")

from cutaway.serve.app import build  # noqa: E402
from cutaway.serve.operations import lifecycle  # noqa: E402
from cutaway.serve.operations.access import AccessPolicy  # noqa: E402
from cutaway.serve.operations.connections import (  # noqa: E402
    UNIX,
    Connections,
    ForwardedMiddleware,
    protocol,
)
from cutaway.serve.operations.metrics import Metrics  # noqa: E402
from cutaway.serve.operations.models import Model, Models  # noqa: E402
from cutaway.serve.service import Limits, Service  # noqa: E402

NAME = "two-layers"

# A client reads the certificates of all authorities: as much work as a request here, over plain HTTP.
ssl.create_default_context = cache(ssl.create_default_context)


@cache
def template(name: str = "Qwen-Qwen2.5-7B-Instruct") -> str:
    """A real template that knows tools; its control tokens are among SmolLM2's."""
    return next(inputs.path("templates").rglob(f"{name}.jinja")).read_text(encoding="utf-8")


def model(layers: int | None = 2, engine: Any = "auto") -> LanguageModel:
    """SmolLM2, or its first layers: a real tokenizer, and nonsense that is quickly written."""
    lm = cutaway.load(inputs.path("smollm2"), engine=engine)
    if layers is None:
        return lm
    config = replace(lm.config, blocks=lm.config.blocks[:layers])
    kept = Tensors({name: lm.checkpoint.tensors.later(name) for name in config.weights()})
    checkpoint = replace(lm.checkpoint, config=config, tensors=kept, chat_template=template())
    return LanguageModel(checkpoint, engine=engine)


@dataclass(frozen=True)
class Server:
    """Where it listens, and what it serves."""

    url: str
    service: Service
    app: Any
    server: lifecycle.Server

    def post(self, path: str, body: Any, **more: Any) -> Any:
        return httpx.post(self.url + path, json=body, timeout=60, **more)

    def get(self, path: str, **more: Any) -> Any:
        return httpx.get(self.url + path, timeout=60, **more)


@contextmanager
def running(
    lm: LanguageModel,
    policy: AccessPolicy | None = None,
    connections: Connections | None = None,
    aliases: tuple[str, ...] = (),
    lenient: bool = False,
    pooling: str | None = None,
    dimensions: Sequence[int] = (),
    adapters: Mapping[str, Any] | None = None,
    adapter_folder: Path | None = None,
    others: Sequence[Model] = (),
    max_memory: int | None = None,
    tracing: Any = None,
    lenses: Any = None,
    dictionaries: Sequence[Any] = (),
    runs: Any = None,
    prefixes: Any = None,
    slots: Any = None,
    **limits: Any,
) -> Iterator[Server]:
    """A server on a free port of this machine, until the block ends."""
    bounds = Limits(**limits)
    scheduler = None if lm.is_encoder else bounds.scheduler(lm.engine, lm.tokenizer, prefixes=prefixes)
    more: dict[str, Any] = {
        "aliases": aliases,
        "lenient": lenient,
        "adapters": dict(adapters or {}),
        "lenses": lenses or {},
        "dictionaries": dictionaries,
        "slots": slots,
    }
    more |= {"pooling": pooling, "dimensions": dimensions, "adapter_folder": adapter_folder}
    service = Service(lm, NAME, scheduler, bounds, Metrics(), **more)
    policy = policy or AccessPolicy(body_bytes=bounds.body_bytes, body_seconds=bounds.body_seconds)
    models = Models([Model(NAME, lambda: service, aliases), *others], max_memory, runs)
    connections = Connections() if connections is None else connections
    app = build(models, policy, tracing)
    http: Any = protocol(connections)
    proxied: Any = ForwardedMiddleware(app, [UNIX, *connections.proxies])
    config = uvicorn.Config(proxied, port=0, http=http, log_level="error", proxy_headers=False)
    server = lifecycle.Server(config, models)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), "the server starts")
    assert thread.is_alive(), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Server(f"http://127.0.0.1:{port}", service, app, server)
    finally:
        server.should_exit = True
        thread.join(20)
        if scheduler is not None:
            scheduler.close()


def certificate(folder: Path, *options: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(cert), *(options or ("-nodes",))]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key
