"""A rank file in a model's folder: its tokenizer's class says how text is cut, and the control tokens.

Those classes are code in the model's own folder, which is never run; what they do is written down here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cutaway.errors import UserError, quoted
from cutaway.store.files import contents
from cutaway.tokenizer.formats import folder, tiktoken
from cutaway.tokenizer.formats.fields import Fields
from cutaway.tokenizer.formats.gpt2_files import QWEN2
from cutaway.tokenizer.normalize import FORMS, Rule
from cutaway.tokenizer.pretokenize import CL100K
from cutaway.tokenizer.spec import TokenizerSpec

_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER, _LOWER = (rf"(?:(?!\p{{Han}}){letters})" for letters in _CASED)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI = "|".join(
    [
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def _qwen(count: int, config: Fields) -> dict[str, int]:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    return {name: count + i for i, name in enumerate(names)}


def _kimi(count: int, config: Fields) -> dict[str, int]:
    """The listed tokens, and a reserved one for each other id of 258."""
    listed = _listed(config)
    texts = {id: text for text, id in listed.items()}
    return {texts.get(id, f"<|reserved_token_{id}|>"): id for id in range(count, count + 258)}


def _listed(config: Fields) -> dict[str, int]:
    return {entry.need("content", str): id for id, entry in folder.listed(config)}


def _cl100k(count: int, config: Fields) -> dict[str, int]:
    return _listed(config) or {"<|endoftext|>": 100257}


@dataclass(frozen=True)
class Kind:
    """What a class does with a rank file."""

    pattern: str
    special: Callable[[int, Fields], Mapping[str, int]]
    normalizer: tuple[Rule, ...] = ()


KINDS = {
    "QWenTokenizer": Kind(QWEN2, _qwen, (FORMS["NFC"],)),
    "TikTokenTokenizer": Kind(KIMI, _kimi),
    "ChatGLM4Tokenizer": Kind(CL100K, lambda count, config: _listed(config)),
    "Phi3SmallTokenizer": Kind(CL100K, _cl100k),
}


def read(path: Path) -> TokenizerSpec:
    """The spec of a folder with this rank file. UserError for a class whose rules are not known."""
    config = folder.optional(path.parent, "tokenizer_config.json")
    name = config.get("tokenizer_class", str, "")
    if name not in KINDS:
        raise UserError(
            f"{path} does not say how text is cut, and the rules of {quoted(name or 'its class')} are not "
            f"known here, but those of {', '.join(KINDS)}: load the file by itself with pattern= and special="
        )
    kind, data = KINDS[name], contents(path)
    special = kind.special(tiktoken.size(data, path.name), config)
    spec = tiktoken.read(data, path.name, kind.pattern, special)
    return folder.completed(replace(spec, normalizer=kind.normalizer), path.parent)
