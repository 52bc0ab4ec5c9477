"""The options of `cutaway serve`, one class a topic. Each has a key in --config and a CUTAWAY_SERVE_NAME."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from cyclopts import Parameter

from cutaway.commands.options import (
    Context,
    Engine,
    Flag,
    KVCache,
    PrefixCache,
    PrefixCacheKeyFile,
    PrefixCacheSize,
    Strict,
    Threads,
    Words,
)
from cutaway.commands.prefixes import SIZE, size_of
from cutaway.errors import UserError, quoted


@Parameter(name="*")
@dataclass(frozen=True)
class Listening:
    """The address of the server.

    Parameters
    ----------
    host
        The address to listen on.
    port
        The port to listen on; 0 takes a free one.
    uds
        A Unix socket to listen on, in place of host and port.
    reuse_port
        Share the port with another server (SO_REUSEPORT), so that a new one starts before the old one stops.
    root_path
        The path under which a proxy shows the server, such as /llm.
    trusted_proxy
        An address or network whose X-Forwarded-For is believed; again for more.
    ssl_certfile
        A certificate with its chain, in PEM: connections are TLS. SIGHUP reads it again.
    ssl_keyfile
        The certificate's private key, where it is not in the same file.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: Path | None = None
    reuse_port: Flag = False
    root_path: str = ""
    trusted_proxy: Words = ("127.0.0.1", "::1")
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Access:
    """Who may ask.

    Parameters
    ----------
    api_key
        A key that requests may bring, with every role; again for more, each with its own prefix cache.
    api_key_file
        A file with keys: one a line, or YAML with names, roles and quotas. SIGHUP reads it again.
    unsafe_no_key
        Listen on other addresses without a key: any client that reaches them is served.
    allow_host
        A further host name that requests may be addressed to; again for more.
    cors
        An origin whose web pages may ask, such as http://localhost:3000; again for more.
    """

    api_key: Words = ()
    api_key_file: Path | None = None
    unsafe_no_key: Flag = False
    allow_host: Words = ()
    cors: Words = ()


@Parameter(name="*")
@dataclass(frozen=True)
class Loading:
    """Which model answers, and under which names.

    Parameters
    ----------
    name
        The name that requests give the model; its own by default.
    alias
        A further name that requests may give the model, or a pattern such as 'claude-*'; NAME=MODEL of
        another model; again for more.
    adapter
        NAME=FOLDER: a PEFT adapter that requests ask for as the model NAME, beside the model itself; again
        for more. The runtime answers all of them in one batch. FOLDER alone: the model itself has it.
    adapter_folder
        A folder from which an admin may load adapters of the first model while the server runs
        (/v1/load_lora_adapter), as fine-tuning by rewards does.
    chat_template
        A file with a chat template, in place of the model's own.
    pooling
        How embeddings are made of a text's tokens where a request does not say: mean, cls or last. By default
        as the model states; a decoder that states none needs it.
    lens
        A tuned or a Jacobian lens of the first model, a file; again for the other kind. /v1/lens and the page
        show both beside the logit lens. `cutaway lens fit` makes a Jacobian lens.
    features
        A folder with dictionaries of the first model's features (`cutaway sae`, SAELens, circuit-tracer);
        again for more. /v1/features and the page show which features a token has.
    draft
        Draft tokens ahead for the first model, which verifies several in one step: by lookup, from earlier
        text that repeats itself, by its own heads (mtp), by the folder of an EAGLE-3 head, or by a smaller
        model of the same vocabulary. Answers are the same.
    slot_save_path
        A folder for the texts that llama.cpp's clients save and restore (/slots/ID?action=save), of at most
        --prefix-cache-size in all.
    """

    name: str | None = None
    alias: Words = ()
    adapter: Words = ()
    adapter_folder: Path | None = None
    chat_template: Path | None = None
    pooling: Literal["mean", "cls", "last"] | None = None
    lens: Words = ()
    features: Words = ()
    draft: str | None = None
    engine: Engine = "auto"
    threads: Threads = None
    context: Context = None
    strict: Strict = False
    kv_cache: KVCache = "F16"
    prefix_cache: PrefixCache = None
    prefix_cache_size: PrefixCacheSize = SIZE
    prefix_cache_key_file: PrefixCacheKeyFile = None
    slot_save_path: Path | None = None


@dataclass(frozen=True)
class ModelLimits:
    """The options of one model, which replace the server's options of the same names."""

    context: Context = None
    max_sequences: int | None = None
    max_tokens: int | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Several:
    """More models than one: the first is loaded at the start and stays, the others when a request asks.

    Parameters
    ----------
    max_memory
        What all loaded models may take, such as 8GiB: weights, and KV caches for their longest answers, each
        a quarter of it at most. The one that was not used for the longest time goes for a new one.
    pin
        A model that is never unloaded; again for more.
    limit
        NAME.context=2048, also max-sequences and max-tokens: for one model, in place of the option of this
        name; again for more.
    runs
        A folder of training runs, or one run: the page shows them while they train, and requests ask for a
        checkpoint as the model RUN@STEP.
    """

    max_memory: str | None = None
    pin: Words = ()
    limit: Words = ()
    runs: Path | None = None

    @property
    def limits(self) -> dict[str, ModelLimits]:
        """Each --limit by the model's name. UserError for what is none."""
        found: dict[str, ModelLimits] = {}
        for one in self.limit:
            parts = re.fullmatch(r"(.+)\.(context|max-sequences|max-tokens)=([1-9]\d{0,9})", one)
            if parts is None:
                raise UserError(
                    f"--limit {one}: write NAME.context=2048, or max-sequences, or max-tokens, from 1 up"
                )
            name, option, value = parts.groups()
            change = {option.replace("-", "_"): int(value)}
            found[name] = replace(found.get(name, ModelLimits()), **change)
        return found

    @property
    def bytes(self) -> int | None:
        """The bytes of --max-memory."""
        if self.max_memory is None:
            return None
        return size_of(self.max_memory, "--max-memory")


