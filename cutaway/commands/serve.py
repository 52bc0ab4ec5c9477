"""`cutaway serve`: a model behind OpenAI's API, for this machine alone by default."""

import logging
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import cutaway
from cutaway.commands import prefixes, serve_options
from cutaway.commands.console import model_path, note, note_fallback, read_text, size, use_threads
from cutaway.commands.generate import draft_path, drafts
from cutaway.commands.options import OWN_DRAFTS, Flag
from cutaway.commands.serve_greeting import greeting
from cutaway.commands.serve_options import Access, Bounds, Listening, Loading, ModelLimits, Operation, Several
from cutaway.errors import UserError
from cutaway.extras import install

log = logging.getLogger("cutaway.serve")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FLOAT16, FLOAT32 = 2, 4  # bytes of a number
PLAIN = "{{ bos_token or '' }}{% for message in messages %}{{ message.content }}{% endfor %}"
HANDOVER = 0.0005  # seconds the model's thread, back from a step, waits for the one that writes to clients


def serve(
    models: Annotated[tuple[str, ...], Parameter(negative=())] = ("smollm2",),
    *,
    listening: Listening = Listening(),
    access: Access = Access(),
    loading: Loading = Loading(),
    several: Several = Several(),
    bounds: Bounds = Bounds(),
    operation: Operation = Operation(),
    config: Path | None = None,
    print_config: Flag = False,
) -> None:
    """Serve models behind OpenAI's API, and what is inside them beside that.

    Only programs of this machine can connect, unless --host says otherwise; then a key is needed, from
    --api-key-file or CUTAWAY_API_KEY (several with commas between). On SIGTERM and Ctrl-C running answers are
    finished. Each option can be set in a file (--config) and by CUTAWAY_SERVE_PORT and the like; what is
    typed counts first, then the environment, then the file.

    Examples:

    cutaway serve

    cutaway serve my-model.gguf --port 8080 --max-sequences 4

    cutaway serve --adapter talk=runs/talk --adapter sums=runs/sums

    cutaway serve --host 0.0.0.0 --api-key-file keys.yaml --trusted-proxy 10.0.0.0/8

    cutaway serve smollm2 my-model.gguf runs/talk --max-memory 8GiB

    cutaway serve --config serve.yaml --print-config

    Parameters
    ----------
    models
        Models' names, .gguf files or folders. Requests ask for one by the last part of its name.
    config
        A YAML file with options, such as port: 8080 in a line.
    print_config
        Print the options as they are, from all sources, and stop.
    """
    groups = (listening, access, loading, several, bounds, operation)
    if print_config:
        print(serve_options.shown(models, *groups), end="")
        return
    run(models, *groups, config=config)


