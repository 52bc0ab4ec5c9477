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
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cutaway.errors import OperationalError, UserError, escaped
from cutaway.store.files import digest
from cutaway.tokenizer import Tokenizer, chat
from cutaway.weights import load, quant
from cutaway.weights.load import PICKLES, Checkpoint

Severity = Literal["high", "medium", "low", "info"]
ORDER = ("high", "medium", "low", "info")
CONSTANT = re.compile(r"'((?:[^'\\\n]|\\.){2,200})'|\"((?:[^\"\\\n]|\\.){2,200})\"")
MOST_CONSTANTS = 200
WORDS = re.compile(r"[^\W\d_]{2,}")
ROLES = {"user", "assistant", "system", "tool", "model", "developer", "ipython", "function"}


@dataclass(frozen=True)
class Issue:
    """One finding: how bad, in which file or part, and what."""

    severity: Severity
    where: str
    what: str


def audit(path: Path, trusted: Path | None = None, public_key: Path | None = None) -> list[Issue]:
    """All findings about a model's file or folder, the worst first; ``trusted`` is a copy to compare with.

    ``public_key`` is that of the signed manifest: an elliptic curve key in a PEM file.
    """
    found = [*_files(path), *_signature(path, public_key)]
    try:
        checkpoint = load.read(path)
        tokenizer = checkpoint.tokenizer
    except (UserError, OperationalError) as error:
        found.append(Issue("high", str(path), f"it cannot be read: {error}"))
        return _sorted(found)
    named = templates(path, checkpoint)
    for name, template in named.items():
        found += check_template(name, template, tokenizer)
    found += _vocabulary(tokenizer)
    if trusted is not None:
        other = load.read(trusted)
        found += _compared(checkpoint, named, other, templates(trusted, other))
    return _sorted(found)


def _sorted(found: list[Issue]) -> list[Issue]:
    return sorted(found, key=lambda issue: ORDER.index(issue.severity))


# ---- files -------------------------------------------------------------------------------------------------


def _files(path: Path) -> Iterator[Issue]:
    root = path.resolve()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        name = file.name if path.is_file() else str(file.relative_to(path))
        if path.is_dir() and not file.resolve().is_relative_to(root):
            yield Issue("medium", name, f"it is a link out of the folder, to {file.resolve()}")
        if why := _pickled(file):
            yield Issue("high", name, f"{why}: loading it elsewhere can run code; Cutaway never unpickles")
        if file.suffix == ".py":
            yield Issue("medium", name, "it is Python code, which trust_remote_code would run")
        if file.name == "config.json" and "auto_map" in load.parsed(file):
            yield Issue("medium", name, "auto_map names code that trust_remote_code would run")


def _pickled(file: Path) -> str | None:
    """Why a file is a pickle, by its content and then by its name."""
    with file.open("rb") as opened:
        head = opened.read(2)
    if head[:1] == b"\x80" and head[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "it is a pickle"
    if head == b"PK" and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            if any(name.endswith(".pkl") for name in packed.namelist()):
                return "it is an archive with a pickle"
    return "its name is a pickle's" if any(file.match(pattern) for pattern in PICKLES) else None


# ---- signatures --------------------------------------------------------------------------------------------


def manifest_of(path: Path) -> Path | None:
    """The signed manifest of a model: FILE.sig, or FOLDER/model.sig, or FOLDER.sig."""
    beside = path.resolve().with_name(path.resolve().name + ".sig")
    return next((each for each in (path / "model.sig", beside) if each.is_file()), None)


def _signature(path: Path, public_key: Path | None) -> Iterator[Issue]:
    signature = manifest_of(path)
    if signature is None:
        severity: Severity = "info" if public_key is None else "high"
        yield Issue(severity, str(path), "no file of it is signed: there is no manifest (.sig) beside it")
        return
    try:
        named = signed_digests(signature)
    except UserError as error:
        yield Issue("high", signature.name, str(error))
        return
    if public_key is None:
        yield Issue("low", signature.name, "the manifest was not verified: give its --public-key")
    changed = [name for name, expected in named.items() if not _equal(path, name, expected)]
    for name in changed:
        yield Issue("high", name, f"it is missing or is not the file that {signature.name} names")
    if public_key is not None and not changed and (why := _unverified(path, signature, public_key)):
        yield Issue("high", signature.name, f"the signature does not hold: {why}")
    if path.is_dir():
        own = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        for name in sorted(own - set(named) - {signature.name}):
            yield Issue("medium", name, f"it is not signed: {signature.name} does not name it")


def signed_digests(signature: Path) -> dict[str, str]:
    """Digests by path that a manifest names, not verified; a single file's path is ".".

    UserError for what cannot be read as one.
    """
    try:
        envelope = json.loads(signature.read_bytes())["dsseEnvelope"]
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
    inside = file.resolve().is_relative_to(path.resolve())
    return inside and file.is_file() and digest(file) == expected


def _unverified(path: Path, signature: Path, public_key: Path) -> str | None:
    """Why a manifest is not signed with this key, if it is not."""
    try:
        from model_signing import verifying
    except ImportError:
        raise UserError("signatures need model-signing: pip install 'cutaway[bundle]'") from None
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_ignore_unsigned_files(path.is_dir()).verify(path, signature)
    except Exception as error:  # the library raises errors of its own and of its parsers
        return escaped(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__
    return None


# ---- templates ---------------------------------------------------------------------------------------------


def templates(path: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """Every chat template by where it is: the one that is used, and named ones that others may use."""
    found = {
        key: text
        for key, text in checkpoint.metadata.items()
        if key.startswith("tokenizer.chat_template") and isinstance(text, str)
    }
    if path.is_dir():
        for file in sorted(path.rglob("*.jinja")):
            found[str(file.relative_to(path))] = file.read_text("utf-8")
        for name in ("tokenizer_config.json", "chat_template.json"):
            entry = load.parsed(path / name).get("chat_template") if (path / name).is_file() else None
            named = [{"name": "default", "template": entry}] if isinstance(entry, str) else entry or []
            found |= {f"{name}: {one['name']}": one["template"] for one in named}
    if checkpoint.chat_template is not None and checkpoint.chat_template not in found.values():
        found["chat_template"] = checkpoint.chat_template
    return found


def check_template(name: str, template: str, tokenizer: Tokenizer) -> Iterator[Issue]:
    """The template's prose, and what of it depends on a message's words."""
    try:
        neutral = {shape: _prose(template, tokenizer, shape, "xx") for shape in SHAPES}
    except UserError as error:
        yield Issue("medium", name, f"it takes no plain conversation: {error}")
        return
    prose = {text for shape in neutral.values() for text in shape if len(_words(text)) > 1}
    for text in sorted(prose):
        yield Issue("info", name, f"it says to the model, in its own words: {' '.join(text.split())!r}")
    quoted = {next(filter(None, match.groups())) for match in CONSTANT.finditer(template)}
    constants = sorted(text.replace("\\n", "\n") for text in quoted)
    if len(constants) > MOST_CONSTANTS:
        yield Issue("medium", name, f"it has {len(constants)} constants, and {MOST_CONSTANTS} were tried")
    for text in constants[:MOST_CONSTANTS]:
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
    for text, id in sorted(tokenizer.added.items(), key=lambda item: item[1]):
        if text not in tokenizer.special and re.fullmatch(r"<\|.+\|>|<[/｜].+>|\[/?[A-Z_]+\]", text):
            yield Issue(
                "low", f"token {id}", f"{text!r} looks like a control token and is marked as plain text"
            )


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
        x, y = (quant.unpack(each.tensors[name]).astype(np.float64) for each in (own, other))
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
