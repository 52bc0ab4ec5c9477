"""API keys: whose they are, what they may ask and how much; read from a file, and again at SIGHUP.

A file holds one key a line and nothing else, or YAML (JSON is YAML too):

    keys:
      - name: research                # in the log, the metrics and /v1/usage
        key: [the-new-key, the-old]   # one or several; or sha256: its hexadecimal digest
        roles: [chat, embed]          # of chat, embed, internals, metrics, admin
        requests_per_minute: 60
        tokens_per_minute: 20000      # of prompts and answers
        concurrent: 4                 # requests under way
        priority: 1                   # its requests start before those of a lower one

Keys are kept and compared as hashes, in constant time. A token bucket bounds each quota, and a response's
headers tell of it under OpenAI's names or Anthropic's. OpenAI: x-ratelimit-limit-requests,
-remaining-requests, -reset-requests ("1m30s" until the quota is whole again), and the same of tokens.
Anthropic: anthropic-ratelimit-requests-limit, -remaining, -reset (when it is whole again, by RFC 3339), and
the same of tokens. Tokens are counted at an answer's end, so these do not know of the answer they come with.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from cutaway.errors import UserError, escaped
from cutaway.serve.api_error import APIError
from cutaway.store import yaml_files

Role = Literal["chat", "embed", "internals", "metrics", "admin"]
EVERYONE: frozenset[Role] = frozenset({"chat", "embed", "internals", "metrics"})  # without any keys
ALL: frozenset[Role] = frozenset(get_args(Role))
ANY: tuple[Role, ...] = get_args(Role)  # a route that every key may ask, but one without roles
TEXT: tuple[Role, ...] = ("chat", "embed", "internals")  # one for what prepares a text for the model
MINUTE = 60.0  # seconds
LINE = r"""(?:(?!["'`{}\[\],:#])[!-~]){8,}"""  # a line that is a key, and no YAML or JSON
ANONYMOUS = "anonymous"
PREFIX = 8  # characters of a wrong key, and of their hash, that the log shows
Strings = Annotated[
    tuple[str, ...], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
]
Count = Annotated[int, Field(gt=0)]


class KeyEntry(BaseModel, extra="forbid"):
    """One tenant in a key file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")
    key: Strings = ()
    sha256: Strings = ()
    roles: frozenset[Role] = frozenset({"chat", "embed"})
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent: Count | None = None
    priority: int = 0

    def digests(self) -> list[bytes]:
        """The hashes of its keys. UserError for a weak key, or none."""
        for key in self.key:
            check_key(key)
        try:
            given = [bytes.fromhex(one) for one in self.sha256]
        except ValueError:
            given = [b""]
        if any(len(one) != 32 for one in given) or not (given or self.key):
            raise UserError(f"The key {self.name} needs key, or sha256 with 64 hexadecimal digits")
        return given + [digest(key) for key in self.key]


@dataclass
class Bucket:
    """A token bucket: at most ``limit`` in a minute on average, so many at once."""

    limit: int | None
    level: float = 0.0  # what was taken and has not flowed out yet
    seen: float = 0.0

    @property
    def flow(self) -> float:
        """How much flows out in a second."""
        return (self.limit or 0) / MINUTE

    def now(self) -> float:
        """The level, after what has flowed out by now; 0 without a limit."""
        now = time.monotonic()
        self.level = 0.0 if self.limit is None else max(0.0, self.level - (now - self.seen) * self.flow)
        self.seen = now
        return self.level

    def wait(self, more: int) -> float:
        """Seconds until so many more fit; 0.0 where they fit now."""
        level = self.now()
        return 0.0 if self.limit is None else max(0.0, level + more - self.limit) / self.flow


@dataclass
class Tenant:
    """The owner of a key: name, roles, quotas and use. Read and written by the event loop alone."""

    name: str
    scope: bytes  # who shares its prefix cache and stored responses
    roles: frozenset[Role] = ALL
    concurrent: int | None = None
    priority: int = 0
    requests: Bucket = field(default_factory=lambda: Bucket(None))
    tokens: Bucket = field(default_factory=lambda: Bucket(None))
    running: int = 0  # answers under way
    beside: int = 0  # other requests under way, which compute nothing with the model
    used: Counter[str] = field(default_factory=Counter)

    def check(self, *roles: Role) -> None:
        """Refuse what the key has none of the roles for."""
        if self.roles.isdisjoint(roles):
            names = " or ".join(map(repr, roles))
            text = f"This API key has not the role {names}, which this needs"
            raise APIError(403, text, type="permission_error", code="missing_role")

    def admit(self, answers: bool) -> Callable[[], None]:
        """Count a request as under way until what is returned is called. APIError past a quota.

        Requests that the model ``answers`` have ``concurrent`` places, and the others as many of their own:
        so a key with one place can fetch its background answer, or cancel it. Tokens bound the first alone.
        """
        under_way = self.running if answers else self.beside
        waits = {
            "requests a minute": (self.requests.limit, self.requests.wait(1)),
            "tokens a minute": (self.tokens.limit, self.tokens.wait(1) if answers else 0.0),
            "requests at once": (self.concurrent, float(under_way >= (self.concurrent or math.inf))),
        }
        for what, (limit, seconds) in waits.items():
            if seconds:
                self.used["refused"] += 1
                text = f"This API key may have {limit} {what}: ask again in {math.ceil(seconds)} seconds"
                raise APIError(
                    429, text, type="rate_limit_error", code="quota_exceeded", retry_after=math.ceil(seconds)
                )
        self.requests.level += 1
        self.used["requests"] += 1
        self._enter(answers, 1)
        return partial(self._enter, answers, -1)

    def _enter(self, answers: bool, more: int) -> None:
        if answers:
            self.running += more
        else:
            self.beside += more

    def spend(self, prompt: int, cached: int, generated: int) -> None:
        """Count an answer's tokens."""
        self.tokens.wait(0)  # what has flowed out by now
        self.tokens.level += prompt + generated
        self.used.update(prompt_tokens=prompt, cached_tokens=cached, generated_tokens=generated)

    def headers(self, anthropic: bool) -> dict[str, str]:
        """What a response's headers tell of its quotas, of which it may have none."""
        found: dict[str, str] = {}
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket.limit is None:
                continue
            level = bucket.now()
            left, seconds = max(0, math.floor(bucket.limit - level)), level / bucket.flow
            if anthropic:
                whole = datetime.now(UTC) + timedelta(seconds=math.ceil(seconds))
                values = {"limit": str(bucket.limit), "remaining": str(left)}
                values["reset"] = whole.strftime("%Y-%m-%dT%H:%M:%SZ")
                found |= {f"anthropic-ratelimit-{name}-{what}": value for what, value in values.items()}
            else:
                values = {"limit": str(bucket.limit), "remaining": str(left), "reset": _duration(seconds)}
                found |= {f"x-ratelimit-{what}-{name}": value for what, value in values.items()}
        return found

    def snapshot(self) -> dict[str, Any]:
        """What was used, and how full the quotas are now, as JSON."""
        levels = {"requests": self.requests.now(), "tokens": self.tokens.now()}
        return {"used": dict(self.used), "levels": levels, "at": time.time()}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Add what a snapshot says."""
        self.used.update(found["used"])
        gone = max(0.0, time.time() - found["at"])
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            bucket.level = bucket.now() + max(0.0, found["levels"][name] - bucket.flow * gone)

    def usage(self) -> dict[str, Any]:
        """What /v1/usage tells of it."""
        counts = ("requests", "refused", "prompt_tokens", "cached_tokens", "generated_tokens")
        limits = {
            "requests_per_minute": self.requests.limit,
            "tokens_per_minute": self.tokens.limit,
            "concurrent": self.concurrent,
        }
        about = {"name": self.name, "roles": sorted(self.roles), "priority": self.priority}
        return (
            about | {name: self.used[name] for name in counts} | {"running": self.running, "limits": limits}
        )


def _duration(seconds: float) -> str:
    """A duration as OpenAI writes it: 120ms, 7s, 1m30s."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


class KeyRing:
    """The keys of a server: those ``given``, which have every role, and those of a ``file``.

    Without any, each request is the anonymous tenant's. Raises UserError, as ``load`` does.
    """

    def __init__(self, given: Sequence[str] = (), file: Path | None = None) -> None:
        for key in given:
            check_key(key)
        if len(set(given)) < len(given):
            raise UserError("An API key is given twice: give each once")
        self.file = file
        self._before: dict[str, dict[str, Any]] = {}  # what tenants used that are not in the file, or not yet
        self._anonymous = Tenant(ANONYMOUS, b"", EVERYONE)
        self._given = [(digest(key), Tenant(f"key-{i}", digest(key))) for i, key in enumerate(given, 1)]
        self._known = self._given
        self.load()

    def __bool__(self) -> bool:
        return self.file is not None or bool(self._given)

    @property
    def tenants(self) -> list[Tenant]:
        """Each once, in the order of the file."""
        if not self:
            return [self._anonymous]
        return list({tenant.name: tenant for _, tenant in self._known}.values())

    def find(self, secret: str) -> Tenant | None:
        """Whose key this is; without keys, the anonymous tenant."""
        if not self:
            return self._anonymous
        asked = digest(secret)
        matches = [
            tenant for known, tenant in self._known if hmac.compare_digest(asked, known)
        ]  # all, always
        return matches[0] if matches else None

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """What each tenant has used, by its name, as JSON."""
        return {one.name: one.snapshot() for one in self.tenants}

    def restore(self, found: Mapping[str, dict[str, Any]]) -> None:
        """Give tenants what a snapshot has of them; what flowed out of their quotas since is gone."""
        self._before = dict(found)
        for tenant in self.tenants:
            self._restore(tenant)

    def _restore(self, tenant: Tenant) -> None:
        if (used := self._before.pop(tenant.name, None)) is not None:
            tenant.restore(used)

    def load(self) -> None:
        """Read the file again. A tenant that stays keeps what it used; an error changes nothing."""
        if self.file is None:
            return
        entries = _entries(self.file)
        hashes = {entry.name: entry.digests() for entry in entries}
        own = {ANONYMOUS, *(tenant.name for _, tenant in self._given)}
        if len(hashes) < len(entries) or own & hashes.keys():
            raise UserError(f"{self.file}: a name is there twice, or is one of {', '.join(sorted(own))}")
        owners = dict.fromkeys((one for one, _ in self._given), "--api-key or CUTAWAY_API_KEY")
        for name, digests in hashes.items():
            for one in digests:
                if (other := owners.setdefault(one, name)) != name:
                    raise UserError(
                        f"{self.file}: {name} has a key that {other} has too: a key is one client's"
                    )
        before = {tenant.name: tenant for _, tenant in self._known}
        self._known = list(self._given)
        for entry in entries:
            tenant = before.get(entry.name) or Tenant(entry.name, digest(f"tenant {entry.name}"))
            tenant.roles, tenant.concurrent, tenant.priority = entry.roles, entry.concurrent, entry.priority
            tenant.requests.limit, tenant.tokens.limit = entry.requests_per_minute, entry.tokens_per_minute
            self._restore(tenant)
            self._known += [(one, tenant) for one in hashes[entry.name]]


class _File(BaseModel, extra="forbid"):
    keys: list[KeyEntry] = Field(min_length=1)


def _entries(file: Path) -> list[KeyEntry]:
    try:
        text = file.read_text("utf-8-sig")
        if re.search(r"^keys:", text, re.M) or text.lstrip().startswith("{"):
            return _File.model_validate(_texts(file, text)).keys
        keys = _lines(file, text)
        named = [{"name": f"{file.stem}-{i}", "key": key, "roles": ALL} for i, key in enumerate(keys, 1)]
        return _File.model_validate({"keys": named}).keys
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = escaped(".".join(map(str, first["loc"])))[:80]
        raise UserError(f"{file}: {where}: {first['msg']}") from None
    except (OSError, UnicodeDecodeError) as error:
        why = (
            error.strerror if isinstance(error, OSError) else "it is neither YAML in UTF-8 nor keys in lines"
        )
        raise UserError(f"The key file {file} cannot be read: {why}") from None


def _texts(file: Path, text: str) -> Any:
    """A key file's YAML, every value a text; the refusal repeats none of it, for it may hold keys."""
    try:
        return yaml_files.value(text, str(file), yaml_files.TextLoader)
    except yaml_files.RepeatedNameError:
        raise
    except UserError:
        raise UserError(
            f"The key file {file} cannot be read: it is neither YAML in UTF-8 nor keys in lines"
        ) from None


def _lines(file: Path, text: str) -> list[str]:
    """The keys of a file with one a line. UserError for a line that is anything else; it is never printed."""
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        key = line.strip()
        if not key:
            continue
        if not re.fullmatch(LINE, key):
            raise UserError(
                f"{file}, line {number}: this is not one key alone: 8 or more printable ASCII characters "
                "without blanks, quotes, brackets, commas, colons and #; others go into YAML, under keys:"
            )
        if key in seen:
            raise UserError(
                f"{file}: line {number} is the key of line {seen[key]} again: a key is one client's"
            )
        seen[key] = number
    if not seen:
        raise UserError(f"{file}: there is no key in it: write one a line, or YAML that begins with keys:")
    return list(seen)


def check_key(key: str) -> None:
    """Refuse a key that is short, or that a header cannot hold."""
    if len(key) < 8 or not (key.isascii() and key.isprintable() and key == key.strip()):
        raise UserError("API keys must be 8 or more printable ASCII characters, without spaces around")


def fingerprint(key: str) -> str:
    """What the log shows of a key that is none: it is the same for keys that begin alike, and tells none."""
    return digest(key[:PREFIX]).hex()[:PREFIX]


def digest(key: str) -> bytes:
    """A key's hash."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