@Parameter(name="*")
@dataclass(frozen=True)
class Bounds:
    """How much is answered.

    Parameters
    ----------
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
    lenient
        Take requests with fields that are not known; the answer's x-cutaway-ignored names them.
    store
        A file to keep responses (/v1/responses) and what keys have used in; without it, in memory.
    store_seconds
        Seconds that a response is kept.
    """

    max_sequences: int = 16
    max_queue: int = 512
    max_tokens: int | None = None
    max_body: int = 2 << 20
    timeout: float = 600.0
    lenient: Flag = False
    store: Path | None = None
    store_seconds: float = 3600.0


@Parameter(name="*")
@dataclass(frozen=True)
class Operation:
    """How it stops, and what it logs.

    Parameters
    ----------
    stop_delay
        Seconds after SIGTERM in which /health/ready says 503 and requests are still answered.
    drain
        Seconds that answers under way are given when the server stops.
    log_level
        The least important lines that are logged; a request is one line of info.
    log_format
        Text, or one JSON object a line.
    log_prompts
        Write requests and answers to standard error; without it none is written anywhere.
    otlp_endpoint
        Send a span a request there by OpenTelemetry, such as http://localhost:4318/v1/traces.
    """

    stop_delay: float = 0.0
    drain: float = 30.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    log_prompts: Flag = False
    otlp_endpoint: str | None = None


def check_certificate(listening: Listening) -> None:
    """Refuse a certificate and key that no connection could be made with."""
    import ssl

    if listening.ssl_certfile is None:
        if listening.ssl_keyfile is not None:
            raise UserError("--ssl-keyfile needs --ssl-certfile, the certificate that its key is of")
        return

    def encrypted() -> str:
        raise UserError(f"The key of {listening.ssl_certfile} is encrypted: give one without a passphrase")

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(listening.ssl_certfile, listening.ssl_keyfile, encrypted)
    except OSError as error:  # ssl.SSLError is one
        names = " and ".join(str(one) for one in (listening.ssl_certfile, listening.ssl_keyfile) if one)
        why = error.strerror if error.filename or not isinstance(error, ssl.SSLError) else error.reason
        hint = "" if listening.ssl_keyfile else " (give a key in another file by --ssl-keyfile)"
        raise UserError(f"{names}: no certificate in PEM with its key: {why or error}{hint}") from None


POSITIVE = ("max_sequences", "max_body", "timeout", "max_tokens")
MOST_PORT = 65535
FINITE = ("max_queue", "drain", "stop_delay", "store_seconds")


def check(*groups: Any) -> None:
    """Refuse numbers that are not finite, negative, or 0 where that would answer nothing, and a certificate
    without its key.
    """
    for group in groups:
        if isinstance(group, Listening):
            check_certificate(group)
    for name, value in _values(groups):
        if name == "port" and not 0 <= value <= MOST_PORT:
            raise UserError(f"--port is {value}: give a number from 0 to {MOST_PORT}")
        if value is None or name not in POSITIVE + FINITE:
            continue
        above = name in POSITIVE
        if not 0 <= value < math.inf or (above and value == 0):
            wanted = "above" if above else "of at least"
            raise UserError(f"--{name.replace('_', '-')} is {value}: give a number {wanted} 0")


def shown(models: tuple[str, ...], *groups: Any) -> str:
    """The options as a file that --config reads. Keys are left out: they belong into --api-key-file."""
    import yaml

    plain: dict[str, Any] = {"models": list(models)}
    for name, value in _values(groups):
        if name != "api_key" and value is not None:
            plain[name.replace("_", "-")] = _plain(value)
    return yaml.safe_dump(plain, sort_keys=False)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def _values(groups: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    for group in groups:
        for one in fields(group):
            yield one.name, getattr(group, one.name, None)


GROUPS = (Listening, Access, Loading, Several, Bounds, Operation)
PREFIX = "CUTAWAY_SERVE_"


def sources(arguments: Sequence[str]) -> list[Any]:
    """What the parser reads beside the words of the command line: the environment, then --config's file."""
    from cyclopts.config import Env, Yaml

    from cutaway.store import yaml_files

    known = {name.upper() for name, _ in _values(GROUPS)} | {"MODELS", "CONFIG", "PRINT_CONFIG"}
    for name in os.environ:
        option = name.removeprefix(PREFIX)
        if name != option and option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
            raise UserError(f"{name} is no option of `cutaway serve`: did you mean {PREFIX}{near[0]}?")
    path = os.environ.get(f"{PREFIX}CONFIG")
    for word, after in zip(arguments, [*arguments[1:], ""], strict=False):
        option, is_given, value = word.partition("=")
        if option == "--config":
            path = value if is_given else after
    if path and Path(path).is_file():
        for name in yaml_files.parsed(Path(path)):  # before the parser, which has no sentences for files
            if not isinstance(name, str):
                raise UserError(f"{path}: {quoted(name)} is no name of an option")
    env = Env(PREFIX, command=False, show=False)
    return [env, Yaml(path, must_exist=True, use_commands_as_keys=False)] if path else [env]


def log_level(config: Path | None) -> Any:
    """The log level that --config's file has by now, None where it has none. UserError for another word."""
    from cutaway.store import yaml_files

    if config is None:
        return None
    found = yaml_files.parsed(config)
    level = found.get("log-level", found.get("log_level"))
    if level not in (None, "debug", "info", "warning", "error"):
        raise UserError(f"{config}: log-level is {level!r}: give debug, info, warning or error")
    return level
