"""Mistral's tekken.json: byte-level BPE as ranks, with its pattern and its control tokens.

Control tokens have the first ids and text the ids behind them. The file lists more ranks than are used: those
from ``default_vocab_size`` on have no id. Files of before 2025 name no control tokens, whose names and order
are then those of mistral-common.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from cutaway.errors import UserError, quoted
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import spell
from cutaway.tokenizer.formats.fields import Fields, limited
from cutaway.tokenizer.formats.hf_json import token_list
from cutaway.tokenizer.pretokenize import Split, compiled
from cutaway.tokenizer.spec import TokenizerSpec

_CONTROL = """<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS]
[/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT]
[/SYSTEM_PROMPT] [TOOL_CONTENT]"""
CONTROL = tuple(_CONTROL.split())
MOST_CONTROLS = 100_000  # a published file has 1,000, and two numbers of a file make as many tokens
NAMELESS = ("v1", "v2", "v3", "v7")  # the versions whose files may leave the names out


def read(whole: Fields) -> TokenizerSpec:
    """The spec of a tekken.json. Raises UserError for what is none."""
    config = whole.sub("config")
    controls = config.need("default_num_special_tokens", int)
    size = config.need("default_vocab_size", int)
    limited(size, whole.where)
    limited(controls, config.where, "control tokens", MOST_CONTROLS)
    if not 0 <= controls < size:
        raise UserError(f"{config.where}: {controls:,} control tokens do not fit into {size:,} ids")
    pattern = config.need("pattern", str)
    compiled(pattern)
    ranks = _ranks(whole, size - controls)
    vocabulary = {text: rank + controls for text, rank in ranks.items()}
    added = tuple(
        AddedToken(id, text, special=True) for id, text in enumerate(_names(whole, config, controls))
    )
    ids = {token.text: token.id for token in added}
    begin = ids.get("<s>")
    return TokenizerSpec(
        tokens=token_list(vocabulary, added, whole.where),
        vocabulary=vocabulary,
        ranks=ranks,
        whole=True,
        pretokenizer=(Split(pattern),),
        added=added,
        bos=begin,
        eos=ids.get("</s>"),
        pad=ids.get("<pad>"),
        add_bos=begin is not None,
    )


def _ranks(whole: Fields, count: int) -> dict[str, int]:
    """The first ranks, by the text of their bytes; no rank is left out."""
    ranks: dict[str, int] = {}
    for entry in whole.subs("vocab"):
        rank, token = entry.need("rank", int) if entry.has("rank") else -1, entry.need("token_bytes", str)
        if rank >= count:
            continue
        try:
            text = spell(base64.b64decode(token, validate=True))
        except (binascii.Error, ValueError):
            raise UserError(f"{entry.where}: {quoted(token)} is not base64") from None
        if not text or text in ranks:
            raise UserError(f"{entry.where}: the token {quoted(text)} is empty or double")
        ranks[text] = rank
    if sorted(ranks.values()) != list(range(count)):
        raise UserError(f"{whole.where}: vocab should have each rank from 0 to {count - 1:,} once")
    return ranks


def _names(whole: Fields, config: Fields, count: int) -> Iterator[str]:
    """The control tokens in the order of their ids."""
    known: dict[int, Any] = {}
    if whole.has("special_tokens"):
        for entry in whole.subs("special_tokens"):
            known[entry.need("rank", int)] = text = entry.need("token_str", str)
            if not text:
                raise UserError(f"{entry.where}: the token_str of a control token is empty")
        if set(known) != set(range(len(known))) or len(known) > count:
            raise UserError(f"{whole.where}: special_tokens should have ranks from 0 on, {count:,} at most")
    elif config.get("version", str, "") in NAMELESS:
        known = dict(enumerate(CONTROL[:count]))
    else:
        raise UserError(f"{whole.where} names no special_tokens, as a file of its version should")
    for id in range(count):
        yield known.get(id, f"<SPECIAL_{id}>")
