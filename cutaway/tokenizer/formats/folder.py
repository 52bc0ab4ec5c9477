"""A Hugging Face folder's settings of its tokenizer, beside the tokenizer's own file.

tokenizer_config.json and special_tokens_map.json name the tokens, generation_config.json those that end an
answer; the chat template is chat_template.jinja, else the one in tokenizer_config.json.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cutaway.errors import UserError, quoted
from cutaway.store.files import contents
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.formats import vocab_txt
from cutaway.tokenizer.formats.fields import Fields, parsed
from cutaway.tokenizer.formats.hf_json import token_list
from cutaway.tokenizer.spec import TokenizerSpec

ROLES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "pad": "pad_token",
    "unknown": "unk_token",
    "mask": "mask_token",
}


def completed(spec: TokenizerSpec, folder: Path) -> TokenizerSpec:
    """The spec with what the folder's other files say.

    What goes around a text is tokenizer.json's to say where there is one, as in transformers 5. Raises
    UserError for a file that is not what it should be.
    """
    config, names = optional(folder, "tokenizer_config.json"), optional(folder, "special_tokens_map.json")
    spec = _with_added(spec, config)
    roles: dict[str, Any] = {}
    for role, key in ROLES.items():
        text = token(names, key) if config.value.get(key) is None else token(config, key)
        id = _id_of(spec, text) if text else None
        if id is not None:
            roles[role] = id
            spec = _as_control(spec, id, str(text))
    if spec.unknown is not None:
        roles.pop("unknown", None)
    framed = (folder / "tokenizer.json").is_file()
    spec = replace(spec, **roles, **(_frame(spec, roles) if framed else {}))
    flags = Fields({}, config.where) if framed else config
    return replace(
        spec,
        eot=tuple(_ends(optional(folder, "generation_config.json"), len(spec.tokens))),
        add_bos=flags.get("add_bos_token", bool, spec.add_bos),
        add_eos=flags.get("add_eos_token", bool, spec.add_eos),
        chat_template=_template(config, folder) or spec.chat_template,
    )


def _frame(spec: TokenizerSpec, roles: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """What a file puts around a text, where the tokens of these roles are others."""
    around = {"before": (spec.before, spec.add_bos, "bos"), "behind": (spec.behind, spec.add_eos, "eos")}
    return {
        side: (getattr(spec, role),)
        for side, (ids, is_there, role) in around.items()
        if ids is None and is_there and roles.get(role, getattr(spec, role)) != getattr(spec, role)
    }


def wordpiece(folder: Path) -> TokenizerSpec:
    """The spec of a folder with a vocab.txt."""
    path = folder / "vocab.txt"
    spec = vocab_txt.read(contents(path), path.name, optional(folder, "tokenizer_config.json"))
    return completed(spec, folder)


def optional(folder: Path, name: str) -> Fields:
    """A JSON file of the folder; no fields where there is none."""
    path = folder / name
    return parsed(contents(path), name) if path.is_file() else Fields({}, name)


def token(fields: Fields, key: str) -> str | None:
    """The text of a token that a file names."""
    value = fields.value.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise UserError(f"{fields.where}: {key} is {quoted(value)}, not a token")
    return value


def _id_of(spec: TokenizerSpec, text: str) -> int | None:
    added = next((token.id for token in spec.added if token.text == text), None)
    return spec.vocabulary.get(text) if added is None else added


def listed(config: Fields) -> Iterator[tuple[int, Fields]]:
    """The ids and entries of tokenizer_config.json's added tokens. UserError for one that is no token."""
    for id, entry in config.get("added_tokens_decoder", dict, {}).items():
        where = f"{config.where}: added_tokens_decoder: {id}"
        if not isinstance(entry, dict) or not id.isdecimal() or len(id) > 9:
            raise UserError(f"{where} is not a token")
        yield int(id), Fields(entry, where)


def _with_added(spec: TokenizerSpec, config: Fields) -> TokenizerSpec:
    """The spec with the tokens that only tokenizer_config.json adds."""
    known = {token.id for token in spec.added}
    extra = [_added(entry, id) for id, entry in listed(config) if id not in known]
    if not extra:
        return spec
    added = (*spec.added, *extra)
    return replace(spec, added=added, tokens=token_list(spec.vocabulary, added, config.where))


def _added(entry: Fields, id: int) -> AddedToken:
    special = entry.get("special", bool, False)
    flags = {flag: entry.get(flag, bool, False) for flag in ("lstrip", "rstrip", "single_word")}
    normalized = entry.get("normalized", bool, not special)
    return AddedToken(id, entry.need("content", str), special, normalized=normalized, **flags)


def _as_control(spec: TokenizerSpec, id: int, text: str) -> TokenizerSpec:
    """A token that has a role is a control token, even where the tokenizer's own file does not list it."""
    if any(token.id == id for token in spec.added):
        marked = (replace(token, special=True) if token.id == id else token for token in spec.added)
        return replace(spec, added=tuple(marked))
    return replace(spec, added=(*spec.added, AddedToken(id, text, special=True)))


def _ends(config: Fields, size: int) -> Iterator[int]:
    value = config.value.get("eos_token_id")
    for id in value if isinstance(value, list) else [] if value is None else [value]:
        if type(id) is not int or not 0 <= id < size:
            raise UserError(f"{config.where}: eos_token_id is {quoted(value)}, not ids of this vocabulary")
        yield id


def _template(config: Fields, folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return contents(path).decode()
        except UnicodeDecodeError:
            raise UserError("chat_template.jinja is not UTF-8") from None
    if not isinstance(config.value.get("chat_template"), list):
        return config.get("chat_template", str, "") or None
    named = {entry.need("name", str): entry.need("template", str) for entry in config.subs("chat_template")}
    return named.get("default")
