"""Findings about a model's files without running it: pickles and code, templates, tokenizer, changed weights.

A template is judged by what it writes. Its prose (all text of its own beside control tokens) is rendered with
neutral conversations and again with each of its string constants as a message: prose that comes or goes with
a message's words is how a backdoor in a template works (2602.04653). With a trusted copy, templates,
vocabularies and weights are compared exactly, weights layer by layer. A signed manifest beside the files
(``model-signing``) is verified with its public key, and files that it does not name are listed.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import time
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cutaway.errors import OperationalError, UserError, escaped, quoted
from cutaway.extras import need
from cutaway.quantization import formats
from cutaway.store import reading
from cutaway.store.files import digest, read_errors
from cutaway.tokenizer import Tokenizer, chat
from cutaway.weights import described, load
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.described import Description
from cutaway.weights.fields import UnreadKeys
from cutaway.weights.load import PICKLES

Severity = Literal["high", "medium", "low", "info"]
Kind = Literal["content", "signature"]
ORDER = ("high", "medium", "low", "info")
CONSTANT = re.compile(r"'((?:[^'\\\n]|\\.){2,200})'|\"((?:[^\"\\\n]|\\.){2,200})\"")
MOST_CONSTANTS = 200
MOST_TOKENS = 50  # named one by one
SECONDS = 30.0  # for all templates of a model together
# Raised by zipfile for a damaged archive, beside its own errors.
DAMAGED = (EOFError, NotImplementedError, OSError, ValueError, RuntimeError, struct.error, zlib.error)
WORDS = re.compile(r"[^\W\d_]{2,}")
ROLES = {"user", "assistant", "system", "tool", "model", "developer", "ipython", "function"}


@dataclass(frozen=True)
class Issue:
    """One finding: how bad, in which file or part, what, and whether it is about the signature."""

    severity: Severity
    where: str
    what: str
    kind: Kind = "content"


def audit(path: Path, trusted: Path | None = None, public_key: Path | None = None) -> list[Issue]:
    """All findings about a model's file or folder, the worst first; ``trusted`` is a copy to compare with.

    ``public_key`` is that of the signed manifest: an elliptic curve key in a PEM file. UserError for a key,
    or a trusted copy, that cannot be read; whatever is wrong with the model itself is a finding.
    """
    if public_key is not None:
        _check_key(public_key)
    other = None if trusted is None else load.read_checkpoint(trusted)
    found = [*_files(path), *_each("signature", _signature, path, public_key, kind="signature")]
    opened: list[Checkpoint | Description] = []
    found += _each(str(path), _opened, path, opened)
    for model in opened:
        named: dict[str, str] = {}
        found += _each("chat_template", _templates, path, model, named)
        read: list[Tokenizer] = []
        found += _each(str(path), _read_tokenizer, path, model, read)
        for tokenizer in read:
            found += _checked(named, tokenizer)
            found += _each("tokenizer", _vocabulary, tokenizer)
        if trusted is not None and other is not None and isinstance(model, Checkpoint) and read:
            theirs: dict[str, str] = {}
            list(_templates(trusted, other, theirs))
            found += _each("trusted copy", _compared, model, named, other, theirs)
    return sorted(found, key=lambda issue: ORDER.index(issue.severity))


def _opened(path: Path, opened: list[Checkpoint | Description]) -> Iterator[Issue]:
    """The model; one of no family, or without weights, by its config alone."""
    description = described.read_description(path) if described.can(path) else None
    if description is None or (description.family and description.stored is not None):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UnreadKeys)
            opened.append(load.read_checkpoint(path if description is None else description.source))
        for one in caught:
            if issubclass(one.category, UnreadKeys):
                yield Issue("info", "config.json", str(one.message))
    else:
        opened.append(description)
        if description.refused:
            yield Issue("medium", description.source.name, f"it is not loaded: {description.refused}")
        if description.stored is None:
            yield Issue("info", description.source.name, "there are no weights beside its config")
    if description is not None:
        packed = f", its weights quantized: {description.quantized}" if description.quantized else ""
        yield Issue("info", description.source.name, f"it is a model of the kind {description.named}{packed}")


def _read_tokenizer(path: Path, model: Checkpoint | Description, read: list[Tokenizer]) -> Iterator[Issue]:
    if model.read_tokenizer is not None:
        read.append(model.read_tokenizer())
    elif isinstance(model, Checkpoint):
        raise UserError(f"{path}: has no tokenizer: put its tokenizer.json there")
    yield from ()


def from_severity(found: Iterable[Issue], severity: Severity) -> list[Issue]:
    """The findings of a severity and of those above it."""
    return [issue for issue in found if ORDER.index(issue.severity) <= ORDER.index(severity)]


def refused(found: Iterable[Issue]) -> bool:
    """Whether the signature is not one of the whole model by the key that was given."""
    return any(issue.kind == "signature" and issue.severity in ("high", "medium") for issue in found)


def _each(
    where: str, check: Callable[..., Iterator[Issue]], *given: Any, kind: Kind = "content"
) -> Iterator[Issue]:
    """A check's findings. A check that fails is a finding too: only here is every kind of error caught,
    because the audited files can cause any.
    """
    try:
        yield from check(*given)
    except (UserError, OperationalError) as error:
        yield Issue("high", where, f"it cannot be read: {error}", kind)
    except Exception as error:
        why = escaped(f"{type(error).__name__}: {error}")[:200]
        yield Issue("high", where, f"it makes a check of it fail, which no sound file does ({why})", kind)


# ---- files -------------------------------------------------------------------------------------------------


def _files(path: Path) -> Iterator[Issue]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        name = file.name if path.is_file() else str(file.relative_to(path))
        yield from _each(name, _file, path, file, name)


def _file(path: Path, file: Path, name: str) -> Iterator[Issue]:
    if path.is_dir() and not file.resolve().is_relative_to(path.resolve()):
        yield Issue("medium", name, f"it is a link out of the folder, to {file.resolve()}")
    if why := _pickled(file):
        yield Issue("high", name, f"{why}: loading it elsewhere can run code; Cutaway never unpickles")
    if file.suffix == ".py":
        yield Issue("medium", name, "it is Python code, which trust_remote_code would run")
    if file.name == "config.json" and "auto_map" in reading.parsed(file):
        yield Issue("medium", name, "auto_map names code that trust_remote_code would run")


def _pickled(file: Path) -> str | None:
    """Why a file is a pickle, by its content and then by its name."""
    with file.open("rb") as opened:
        head = opened.read(4)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "it is a pickle"
    if head in (b"PK\x03\x04", b"PK\x05\x06"):
        try:
            with zipfile.ZipFile(file) as packed:
                names = packed.namelist()
        except (*DAMAGED, zipfile.BadZipFile):
            return "it begins as an archive, which cannot be listed and may hold a pickle"
        if any(name.endswith(".pkl") for name in names):
            return "it is an archive with a pickle"
    return "its name is a pickle's" if any(file.match(pattern) for pattern in PICKLES) else None


# ---- signatures --------------------------------------------------------------------------------------------


def _check_key(public_key: Path) -> None:
    """UserError for a file that holds no public key, and where the library that verifies is not installed."""
    need("a signature", "model_signing", "cryptography")
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    with read_errors(public_key):
        data = public_key.read_bytes()
    try:
        load_pem_public_key(data)
    except ValueError:
        raise UserError(f"{public_key}: holds no public key in PEM form") from None


def manifest_of(path: Path) -> Path | None:
    """The signed manifest of a model: FILE.sig, or FOLDER/model.sig, or FOLDER.sig."""
    beside = path.resolve().with_name(path.resolve().name + ".sig")
    return next((each for each in (path / "model.sig", beside) if each.is_file()), None)


def _signature(path: Path, public_key: Path | None) -> Iterator[Issue]:
    def issue(severity: Severity, where: str, what: str) -> Issue:
        return Issue(severity, where, what, "signature")

    signature = manifest_of(path)
    if signature is None:
        severity: Severity = "info" if public_key is None else "high"
        yield issue(severity, str(path), "no file of it is signed: there is no manifest (.sig) beside it")
        return
    try:
        named = signed_digests(signature)
    except UserError as error:
        yield issue("high", signature.name, str(error))
        return
    if public_key is None:
        yield issue("low", signature.name, "the manifest was not verified: give its --public-key")
    changed = [name for name, expected in named.items() if not _equal(path, name, expected)]
    for name in changed:
        yield issue("high", name, f"it is missing or is not the file that {signature.name} names")
    if public_key is not None and not changed and (why := _unverified(path, signature, public_key)):
        yield issue("high", signature.name, f"the signature does not hold: {why}")
    if path.is_dir():
        own = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        for name in sorted(own - set(named) - {signature.name}):
            yield issue("medium", name, f"it is not signed: {signature.name} does not name it")


def signed_digests(signature: Path) -> dict[str, str]:
    """Digests by path that a manifest names, not verified; a single file's path is ".".

    UserError for what cannot be read as one.
    """
    try:
        envelope = reading.parsed(signature)["dsseEnvelope"]
        resources = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
        found: dict[str, str] = {}
        for each in resources:
            if each["algorithm"] != "sha256" or re.search(r":\d+:\d+$", each["name"]):
                raise UserError(
                    "the manifest is not of whole files by SHA-256, which is all that is verified"
                )
            found[each["name"]] = each["digest"]
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("it is no manifest of model-signing that can be read") from None


def _equal(path: Path, name: str, expected: str) -> bool:
    file = path if name == "." else path / name
    try:
        inside = file.resolve().is_relative_to(path.resolve())
        return inside and file.is_file() and digest(file) == expected
    except (OSError, ValueError):  # a name that no file system has
        return False


def _unverified(path: Path, signature: Path, public_key: Path) -> str | None:
    """Why a manifest is not signed with this key, if it is not."""
    from model_signing import verifying

    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_ignore_unsigned_files(path.is_dir()).verify(path, signature)
    except Exception as error:  # the library raises errors of its own and of its parsers
        return escaped(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__
    return None


# ---- templates ---------------------------------------------------------------------------------------------


def _templates(path: Path, checkpoint: Checkpoint | Description, found: dict[str, str]) -> Iterator[Issue]:
    """Put into ``found`` every chat template by where it is: the one that is used, and named ones that others
    may use. The findings are about those that cannot be read.
    """
    for key, text in checkpoint.metadata.items():
        if key.startswith("tokenizer.chat_template") and isinstance(text, str):
            found[key] = text
    for file in sorted(path.rglob("*.jinja")) if path.is_dir() else ():
        name = str(file.relative_to(path))
        yield from _each(name, _jinja, file, name, found)
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (path / name).is_file():
            yield from _each(name, _listed, path / name, name, found)
    if checkpoint.chat_template is not None and checkpoint.chat_template not in found.values():
        found["chat_template"] = checkpoint.chat_template


def _jinja(file: Path, name: str, found: dict[str, str]) -> Iterator[Issue]:
    found[name] = reading.text(file)
    yield from ()


def _listed(file: Path, name: str, found: dict[str, str]) -> Iterator[Issue]:
    """The templates of a JSON file: one, or several by name."""
    entry = reading.parsed(file).get("chat_template")
    several = entry if isinstance(entry, list) else [] if entry is None else [entry]
    for n, one in enumerate(several):
        called, text = (
            (one.get("name", n), one.get("template")) if isinstance(one, dict) else ("default", one)
        )
        if isinstance(text, str):
            found[f"{name}: {called}"] = text
        else:
            yield Issue("medium", name, f"entry {n} of its chat_template is no template: {quoted(one)}")


def _checked(named: dict[str, str], tokenizer: Tokenizer) -> Iterator[Issue]:
    """What every template does, within SECONDS for all; each rendering has bounds of its own too."""
    end = time.monotonic() + SECONDS
    for name, template in named.items():
        yield from _each(name, check_template, name, template, tokenizer, end)


def check_template(name: str, template: str, tokenizer: Tokenizer, end: float) -> Iterator[Issue]:
    """The template's prose, and what of it depends on a message's words, as far as known by ``end``."""
    if time.monotonic() > end:
        yield Issue("medium", name, f"it was not tried: those before it took all of {SECONDS:.0f} seconds")
        return
    try:
        neutral = {shape: _prose(template, tokenizer, shape, "xx") for shape in SHAPES}
    except UserError as error:
        yield Issue("medium", name, f"it takes no plain conversation: {error}")
        return
    prose = {text for shape in neutral.values() for text in shape if len(_words(text)) > 1}
    for text in sorted(prose):
        yield Issue("info", name, f"it says to the model, in its own words: {' '.join(text.split())!r}")
    texts = {next(filter(None, match.groups())) for match in CONSTANT.finditer(template)}
    constants = sorted(text.replace("\\n", "\n") for text in texts)
    if len(constants) > MOST_CONSTANTS:
        yield Issue("medium", name, f"it has {len(constants)} constants, and {MOST_CONSTANTS} were tried")
    for tried, text in enumerate(constants[:MOST_CONSTANTS]):
        if time.monotonic() > end:
            what = f"it computes too long: {tried} of its {len(constants)} constants were tried"
            yield Issue(
                "medium", name, f"{what} in {SECONDS:.0f} seconds; models' templates take milliseconds"
            )
            return
        changed = set[str]()
        for shape in SHAPES:
            for content in (text, f"x {text} {text.upper()} x"):
                try:
                    own = _prose(template, tokenizer, shape, content)
                except UserError:
                    continue
                changed |= set(own) ^ set(neutral[shape])
        words = sorted(each for each in changed if _words(each))
        if words:
            shown = " | ".join(" ".join(each.split()) for each in words)
            what = f"the words {text!r} in a message change what it says: {shown:.300}"
            yield Issue("high" if any(len(_words(each)) > 2 for each in words) else "low", name, what)


SHAPES = ("user", "system", "assistant")


def _prose(template: str, tokenizer: Tokenizer, shape: str, content: str) -> list[str]:
    """What the template itself writes, piece by piece, without control tokens."""
    ask = {"role": "user", "content": "xx"}
    messages = {
        "user": [{"role": "user", "content": content}],
        "system": [{"role": "system", "content": content}, ask],
        "assistant": [ask, {"role": "assistant", "content": content}, ask],
    }[shape]
    made = chat.text(messages, template, tokenizer=tokenizer, steering="flag")
    inside = np.zeros(len(made.text), bool)
    for run in made.origins:
        inside[run.start : run.stop] = run.source == "template"
    for start, stop, _ in made.control:
        inside[start:stop] = False
    edges = np.flatnonzero(np.diff(np.r_[False, inside, False]))
    return [made.text[a:b] for a, b in edges.reshape(-1, 2).tolist()]


def _words(text: str) -> list[str]:
    return [word for word in WORDS.findall(text) if word not in ROLES]


# ---- tokenizer and weights ---------------------------------------------------------------------------------


def _vocabulary(tokenizer: Tokenizer) -> Iterator[Issue]:
    unmarked = sorted(
        (id, text)
        for text, id in tokenizer.added.items()
        if text not in tokenizer.special and re.fullmatch(r"<\|.+\|>|<[/｜].+>|\[/?[A-Z_]+\]", text)
    )
    for id, text in unmarked[:MOST_TOKENS]:
        what = f"{quoted(text)} looks like a control token and is marked as plain text"
        yield Issue("low", f"token {id}", what)
    if len(unmarked) > MOST_TOKENS:
        yield Issue("low", "tokenizer", f"{len(unmarked) - MOST_TOKENS} more tokens look like control tokens")


def _compared(
    own: Checkpoint, named: dict[str, str], other: Checkpoint, trusted: dict[str, str]
) -> Iterator[Issue]:
    """What differs from the trusted copy; formats may differ."""
    theirs = set(trusted.values())
    for name, template in named.items():
        if template not in theirs:
            yield Issue("high", name, "the trusted copy has no such template")
    a, b = own.tokenizer, other.tokenizer
    if len(a) != len(b):
        yield Issue("high", "tokenizer", f"{len(a)} tokens, the trusted copy has {len(b)}")
    moved = [id for id in range(min(len(a), len(b))) if a.token_bytes(id) != b.token_bytes(id)]
    if moved:
        shown = ", ".join(f"{id}: {b.token_text(id)!r} is now {a.token_text(id)!r}" for id in moved[:5])
        yield Issue("high", "tokenizer", f"{len(moved)} ids stand for another text: {shown}")
    if own.config != other.config:
        yield Issue("high", "config", "the model's shape or settings differ from the trusted copy's")
        return
    layers: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for name in own.config.weights():
        x, y = (formats.unpack(each.tensors[name]).astype(np.float64) for each in (own, other))
        if not np.array_equal(x, y):
            change = float(np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30))
            layer = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else name
            layers[layer].append((name.removeprefix(f"{layer}."), change))
    for layer, parts in layers.items():
        largest = max(parts, key=lambda part: part[1])
        what = f"{len(parts)} tensors differ, most {largest[0]}, by {largest[1]:.2g} of its norm"
        yield Issue("high", layer, what)


def document(model: str, found: list[Issue]) -> dict[str, object]:
    """For programs."""
    return {"model": model, "findings": [issue.__dict__ for issue in found]}
