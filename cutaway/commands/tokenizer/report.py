"""`cutaway tokenizer report`: tokens that may lead a model astray."""

from typing import Annotated

import numpy as np
from cyclopts import Parameter

from cutaway.commands.console import model_path, print_json
from cutaway.commands.options import Json
from cutaway.commands.tokenizer.encode import Pattern
from cutaway.commands.tokenizer.show import display
from cutaway.commands.tokenizer_source import opened
from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.introspection import partial, unreachable

FAR = 5.0  # robust standard deviations below the median
SHOWN = 12


def report(
    tokenizer: str = "smollm2",
    /,
    *,
    model: Annotated[str | None, Parameter(help="Also look at this model's embeddings.")] = None,
    pattern: Pattern = None,
    as_json: Json = False,
) -> None:
    """List the tokens of a vocabulary that may be glitches.

    Unreachable tokens are those that their own text does not encode to; partial ones hold a part of a
    character. With --model, the tokens whose embedding is far shorter than others are listed: such are seldom
    or never trained. `<unk>`, byte and control tokens are left out of the first two.

    **Examples:**

    cutaway tokenizer report smollm2 --model smollm2

    :param tokenizer: A file, a folder, or a model's name that has a tokenizer.
    """
    tok = opened(tokenizer, pattern)
    norms = None if model is None else _norms(tok, model)
    found = {"unreachable": unreachable(tok), "partial": partial(tok)}
    if norms is not None:
        found["short"] = _short(norms)
    if as_json:
        print_json({"tokenizer": tokenizer, "tokens": len(tok)} | _document(tok, found, norms))
        return
    print(f"{tokenizer}: {len(tok):,} tokens, {len(tok.special)} of them control tokens")
    for kind, about in ABOUT.items():
        if kind in found:
            _print(tok, about, found[kind], norms if kind == "short" else None)


ABOUT = {
    "unreachable": "unreachable: their own text does not encode to them",
    "partial": "partial: no whole UTF-8",
    "short": "short embeddings: seldom or never trained, shortest first",
}


def _document(tok: Tokenizer, found: dict[str, list[int]], norms: np.ndarray | None) -> dict:
    def entry(id: int) -> dict:
        norm = {} if norms is None else {"norm": round(float(norms[id]), 6)}
        return {"id": id, "token": tok.token_text(id), **norm}

    return {kind: [entry(id) for id in ids] for kind, ids in found.items()}


def _print(tok: Tokenizer, about: str, ids: list[int], norms: np.ndarray | None) -> None:
    print(f"\n{len(ids):,} {about}")
    for id in ids[:SHOWN]:
        norm = "" if norms is None else f"  {norms[id]:.4f}"
        print(f"{id:>8}  {display(tok, tok.token_text(id))}{norm}")
    if len(ids) > SHOWN:
        print(f"          and {len(ids) - SHOWN:,} more (--json lists them)")


def _norms(tok: Tokenizer, model: str) -> np.ndarray:
    """The length of every token's embedding, float64 [v]."""
    from cutaway.quantization.formats import unpack
    from cutaway.weights import load

    tensors = load.read_checkpoint(model_path(model)).tensors
    if "embedding.weight" not in tensors:
        raise UserError(f"{model} has no table of embeddings")
    rows = unpack(tensors["embedding.weight"])
    if len(rows) < len(tok):
        raise UserError(f"{model} has {len(rows):,} embeddings, and the tokenizer {len(tok):,} tokens")
    return np.linalg.norm(rows[: len(tok)].astype(np.float64), axis=1)


def _short(norms: np.ndarray) -> list[int]:
    """The ids whose norm is FAR below the median, in units that outliers do not move; shortest first."""
    middle = np.median(norms)
    spread = 1.4826 * np.median(np.abs(norms - middle))
    low = np.flatnonzero(norms < middle - FAR * spread)
    return low[np.argsort(norms[low])].tolist()