def run(
    models: tuple[str, ...],
    listening: Listening,
    access: Access,
    loading: Loading,
    several: Several,
    bounds: Bounds,
    operation: Operation,
    *,
    config: Path | None = None,
    ready: Callable[[str], None] | None = None,
    plain: bool = False,
) -> None:
    """Serve until a signal ends it. ``ready`` is called with the address, in place of the greeting; with
    ``plain`` a model without a chat template continues the text of a conversation.
    """
    from cutaway.serve.operations import bounded_log

    bounded_log.install(operation.log_prompts, operation.log_format, operation.log_level)
    with bounded_log.log_alone() if operation.log_format == "json" else nullcontext():
        serve_options.check(listening, access, loading, several, bounds, operation)
        from cutaway.serve.app import build
        from cutaway.serve.operations import lifecycle
        from cutaway.serve.operations.api_keys import KeyRing
        from cutaway.serve.operations.tracing import Tracing
        from cutaway.serve.response_store import ResponseStore

        given = access.api_key or tuple(
            key for key in os.environ.get("CUTAWAY_API_KEY", "").split(",") if key
        )
        keys = KeyRing(given, access.api_key_file)
        _check_access(listening, bool(keys), access.unsafe_no_key)
        limits = _limits(bounds, operation)
        tracing = Tracing(operation.otlp_endpoint) if operation.otlp_endpoint else None
        lifecycle.hold_signals()
        at = (listening.host, listening.port, listening.uds, listening.reuse_port)
        with lifecycle.bound(*at) as socket:  # a port that is taken is an error before a model is loaded
            use_threads(loading.threads)
            store = ResponseStore(bounds.store, bounds.store_seconds)
            store.load_usage(keys)
            shared = (operation.log_prompts, bounds.lenient, store, plain)
            loader = Loader(models, loading, several, limits, *shared)
            served = loader.models()
            settings = _settings(build(served, _policy(listening, access, keys, limits), tracing), listening)
            address = _address(listening, socket)
            if ready is not None:
                ready(address)
            elif operation.log_format == "json":
                log.info("Cutaway %s serves %s on %s", cutaway.__version__, served.default.name, address)
            else:
                key = _asked_key(access)
                note(greeting(served.default, address, *key, listening.ssl_certfile, loading))
            sys.setswitchinterval(HANDOVER)
            socket.listen(settings.backlog)
            settings.load()
            read_again = partial(reload, keys, config, operation, listening, settings.ssl)
            save = partial(store.save_usage, keys)
            server = lifecycle.Server(settings, served, operation.stop_delay, read_again, listening.uds, save)
            server.run(sockets=[socket])


def _limits(bounds: Bounds, operation: Operation) -> Any:
    """The bounds of the server, from the options of two groups."""
    from cutaway.serve.service import Limits

    return Limits(
        max_sequences=bounds.max_sequences,
        max_queue=bounds.max_queue,
        max_tokens=bounds.max_tokens,
        body_bytes=bounds.max_body,
        request_seconds=bounds.timeout,
        drain_seconds=operation.drain,
    )


def _policy(listening: Listening, access: Access, keys: Any, limits: Any) -> Any:
    """Who may ask, and how much they may send."""
    from cutaway.serve.operations.access import AccessPolicy

    hosts, root = _hosts(listening, access, keys), _root_path(listening)
    return AccessPolicy(hosts, access.cors, keys, root, limits.body_bytes, limits.body_seconds)


def _settings(app: Any, listening: Listening) -> Any:
    """uvicorn's settings of a server that listens here."""
    import uvicorn

    from cutaway.serve.operations import connections as limited

    connections = limited.Connections(limited.most_connections(1024), proxies=listening.trusted_proxy)
    return uvicorn.Config(
        limited.ForwardedMiddleware(app, [limited.UNIX, *listening.trusted_proxy]),
        http=limited.protocol(connections),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=64 * 1024,
        proxy_headers=False,  # uvicorn's: ForwardedMiddleware replaces it
        ssl_certfile=listening.ssl_certfile,
        ssl_keyfile=listening.ssl_keyfile,
    )


def reload(
    keys: Any,
    config: Path | None,
    operation: Operation,
    listening: Listening = Listening(),
    tls: Any = None,
) -> None:
    """Read the key file and the certificate again, and the log level from --config's; where one is wrong,
    none changes. ``tls`` is the context of the connections to come.
    """
    from cutaway.serve.operations import bounded_log

    level = serve_options.log_level(config) or operation.log_level
    serve_options.check_certificate(listening)
    keys.load()
    bounded_log.set_level(level)
    if tls is not None:
        tls.load_cert_chain(listening.ssl_certfile, listening.ssl_keyfile)


def _asked_key(access: Access) -> tuple[str, str]:
    """An API key for the example command, as a shell writes it, and its source; "" where none is needed."""
    if access.api_key:
        return "KEY", "--api-key"
    known = os.environ.get("CUTAWAY_API_KEY", "")
    if "," in known or (access.api_key_file is not None and not known):
        return "KEY", "CUTAWAY_API_KEY" if known else str(access.api_key_file)
    return ("$CUTAWAY_API_KEY", "CUTAWAY_API_KEY") if known else ("", "")


