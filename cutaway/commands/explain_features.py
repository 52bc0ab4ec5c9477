"""`cutaway explain --sae`: the strongest features of each token, of a sparse autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.commands.console import print_json
from cutaway.errors import visible

if TYPE_CHECKING:
    from cutaway.inspect.sae import SAE
    from cutaway.lm import LanguageModel


def autoencoder(folder: Path) -> tuple[SAE, dict[int, str]]:
    """The autoencoder that `cutaway sae` wrote, and the labels of its features."""
    from cutaway.inspect import features, sae_folders

    made, own = sae_folders.load_one(folder)
    return made, features.labels(own, made)


def show(
    lm: LanguageModel, ids: list[int], sae: SAE, labels: dict[int, str], name: str, as_json: bool
) -> None:
    """Prints each token's features, the strongest first."""
    read = sae.rows(lm.activations([ids], sae.reads))
    found, sinks = sae.top(read), sae.sinks(read).tolist()
    tokens = [lm.tokenizer.token_bytes(id).decode(errors="backslashreplace") for id in ids]
    pairs = list(zip(tokens, found, strict=True))
    if as_json:
        rows = [
            {
                "token": token,
                "attention_sink": sink,
                "features": [one._asdict() | {"label": labels.get(one.feature, "")} for one in best],
            }
            for (token, best), sink in zip(pairs, sinks, strict=True)
        ]
        print_json({"model": name, "activation": sae.name, "tokens": rows})
        return
    print(f"{name}, {sae.name}: feature and its activation, the strongest first")
    for (token, best), sink in zip(pairs, sinks, strict=True):
        names = (visible(f"{one.feature} {labels.get(one.feature, '')}".strip()) for one in best)
        strongest = "  ".join(f"{name} {one.activation:.2f}" for name, one in zip(names, best, strict=True))
        print(f"{token!r:>16}  {strongest}" + ("  (an attention sink, not trained on)" if sink else ""))
