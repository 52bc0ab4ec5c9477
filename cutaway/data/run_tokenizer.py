"""The tokenizer of a run: one that there is, one trained on the run's own text, or bytes."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cutaway.errors import UserError, quoted
from cutaway.store.files import digest, write_file
from cutaway.tokenizer import Tokenizer, bpe, pretokenize
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.spec import TokenizerSpec

END = "<|end|>"
VOCAB_MULTIPLE = 64  # an output head whose rows fill whole vectors
FILES = ("tokenizer.json", "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"


def of(name: str, texts: Iterable[str]) -> Tokenizer:
    """ "bytes"; "bpe:4096", trained on ``texts``; else a tokenizer's file, or a model's folder or name."""
    if name == "bytes":
        return of_bytes()
    if name.startswith("bpe:"):
        size = name.removeprefix("bpe:")
        if not size.isdecimal() or int(size) <= 257:
            raise UserError(f"data.tokenizer: {quoted(name)} is no vocabulary size: write bpe:4096")
        return opened(Tokenizer.train(texts, size=int(size), pattern="gpt2", special=[END]))
    return Tokenizer.load(name)


def of_bytes() -> Tokenizer:
    """One token a byte; ``END`` opens every text, and so ends the one before."""
    tokens = (*bpe.BYTES, END)
    spec = TokenizerSpec(
        tokens=tokens,
        vocabulary={token: id for id, token in enumerate(tokens)},
        merges=(),
        pretokenizer=pretokenize.named("gpt-2"),
        pre="gpt-2",
        added=(AddedToken(len(bpe.BYTES), END, special=True),),
    )
    return opened(Tokenizer(spec))


def opened(tokenizer: Tokenizer) -> Tokenizer:
    """The same, with ``END`` before every text and after it."""
    id = tokenizer.special[END]
    return Tokenizer(replace(tokenizer.spec, bos=id, eos=id, add_bos=True, before=None))


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """The tokenizer, and its chat template, as a folder that Hugging Face's libraries read too."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / FILES[0])
    roles = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
    }
    config |= {role: tokenizer.token_text(id) for role, id in roles.items() if id is not None}
    if tokenizer.chat_template is not None:
        write_file(folder / TEMPLATE, tokenizer.chat_template)
    write_file(folder / FILES[1], json.dumps(config, indent=2, ensure_ascii=False))
    return folder


def padded(tokens: int) -> int:
    """The vocabulary of a model for a tokenizer of so many tokens."""
    return tokens + -tokens % VOCAB_MULTIPLE


def size_of(name: str) -> int | None:
    """The padded vocabulary of a tokenizer by its name in a config; None where its file is needed."""
    if name == "bytes":
        return padded(len(bpe.BYTES) + 1)
    size = name.removeprefix("bpe:")
    return padded(int(size)) if name.startswith("bpe:") and size.isdecimal() else None


def fingerprint(folder: Path) -> str:
    """A digest of the files in a tokenizer's folder."""
    return "".join(digest(folder / name)[:32] for name in FILES)


def ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids that open and close a document: the same where a tokenizer has one for both."""
    end = tokenizer.eos if tokenizer.eos is not None else tokenizer.bos
    begin = tokenizer.bos if tokenizer.bos is not None and tokenizer.add_bos else end
    if begin is None or end is None:
        raise UserError(
            "the tokenizer declares no end-of-text token, so documents cannot be separated: train one with "
            'cutaway tokenizer train --end-of-text "<|endoftext|>"'
        )
    return begin, end


def lengths(tokenizer: Tokenizer) -> list[int]:
    """How many bytes of text each id stands for; control tokens for none."""
    counts = []
    for id in range(len(tokenizer)):
        hidden = tokenizer.is_special(id) or tokenizer.spec.tokens[id] is None
        counts.append(0 if hidden else len(tokenizer.token_bytes(id)))
    return counts