def _check_access(listening: Listening, locked: bool, unsafe: bool) -> None:
    """Refuse to open the server to others without a key unless asked to."""
    if listening.uds is None and listening.host not in LOOPBACK and not locked and not unsafe:
        raise UserError(
            f"{listening.host} can be reached by others: set CUTAWAY_API_KEY or --api-key-file so that only "
            "clients with a key can connect, or say --unsafe-no-key"
        )


@dataclass
class Loader:
    """Makes the services of the models; they share threads, metrics and stored responses."""

    given: tuple[str, ...]
    loading: Loading
    several: Several
    limits: Any
    log_prompts: bool = False
    lenient: bool = False
    store: Any = None
    plain: bool = False  # a model without a chat template has PLAIN
    first: Any = None  # the first one's service

    def models(self) -> Any:
        """All of them, the first one loaded. UserError for names that do not fit together."""
        from cutaway.serve.operations.models import Model, Models, owner

        names = [self.loading.name or _own_name(self.given[0]), *map(_own_name, self.given[1:])]
        named = {*self.several.pin, *self.several.limits} - set(names)
        if len(set(names)) < len(names) or named:
            raise UserError(
                f"The models are {', '.join(names)}: each needs a name of its own"
                + (f", and there is none called {', '.join(sorted(named))}" if named else "")
            )
        own = (self.loading.prefix_cache_size, self.loading.prefix_cache_key_file)
        prefixes.check(*own, self.loading.prefix_cache, self.loading.slot_save_path)
        if self.loading.draft not in (None, *OWN_DRAFTS):
            draft_path(self.loading.draft)  # an error before the first model is loaded
        for given in self.loading.lens:
            if not Path(given).is_file():
                raise UserError(f"--lens {given}: there is no such file; `cutaway lens fit` writes one")
        for given in self.loading.features:
            if not Path(given).exists():
                raise UserError(f"--features {given}: there is no such folder; `cutaway sae` writes one")
        aliases: dict[str, list[str]] = {name: [] for name in names}
        for one in self.loading.alias:
            alias, _, name = one.rpartition("=")
            if alias and name not in aliases:
                raise UserError(f"--alias {one}: there is no model called {name} here")
            name = name if alias else names[0]
            alias = alias or one
            other = next((model for model in names if alias == model or alias in aliases[model]), name)
            if other != name or alias in names:
                raise UserError(f"--alias {one}: {alias} is a name of {other} already: choose another")
            aliases[name].append(alias)
        for one in self.loading.adapter:
            adapter = _named(one)[0]
            if not adapter and (len(self.loading.adapter) > 1 or self.loading.adapter_folder):
                raise UserError(f"--adapter {one}: beside other adapters it needs a name: write NAME=FOLDER")
            if adapter and (taken := owner(adapter, aliases)) is not None:
                why = "the model's own name" if adapter == taken else f"an alias of {taken}"
                raise UserError(f"--adapter {one}: {adapter} is {why}: choose another, or --name")
        paths = [model_path(one) for one in self.given]
        made = [
            Model(
                name,
                partial(self._service, name, path, tuple(aliases[name])),
                tuple(aliases[name]),
                name in self.several.pin,
                self._nbytes(name, path),
                measured=self.several.bytes is not None,
            )
            for name, path in zip(names, paths, strict=True)
        ]
        return Models(made, self.several.bytes, self._runs(), self._checkpoint)

    def _runs(self) -> Any:
        """The runs of --runs. UserError where there is no such folder."""
        if self.several.runs is None:
            return None
        from cutaway.serve.runs.folder import Runs

        if not self.several.runs.is_dir():
            raise UserError(f"--runs {self.several.runs}: there is no such folder")
        return Runs(self.several.runs)

    def _checkpoint(self, name: str, path: Path) -> Any:
        """The service of a run's checkpoint, which continues text where its run has no chat template."""
        return self._service(name, path, (), plain=True)

    def _limits(self, name: str) -> Any:
        own = self.several.limits.get(name, ModelLimits())
        return replace(
            self.limits,
            max_sequences=own.max_sequences or self.limits.max_sequences,
            max_tokens=own.max_tokens or self.limits.max_tokens,
        )

    def _context(self, name: str) -> int | None:
        return self.several.limits.get(name, ModelLimits()).context or self.loading.context

    def _state_bytes(self, name: str, context: int, bytes_per_token: float) -> int | None:
        """Bytes of a model's KV cache under --max-memory: what all of its answers take at their longest, and
        a quarter of the bound at most.
        """
        if self.several.bytes is None:
            return None
        longest = context * self._limits(name).max_sequences * bytes_per_token
        return min(self.several.bytes // 4, math.ceil(longest))

    def _nbytes(self, name: str, path: Path) -> int:
        """The memory that a model will take: its weights, as its engine stores them, and its KV cache."""
        if self.several.bytes is None:
            return 0
        from cutaway.model.config import Encoder
        from cutaway.weights.load import read_checkpoint

        checkpoint = read_checkpoint(path)
        config, tensors = checkpoint.config, [checkpoint.tensors[one] for one in checkpoint.config.weights()]
        if isinstance(config, Encoder):
            state, weights = 0, sum(FLOAT32 * math.prod(one.shape) for one in tensors)
        else:
            context = self._context(name) or config.context
            state = self._state_bytes(name, context, config.bytes_per_token(FLOAT16)) or 0
            weights = sum(one.data.nbytes for one in tensors)
        if weights + state > self.several.bytes:
            cache = f" and {size(state)} for its KV cache" if state else ""
            raise UserError(f"--max-memory is less than {path.name} takes: {size(weights)}{cache}")
        return weights + state

    def _lenses(self, lm: Any) -> dict[str, Any]:
        """A model's lenses by kind: of the first one those given, and its Jacobian lens with its control."""
        if lm.is_encoder:
            return {}
        from cutaway.inspect import lenses

        path = lenses.own_path(lm.subject)
        found = {} if path is None else {"jacobian": path}
        given = [Path(one) for one in self.loading.lens] if self.first is None else []
        found |= {lenses.kind(one): one for one in given}
        read = [lenses.with_control(lenses.load(one, lm)) for one in found.values()]
        return {kind: by for each in read for kind, by in each.items()}

    def _dictionaries(self, lm: Any) -> list[Any]:
        """The dictionaries of features that were given, which are of the first model."""
        given = self.loading.features if self.first is None else ()
        if given and lm.is_encoder:
            raise UserError("--features is of a model that writes text, and this one is an encoder")
        from cutaway.inspect import dictionaries

        return [one for path in given for one in dictionaries.read_dictionaries(Path(path), lm)]

    def _service(self, name: str, path: Path, aliases: tuple[str, ...], plain: bool = False) -> Any:
        from cutaway.generate.engine import BatchedEngine
        from cutaway.serve.operations.metrics import Metrics
        from cutaway.serve.service import Service, warm_up
        from cutaway.weights.pooling import dimensions, stated

        limits, first, most = self._limits(name), self.first, self._context(name)
        loading = self.loading
        lm: Any = cutaway.load(
            path, engine=loading.engine, context=most, kv_cache=loading.kv_cache, strict=loading.strict
        )
        if self.loading.chat_template is not None and first is None:
            text = read_text(self.loading.chat_template)
            lm.checkpoint = replace(lm.checkpoint, chat_template=text)
        elif (plain or self.plain) and lm.checkpoint.chat_template is None:
            lm.checkpoint = replace(lm.checkpoint, chat_template=PLAIN)
        note_fallback(lm)
        folder, adapters = self.loading.adapter_folder if first is None else None, dict[str, Any]()
        if first is None:
            lm, adapters = _adapted(lm, self.loading.adapter)
        pooling, lengths = self.loading.pooling or stated(lm.checkpoint), dimensions(lm.checkpoint)
        # Errors name no path of the machine.
        lm.checkpoint = replace(lm.checkpoint, source=Path(name), origin=lm.checkpoint.path)
        scheduler = kept = slots = None
        if not lm.is_encoder:
            engine = lm.engine
            if not isinstance(engine, BatchedEngine):
                core = "the native core, which is absent (`cutaway doctor` says why)"
                raise UserError(f"serving {name} needs {core}, or PyTorch: {install('train')}")
            whole = -(-engine.max_context // engine.page) * engine.page
            state = self._state_bytes(name, whole, engine.page_bytes / engine.page)
            limits = replace(limits, state_bytes=state)
            drafting = None
            if loading.draft is not None and first is None:
                drafting = lm.drafting(drafts(loading.draft, loading.engine, loading.strict))
            own = (loading.prefix_cache_size, loading.prefix_cache_key_file)
            if first is None or prefixes.storable(lm):  # of further models those that the runtime answers
                kept = prefixes.opened(lm, loading.prefix_cache, *own)
                slots = prefixes.slots(lm, loading.slot_save_path, *own)
            scheduler = limits.scheduler(engine, lm.tokenizer, drafting, kept)
        shared: dict[str, Any] = {"store": self.store} if self.store is not None else {}
        if first is not None:
            names = ("store", "running", "bridge", "pool")
            shared = {one: getattr(first, one) for one in names}
        metrics = Metrics() if first is None else first.metrics
        service = Service(
            *(lm, name, scheduler, limits, metrics, self.log_prompts, adapters, aliases, self.lenient),
            adapter_folder=folder,
            slots=slots,
            pooling=pooling,
            dimensions=lengths,
            lenses=self._lenses(lm),
            dictionaries=self._dictionaries(lm),
            **shared,
        )
        warm_up(service)
        self.first = first or service
        return service


def _adapted(lm: Any, given: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """The model, with its own adapter where one was given without a name, and the engine with each other."""
    from cutaway.serve.service import adapter_engine

    engines = dict[str, Any]()
    for one in given:
        name, folder = _named(one)
        if not folder or name in engines:
            raise UserError(
                f"--adapter {one}: write NAME=FOLDER, each name once, or FOLDER for the model's own"
            )
        if not name:
            return lm.with_adapter(folder), {}
        engines[name] = adapter_engine(lm, folder)
    return lm, engines


def _named(adapter: str) -> tuple[str, str]:
    """The name and the folder of --adapter; no name where it is a folder alone."""
    if "=" not in adapter or Path(adapter).is_dir():
        return "", adapter
    name, _, folder = adapter.partition("=")
    return (name, folder) if name else ("", "")


def _own_name(model: str) -> str:
    """The name of a model's table or repository as it is; of a file or folder its last part."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name if path.exists() else model


def _hosts(listening: Listening, access: Access, keys: Any) -> tuple[str, ...] | None:
    """The host names that requests may be addressed to; None for any."""
    if keys or listening.host in ("0.0.0.0", "::"):
        return None
    return (*LOOPBACK, listening.host.lower(), *(one.lower() for one in access.allow_host))


def _root_path(listening: Listening) -> str:
    path = listening.root_path.strip("/")
    return f"/{path}" if path else ""


def _address(listening: Listening, made: Any) -> str:
    name = made.getsockname()  # of a Unix socket its path
    if isinstance(name, str):
        return f"http+unix://{name}"
    shown = f"[{listening.host}]" if ":" in listening.host else listening.host
    scheme = "https" if listening.ssl_certfile else "http"
    return f"{scheme}://{shown}:{name[1]}{_root_path(listening)}"
