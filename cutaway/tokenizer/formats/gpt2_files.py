"""GPT-2's two files, vocab.json and merges.txt, of a folder without a tokenizer.json: byte-level BPE.

They hold no rules: how text is cut, and what goes around it, is known of the tokenizer's class, which
tokenizer_config.json names, or of the model's type in config.json. Without either they are GPT-2's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cutaway.errors import UserError, quoted
from cutaway.store.files import contents
from cutaway.tokenizer import template
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import BYTES, Pair
from cutaway.tokenizer.formats import folder
from cutaway.tokenizer.formats.fields import Fields, limited, parsed
from cutaway.tokenizer.formats.hf_json import token_list
from cutaway.tokenizer.formats.merges import checked
from cutaway.tokenizer.normalize import FORMS, Rule
from cutaway.tokenizer.pretokenize import GPT2, SPELLINGS, PrefixSpace, Split
from cutaway.tokenizer.spec import TokenizerSpec

VOCABULARY, MERGES = "vocab.json", "merges.txt"
ROLES = [f"{role}_token" for role in ("bos", "eos", "unk", "pad", "cls", "sep", "mask")]
QWEN2 = dict(SPELLINGS[:4])["qwen2"][0]


@dataclass(frozen=True)
class Kind:
    """What the files of a class do not say: the pattern, the normaliser, and the roles of tokens."""

    pattern: str = GPT2
    normalizer: tuple[Rule, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    framed: bool = False  # a text is put between bos and eos


_END = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_ROBERTA |= {"mask_token": "<mask>"}
_QWEN = {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_GPT2, _FRAMED = Kind(roles=_END), Kind(roles=_ROBERTA, framed=True)
KINDS = {
    "GPT2": _GPT2,
    "CodeGen": _GPT2,
    "Roberta": _FRAMED,
    "Bart": _FRAMED,
    "Longformer": _FRAMED,
    "LED": _FRAMED,
    "Qwen2": Kind(QWEN2, (FORMS["NFC"],), _QWEN),
}
MODELS = {
    "gpt2": "GPT2",
    "gpt_neo": "GPT2",
    "gptj": "GPT2",
    "opt": "GPT2",
    "codegen": "CodeGen",
    "phi": "CodeGen",
}
MODELS |= {"roberta": "Roberta", "bart": "Bart", "longformer": "Longformer", "led": "LED", "qwen2": "Qwen2"}


def read(path: Path) -> TokenizerSpec:
    """The spec of a folder with both files. UserError for a class whose rules are not known."""
    config = folder.optional(path, "tokenizer_config.json")
    kind = _kind(path, config)
    vocabulary = _vocabulary(path / VOCABULARY)
    merges = _merges(path / MERGES)
    checked(merges, vocabulary, MERGES)
    added = _added(path, config, kind, vocabulary)
    prefix = [PrefixSpace()] if config.get("add_prefix_space", bool, False) else []
    spec = TokenizerSpec(
        tokens=token_list(vocabulary, added, str(path)),
        vocabulary=vocabulary,
        merges=merges,
        normalizer=kind.normalizer,
        pretokenizer=(*prefix, Split(kind.pattern)),
        added=added,
        drops_first=True,
        add_bos=kind.framed,
        add_eos=kind.framed,
    )
    ids = {token.text: token.id for token in added}
    named = _roles(folder.optional(path, "special_tokens_map.json"), config, kind)
    roles = {role: ids.get(named.get(key, "")) for role, key in folder.ROLES.items()}
    spec = folder.completed(replace(spec, **roles), path)
    begin, end = spec.bos, spec.eos
    if not kind.framed or begin is None or end is None:
        return spec
    return replace(spec, template=template.roberta(begin, end))


def _kind(path: Path, config: Fields) -> Kind:
    name = config.get("tokenizer_class", str, "").removesuffix("Fast").removesuffix("Tokenizer")
    if not name:
        model = folder.optional(path, "config.json").get("model_type", str, "")
        name = MODELS.get(model, model or "GPT2")
    if name not in KINDS:
        raise UserError(
            f"{path}: {VOCABULARY} and {MERGES} do not say how text is cut, and the rules of {quoted(name)} "
            f"are not known here, but those of {', '.join(KINDS)}: put its tokenizer.json there"
        )
    return KINDS[name]


def _vocabulary(file: Path) -> dict[str, int]:
    found = parsed(contents(file), file.name).value
    limited(len(found), file.name)
    for text, id in found.items():
        if type(id) is not int:
            raise UserError(f"{file.name}: the id of {quoted(text)} is {quoted(id)}, not a whole number")
    if lacking := [one for one in "ae" if one not in found]:
        raise UserError(f"{file.name} has no token {lacking[0]!r}: it is no vocabulary of byte-level BPE")
    if not any(found.keys() & {"Ġ", *BYTES[128:]}):
        raise UserError(f"{file.name} writes no byte as GPT-2 does: it is no vocabulary of byte-level BPE")
    return found


def _merges(file: Path) -> list[Pair]:
    try:
        lines = contents(file).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{file.name} is not UTF-8") from None
    lines = lines[1:] if lines[0].startswith("#version") else lines
    out: list[Pair] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise UserError(f"{file.name}: line {number} is {quoted(line)}, not two tokens")
        out.append((pair[0], pair[1]))
    return out


def _roles(names: Fields, config: Fields, kind: Kind) -> dict[str, str]:
    """The token of each role: tokenizer_config's, else special_tokens_map's, else the class's."""
    found = {
        key: folder.token(config, key) or folder.token(names, key) or kind.roles.get(key) for key in ROLES
    }
    return {key: text for key, text in found.items() if text}


def _added(path: Path, config: Fields, kind: Kind, vocabulary: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """added_tokens.json's tokens, and those with a role; tokenizer_config's own list comes later."""
    extra = folder.optional(path, "added_tokens.json").value
    listed = config.get("added_tokens_decoder", dict, {})
    taken = {int(id) for id in listed if id.isdecimal()}
    names = folder.optional(path, "special_tokens_map.json")
    special = set(_roles(names, config, kind).values())
    for fields in (names, config):
        for value in fields.get("additional_special_tokens", list, []):
            special.add(value["content"] if isinstance(value, dict) and "content" in value else str(value))
    ids = {**vocabulary, **extra}
    out = []
    for text, id in ids.items():
        if type(id) is not int:
            raise UserError(
                f"added_tokens.json: the id of {quoted(text)} is {quoted(id)}, not a whole number"
            )
        if id not in taken and (text in extra or text in special):
            out.append(AddedToken(id, text, special=text in special, lstrip=text == "<mask>"))
    return tuple(out)
