"""`cutaway sae`: train a sparse autoencoder on an activation dataset."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Force, Html, Json, Threads
from cutaway.extras import need
from cutaway.inspect.activations import Activations
from cutaway.store import files


def sae(
    data: Path,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    name: str | None = None,
    kind: Literal["topk", "jumprelu"] = "topk",
    features: int | None = None,
    k: int = 32,
    steps: int = 2000,
    batch: int = 1024,
    learning_rate: float = 1e-3,
    seed: int = 0,
    keep_sinks: bool = False,
    html: Html = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a sparse autoencoder on activations that `cutaway activations` kept; a tenth is held out.

    Attention sinks are left out: the first token of each text, and tokens whose norm is above ten times the
    median. They are so large that an autoencoder of them explains nearly all of the variance and little else.

    **Examples:**

    cutaway sae acts --output saes/layer15

    cutaway sae acts --output saes/layer15 --html sae.html

    cutaway sae acts --kind jumprelu --features 8192 --k 64 --output saes/wide

    :param data: A folder that `cutaway activations` wrote.
    :param output: The folder to write.
    :param name: The activation, where the dataset has several.
    :param kind: topk keeps k features of each token, jumprelu those above thresholds that it learns.
    :param features: How many features; eight times the activation's numbers by default.
    :param k: Features active at a token; of jumprelu on average.
    :param steps: Steps of Adam.
    :param batch: Tokens a step.
    :param learning_rate: The highest learning rate.
    :param seed: Of the first weights and the order of tokens.
    :param keep_sinks: Train on attention sinks too.
    """
    need("training a sparse autoencoder", "torch")  # before anything is read
    files.check_overwrite(output, force)
    files.check_folder(output)
    if html is not None:
        files.check_file(html, force)
    found = Activations.open(data)
    console.use_threads(threads)
    from cutaway.inspect.sae_training import train

    name = found.names[0] if name is None else name
    width = int(found.rows(name, [0]).size)
    with console.watched() as progress:
        made = train(
            found,
            name,
            features=8 * width if features is None else features,
            kind=kind,
            k=k,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            seed=seed,
            keep_sinks=keep_sinks,
            progress=progress,
        )
    made.save(output, force)
    if html is not None:
        from cutaway.inspect import reports

        files.write(html, reports.autoencoder(made, found), force=force)
    if as_json:
        console.print_json(asdict(made.card))
    else:
        _show(made.card, output, keep_sinks)


def _show(card: Any, output: Path, keep_sinks: bool) -> None:
    console.say(f"{output}: {card.features:,} features of {card.name}, {card.kind}, {card.steps:,} steps")
    console.say(
        f"{card.sinks:,} of {card.tokens:,} tokens are attention sinks and "
        + ("trained on too (--keep-sinks)" if keep_sinks else "left out (--keep-sinks trains on them too)")
    )
    console.say(
        f"held out: {card.unexplained:.3f} of the variance unexplained, {card.l0:.1f} features a token, "
        f"{card.dead:,} dead; with attention sinks {card.unexplained_with_sinks:.3f} unexplained"
    )
