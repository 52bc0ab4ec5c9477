"""`cutaway explain --sae`: the strongest features of each token, of a sparse autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.commands.console import print_json

if TYPE_CHECKING:
    from cutaway.inspect.sae import SAE
    from cutaway.lm import LanguageModel


def autoencoder(folder: Path) -> SAE:
    """The autoencoder that `cutaway sae` wrote."""
    from cutaway.inspect import sae_folders

    return sae_folders.load(folder)


def show(lm: LanguageModel, ids: list[int], sae: SAE, name: str, as_json: bool) -> None:
    """Prints each token's features, the strongest first."""
    read = sae.rows(lm.activations([ids], sae.reads))
    found, sinks = sae.top(read), sae.sinks(read).tolist()
    tokens = [lm.tokenizer.token_bytes(id).decode(errors="backslashreplace") for id in ids]
    pairs = list(zip(tokens, found, strict=True))
    if as_json:
        rows = [
            {"token": token, "attention_sink": sink, "features": [one._asdict() for one in best]}
            for (token, best), sink in zip(pairs, sinks, strict=True)
        ]
        print_json({"model": name, "activation": sae.name, "tokens": rows})
        return
    print(f"{name}, {sae.name}: feature and its activation, the strongest first")
    for (token, best), sink in zip(pairs, sinks, strict=True):
        strongest = "  ".join(f"{one.feature} {one.activation:.2f}" for one in best)
        print(f"{token!r:>16}  {strongest}" + ("  (an attention sink, not trained on)" if sink else ""))
