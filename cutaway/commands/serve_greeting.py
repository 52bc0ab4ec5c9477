"""What `cutaway serve` prints when it is ready: address, model, limits, and a command to try."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import cutaway
from cutaway.commands import prefixes
from cutaway.commands.console import size
from cutaway.commands.generate import draft_path
from cutaway.commands.options import OWN_DRAFTS
from cutaway.commands.serve_options import Loading
from cutaway.extras import install, installed
from cutaway.weights import eagle3

CALM = 0.2  # temperature of the command that is printed to try: a small model's samples at 1 are no sentences
GRAMMARS = ("llguidance", "jsonschema")  # libraries that hold answers to a form


def greeting(
    service: Any,
    address: str,
    key: str = "",
    keys_from: str = "",
    certificate: Path | None = None,
    loading: Loading = Loading(),
) -> str:
    """The lines printed when the server is ready: address, model, limits, and a command to try."""
    lm, limits = service.lm, service.limits
    lines = [f"Cutaway {cutaway.__version__} serves {service.name} on {address}"]
    blocks, context = len(lm.config.blocks), f"{lm.context:,} tokens of context"
    if service.scheduler is None:
        lines.append(f"  model    an encoder of {blocks} layers, {lm.config.width} numbers a text, {context}")
    else:
        engine, why = lm.engine_choice
        figures = service.scheduler.stats()
        waiting, state = limits.max_queue, size(figures.pages_total * figures.page_bytes)
        template = "" if lm.checkpoint.chat_template else ", no template for chats: see --chat-template"
        lines += [
            f"  model    {blocks} layers, {context}{template}",
            f"  engine   the {'PyTorch model' if engine == 'pytorch' else engine}, because {why}",
            *_drafting_and_folders(service, loading),
            f"  limits   {limits.max_sequences} answers at once, {waiting} may wait, {state} of state",
        ]
        if not all(map(installed, GRAMMARS)):
            lines.append(f"  without  tools, JSON schemas and grammars: {install('agent')}")
    longest = f"{limits.max_tokens:,} tokens and" if limits.max_tokens else "what fits and"
    lines.append(
        f"           {longest} {limits.request_seconds:g} s an answer, {size(limits.body_bytes)} a request"
    )
    free = "  access   without a key, for who reaches this address"
    lines.append(f"  access   with an API key of {keys_from}" if key else free)
    if not address.startswith("http+unix:"):
        lines.append(f"  page     {address}/ in a browser")
    ready = f"  Try it (KEY is a key of {keys_from}):" if key == "KEY" else "  Try it:"
    return "\n".join([*lines, "", ready, _curl(service, address, key, certificate), "", "  Ctrl-C stops it."])


def _drafting_and_folders(service: Any, loading: Loading) -> list[str]:
    """How drafts are made, and where pages and slots are kept: a line for each that was asked for."""
    lines = list[str]()
    if loading.draft is not None:
        lines.append(f"  drafts   {_how_drafted(loading.draft)}: answers are the same")
    if loading.prefix_cache is None and loading.slot_save_path is None:
        return lines
    most = size(prefixes.size_of(loading.prefix_cache_size, "--prefix-cache-size"))
    sealed = ", encrypted" if prefixes.seal(loading.prefix_cache_key_file).encrypts else ""
    if loading.prefix_cache is not None:
        there = size(service.scheduler.stats().stored.nbytes)
        folder = prefixes.place(loading.prefix_cache)
        lines.append(f"  prefixes in {folder}: {there} of {most} at most{sealed}")
    if loading.slot_save_path is not None:
        lines.append(f"  slots    in {loading.slot_save_path}: {most} at most{sealed}")
    return lines


def _how_drafted(draft: str) -> str:
    """By what tokens are drafted."""
    if draft in OWN_DRAFTS:
        return "by lookup in earlier text" if draft == "lookup" else "by the model's own heads"
    return f"by {draft}, {'a head' if eagle3.is_head(draft_path(draft)) else 'a smaller model'}"


def _curl(service: Any, address: str, key: str, certificate: Path | None) -> str:
    """A command that asks for a short answer, calmly where the model does not say how it is sampled."""
    words = ["  curl"]
    if certificate is not None:
        words += ["--cacert", shlex.quote(str(certificate))]
    scheme, _, socket = address.partition("://")
    if scheme == "http+unix":
        words += ["--unix-socket", shlex.quote(socket)]
        address = "http://localhost"
    body: dict[str, Any] = {"max_tokens": 60}
    if "temperature" not in service.lm.checkpoint.defaults:
        body["temperature"] = CALM
    if service.scheduler is None:
        path, body = "embeddings", {"input": "Hello"}
    elif service.lm.checkpoint.chat_template is None:
        path, body = "completions", {"prompt": "Once upon a time"} | body
    else:
        path, body = "chat/completions", {"messages": [{"role": "user", "content": "Hello"}]} | body
    words += [f"{address}/v1/{path}", *([f'-H "Authorization: Bearer {key}"'] if key else [])]
    return " ".join([*words, '-H "Content-Type: application/json"', f"-d '{json.dumps(body)}'"])
