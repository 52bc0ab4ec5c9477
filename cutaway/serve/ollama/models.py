"""The models in Ollama's form: /api/tags, /api/ps, /api/show."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.tool_calls.thoughts import find_marks
from cutaway.serve.json_body import json_response
from cutaway.serve.ollama.schema import ShowRequest
from cutaway.serve.operations.api_keys import ANY
from cutaway.serve.operations.models import Models
from cutaway.serve.routes import Route, beside, models_of
from cutaway.serve.service import Service

VERSION = "0.12.6"  # of Ollama, whose API this is: clients ask for one that has what they need


def name_of(service: Service, asked: str | None) -> str | None:
    """The model's name without Ollama's default tag."""
    known = asked is None or asked in service.names
    return asked if known or asked is None else asked.removesuffix(":latest")


def card(service: Service, name: str) -> dict[str, Any]:
    """The model in Ollama's lists."""
    when = datetime.fromtimestamp(service.created, UTC).isoformat()
    stored = sum(service.lm.checkpoint.tensors.later(one).nbytes for one in service.lm.config.weights())
    card = {"name": name, "model": name, "modified_at": when, "expires_at": when, "size": stored}
    card |= {"size_vram": 0, "digest": _digest(service), "details": _details(service)}
    return card | {"context_length": service.lm.context}


def unloaded(name: str, nbytes: int) -> dict[str, Any]:
    """A model in Ollama's lists that is not loaded: what it will take is known of it."""
    when = datetime.fromtimestamp(0, UTC).isoformat()
    card = {"name": name, "model": name, "modified_at": when, "size": nbytes, "digest": ""}
    return card | {"details": dict.fromkeys(DETAILS, "") | {"families": []}}


DETAILS = ("parent_model", "format", "family", "families", "parameter_size", "quantization_level")


def _details(service: Service) -> dict[str, Any]:
    checkpoint, kinds = service.lm.checkpoint, Counter[str]()
    for name, shape in checkpoint.config.weights().items():
        kinds[checkpoint.tensors.later(name).type] += math.prod(shape)
    family = checkpoint.family or "cutaway"
    return {
        "parent_model": "",
        "format": "gguf" if checkpoint.path.suffix == ".gguf" else "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": _counted(kinds.total()),
        "quantization_level": kinds.most_common(1)[0][0],
    }


def _counted(parameters: int) -> str:
    """How many parameters, as Ollama writes it."""
    size, unit = (parameters / 1e9, "B") if parameters >= 1e9 else (parameters / 1e6, "M")
    return f"{size:.1f}{unit}" if unit == "B" else f"{size:.2f}{unit}"


def _digest(service: Service) -> str:
    """What tells a model from another: a hash of its tensors' names, types and shapes and of its files' sizes
    and times, for reading all of its bytes would take seconds.
    """
    checkpoint = service.lm.checkpoint
    entries = {name: checkpoint.tensors.later(name) for name in checkpoint.config.weights()}
    facts: list[Any] = [(name, one.type, one.shape) for name, one in entries.items()]
    source = checkpoint.path
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    facts += [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files if one.is_file()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def show(service: Service, body: ShowRequest, http: HTTPRequest) -> Response:
    """What Ollama's clients ask of a model."""
    service.engine_of(name_of(service, body.model or body.name))
    template = service.lm.checkpoint.chat_template or ""
    able = ["embedding"] if service.scheduler is None else ["completion"]
    if template:
        able += ["tools"] + (["thinking"] if find_marks(template) else [])
    details = _details(service)
    info = {
        "general.architecture": details["family"],
        f"{details['family']}.context_length": service.lm.context,
        f"{details['family']}.embedding_length": service.lm.config.width,
        f"{details['family']}.block_count": len(service.lm.config.blocks),
    }
    info["general.parameter_count"] = sum(map(math.prod, service.lm.config.weights().values()))
    when = datetime.fromtimestamp(service.created, UTC).isoformat()
    settings = "\n".join(f"{name} {value}" for name, value in service.lm.checkpoint.defaults.items())
    found = {
        "modelfile": f"FROM {service.name}",
        "parameters": settings,
        "template": template,
        "details": details,
        "model_info": info,
    }
    return json_response(found | {"capabilities": able, "modified_at": when})


def tags(_: Service, body: None, http: HTTPRequest) -> Response:
    """The models that there are, in Ollama's form."""
    models = models_of(http)
    without = [model for model in models.models if model.service is None]
    bare = [unloaded(name, model.nbytes) for model in without for name in model.names]
    return json_response({"models": _loaded(models) + bare})


def running(_: Service, body: None, http: HTTPRequest) -> Response:
    """The models that are loaded, in Ollama's form."""
    return json_response({"models": _loaded(models_of(http))})


def _loaded(models: Models) -> list[dict[str, Any]]:
    loaded = [model.service for model in models.models if model.service is not None]
    return [card(service, name) for service in loaded for name in service.names]


def version(_: Service, body: None, http: HTTPRequest) -> Response:
    """The version of Ollama whose API this is."""
    return json_response({"version": VERSION})


ROUTES = [
    Route("GET", "/api/version", ANY, beside(version)),
    Route("GET", "/api/tags", ANY, beside(tags)),
    Route("GET", "/api/ps", ANY, beside(running)),
    Route("POST", "/api/show", ANY, beside(show), ShowRequest),
]
