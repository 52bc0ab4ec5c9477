"""`cutaway serve`: a model behind OpenAI's API, for this machine alone by default."""

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import cutaway
from cutaway.commands.console import model_path, note, note_fallback, read_text, size, use_threads
from cutaway.commands.generate import Engine
from cutaway.errors import OperationalError, UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HANDOVER = 0.0005  # seconds the model's thread, back from a step, waits for the one that writes to clients


def serve(
    model: str = "smollm2",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    unsafe_no_key: Annotated[bool, Parameter(negative=())] = False,
    allow_host: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    cors: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    name: str | None = None,
    alias: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    lenient: Annotated[bool, Parameter(negative=())] = False,
    store: Path | None = None,
    store_seconds: float = 3600.0,
    adapter: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    chat_template: Path | None = None,
    engine: Engine = "auto",
    threads: int | None = None,
    context: int | None = None,
    max_sequences: int = 16,
    max_queue: int = 256,
    max_tokens: int | None = None,
    max_body: int = 2 << 20,
    timeout: float = 600.0,
    drain: float = 30.0,
    log_prompts: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Serve a model behind OpenAI's API, and what is inside it beside that.

    Only programs of this machine can connect, unless --host says otherwise; then a key is needed, which
    CUTAWAY_API_KEY can hold too (several with commas between). On SIGTERM and Ctrl-C running answers are
    finished.

    Examples:

    cutaway serve

    cutaway serve my-model.gguf --port 8080 --max-sequences 4

    cutaway serve --adapter talk=runs/talk --adapter sums=runs/sums

    CUTAWAY_API_KEY=secret cutaway serve --host 0.0.0.0

    Parameters
    ----------
    model
        A model's name, a .gguf file or a folder.
    host
        The address to listen on.
    port
        The port to listen on; 0 takes a free one.
    api_key
        A key that requests may bring; again for more, each with its own prefix cache.
    unsafe_no_key
        Listen on other addresses without a key: any client that reaches them is served.
    allow_host
        A further host name that requests may be addressed to; again for more.
    cors
        An origin whose web pages may ask, such as http://localhost:3000; again for more.
    name
        The name that requests give the model; its own by default.
    alias
        A further name that requests may give the model, or a pattern such as 'claude-*'; again for more.
    lenient
        Take requests with fields that are not known; the answer's x-cutaway-ignored names them.
    store
        A file to keep responses in (/v1/responses); without it they are kept in memory.
    store_seconds
        Seconds that a response is kept.
    adapter
        NAME=FOLDER: a PEFT adapter that requests ask for as the model NAME, beside the model itself; again
        for more. The runtime answers all of them in one batch.
    chat_template
        A file with a chat template, in place of the model's own.
    engine
        What computes: the definition (PyTorch), the runtime (packed weights on the CPU), or whatever is
        fastest here.
    threads
        Processor threads to use; all of this machine's by default.
    context
        Hold this many tokens at most, where less memory is wanted than the model's whole context takes.
    max_sequences
        Answers that are written at once.
    max_queue
        Requests that may wait; more are refused.
    max_tokens
        Tokens an answer may have at most; as many as the context holds by default.
    max_body
        Bytes a request may have.
    timeout
        Seconds an answer may take.
    drain
        Seconds that answers under way are given when the server stops.
    log_prompts
        Write requests and answers to standard error; without it none is written anywhere.
    """
    keys = api_key or tuple(key for key in os.environ.get("CUTAWAY_API_KEY", "").split(",") if key)
    _check_access(host, keys, unsafe_no_key)
    uvicorn = _libraries()
    from cutaway.serve.service import Limits, warm_up

    limits = Limits(
        max_sequences=max_sequences,
        max_queue=max_queue,
        max_tokens=max_tokens,
        body_bytes=max_body,
        request_seconds=timeout,
        drain_seconds=drain,
    )
    positive: dict[str, float] = {
        "--max-sequences": max_sequences,
        "--max-body": max_body,
        "--timeout": timeout,
    }
    _bounded(positive | ({} if max_tokens is None else {"--max-tokens": max_tokens}), above=True)
    _bounded({"--max-queue": max_queue, "--drain": drain, "--store-seconds": store_seconds}, above=False)
    from cutaway.serve import bounded_log
    from cutaway.serve.access import AccessPolicy, Connections, most_connections, protocol
    from cutaway.serve.app import build
    from cutaway.serve.response_store import ResponseStore

    bounded_log.install(log_prompts)
    use_threads(threads)
    lm = _loaded(model, engine, context, chat_template)
    adapters = _adapters(lm, adapter)
    more = {"aliases": alias, "lenient": lenient, "store": ResponseStore(store, store_seconds)}
    service = _service(lm, name or _own_name(model), limits, log_prompts, adapters, **more)

    warm_up(service)
    hosts = None if keys or host in ("0.0.0.0", "::") else (*LOOPBACK, host.lower())
    named = None if hosts is None else (*hosts, *(one.lower() for one in allow_host))
    policy = AccessPolicy(named, cors, keys, limits.body_bytes, limits.body_seconds)
    config = uvicorn.Config(
        build(service, policy),
        host=host,
        port=port,
        http=protocol(Connections(most_connections(1024))),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=max(1, int(drain)),
        h11_max_incomplete_event_size=64 * 1024,
    )
    socket = _bound(config)
    address = _address(host, socket.getsockname()[1])
    note(greeting(service, address, bool(keys)))
    sys.setswitchinterval(HANDOVER)
    try:
        uvicorn.Server(config).run(sockets=[socket])
    finally:
        if service.scheduler is not None:
            service.scheduler.close()


def greeting(service: Any, address: str, locked: bool) -> str:
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
        lines += [
            f"  model    {blocks} layers, {context}",
            f"  engine   the {engine}, because {why}",
            f"  limits   {limits.max_sequences} answers at once, {waiting} may wait, {state} of state",
        ]
    longest = f"{limits.max_tokens:,} tokens and" if limits.max_tokens else "what fits and"
    lines.append(
        f"           {longest} {limits.request_seconds:g} s an answer, {size(limits.body_bytes)} a request"
    )
    lines.append(
        "  access   with an API key" if locked else "  access   without a key, for who reaches this address"
    )
    return "\n".join([*lines, "", "  Try it:", *_curl(service, address, locked), "", "  Ctrl-C stops it."])


def _curl(service: Any, address: str, locked: bool) -> list[str]:
    header = ' -H "Authorization: Bearer $CUTAWAY_API_KEY"' if locked else ""
    start = f"  curl {address}/v1/"
    kind = ' -H "Content-Type: application/json"'
    if service.scheduler is None:
        return [f'{start}embeddings{header}{kind} -d \'{{"input": "Hello"}}\'']
    if service.lm.checkpoint.chat_template is None:
        return [f'{start}completions{header}{kind} -d \'{{"prompt": "Once upon a time"}}\'']
    messages = '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 60}'
    return [f"{start}chat/completions{header}{kind} -d '{messages}'"]


def _check_access(host: str, keys: tuple[str, ...], unsafe: bool) -> None:
    """Refuse weak keys, and to open the server to others without a key unless asked to."""
    for key in keys:
        if len(key) < 8 or not (key.isascii() and key.isprintable() and key == key.strip()):
            raise UserError("API keys must be 8 or more printable ASCII characters, without spaces around")
    if host not in LOOPBACK and not keys and not unsafe:
        raise UserError(
            f"{host} can be reached by others: set CUTAWAY_API_KEY or --api-key so that only clients with "
            "the key can connect, or say --unsafe-no-key"
        )


def _libraries() -> Any:
    try:
        import fastapi
        import jsonschema
        import llguidance
        import prometheus_client
        import sse_starlette
        import uvicorn
    except ImportError as error:
        raise UserError(
            f"Serving needs {error.name}, which is not installed: pip install 'cutaway[serve]'"
        ) from None
    del fastapi, jsonschema, llguidance, prometheus_client, sse_starlette
    return uvicorn


def _bounded(options: dict[str, float], above: bool) -> None:
    """Refuses options that are not finite, or not `above` (else: at least) 0."""
    for name, value in options.items():
        if not 0 <= value < math.inf or (above and value == 0):
            raise UserError(f"{name} is {value}: give a number {'above' if above else 'of at least'} 0")


def _loaded(model: str, engine: Any, context: int | None, template: Path | None) -> Any:
    lm: Any = cutaway.load(model_path(model), engine=engine, context=context)
    if template is not None:
        from dataclasses import replace

        lm.checkpoint = replace(lm.checkpoint, chat_template=read_text(template))
    if not lm.is_encoder:
        note_fallback(lm)
    return lm


def _adapters(lm: Any, given: tuple[str, ...]) -> dict[str, Any]:
    """The engine with each adapter, by the adapter's name."""
    engines: dict[str, Any] = {}
    for one in given:
        name, _, folder = one.partition("=")
        if not name or not folder or name in engines:
            raise UserError(f"--adapter {one}: write NAME=FOLDER, each name once")
        engines[name] = lm.with_adapter(folder).engine
        if getattr(engines[name], "plan", None) is not getattr(lm.engine, "plan", lm):
            raise UserError(
                f"--adapter {one}: the runtime does not apply this adapter beside the model's own weights: "
                "write both as one model (`cutaway merge`) and serve that"
            )
    return engines


def _service(
    lm: Any, name: str, limits: Any, log_prompts: bool, adapters: dict[str, Any], **more: Any
) -> Any:
    from dataclasses import replace

    from cutaway.serve.metrics import Metrics
    from cutaway.serve.service import Service

    lm.checkpoint = replace(lm.checkpoint, source=Path(name))  # errors name no path of the machine
    scheduler = None if lm.is_encoder else limits.scheduler(lm.engine, lm.tokenizer)
    if name in adapters:
        raise UserError(f"--adapter {name}: this is the model's own name: choose another, or --name")
    return Service(lm, name, scheduler, limits, Metrics(scheduler), log_prompts, adapters, **more)


def _own_name(model: str) -> str:
    """The name of a model's table or repository as it is; of a file or folder its last part."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name if path.exists() else model


def _bound(config: Any) -> Any:
    """The socket, listening before any output: a port that is taken is a sentence, and who asks at once
    waits."""
    import socket

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio sets TCP_NODELAY on sockets that name the protocol: without it keep-alive answers wait 40 ms
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((config.host, config.port))
        made.listen(config.backlog)
    except (OSError, OverflowError) as error:
        made.close()
        raise OperationalError(f"Cannot listen on {config.host}, port {config.port}: {error}") from None
    return made


def _address(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
