"""`cutaway sae`: sparse dictionaries of kept activations: trained, checked, looked into, written anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from cutaway.commands import console
from cutaway.commands.options import Flag, Force, Html, Json, Threads, Words
from cutaway.errors import UserError, plural
from cutaway.extras import need
from cutaway.inspect.activations import AGAINST, Activations, opened
from cutaway.inspect.sae import ACTIVATIONS, KINDS, TESTED, Activation, Kind
from cutaway.store import files

if TYPE_CHECKING:
    from cutaway.inspect.sae import SAE, Card

ALONE = 0.1  # the part of a direction below which a feature of two models is one model's alone
NAMED = 8  # activations of a dataset that a note names


def train(
    data: Path,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    name: Words = (),
    kind: str = "sae",
    against: Path | None = None,
    activation: str = "topk",
    features: int | None = None,
    k: int = 32,
    skip: Flag = False,
    steps: int = 2000,
    batch: int = 1024,
    learning_rate: float = 1e-3,
    seed: int = 0,
    keep_sinks: Flag = False,
    html: Html = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a sparse autoencoder, or transcoders, on activations that `cutaway activations` kept.

    A tenth of the tokens is held out. Attention sinks are left out: the first token of each text, and tokens
    whose norm is above ten times the median. They are so large that an autoencoder of them explains nearly
    all of the variance and little else. A training that was stopped goes on when the same command is given
    again.

    **Examples:**

    cutaway sae acts --output saes/layer15

    cutaway sae acts --output saes/layer15 --html sae.html

    cutaway sae acts --activation jumprelu --features 8192 --k 64 --output saes/wide

    cutaway sae acts --kind transcoder --skip --output transcoders

    cutaway sae acts --kind crosscoder --against tuned-acts --output crosscoder

    cutaway sae features saes/layer15 acts --html features.html

    :param data: A folder that `cutaway activations` wrote.
    :param output: The folder to write.
    :param name: The activation, where the dataset has several; again for those of a crosscoder.
    :param kind: sae writes what it reads, transcoder what the MLP makes of it (of every layer that the
        dataset has), cross_layer what later MLPs write too, crosscoder several activations at once.
    :param against: With a crosscoder: another model's activations of the same texts, beside these.
    :param activation: topk keeps k features of each token, batch_topk k on average, jumprelu those above
        thresholds that it learns.
    :param features: How many features; eight times the activation's numbers by default.
    :param k: Features active at a token; of batch_topk and jumprelu on average.
    :param skip: A linear map beside the features of a transcoder.
    :param steps: Steps of Adam.
    :param batch: Tokens a step.
    :param learning_rate: The highest learning rate.
    :param seed: Of the first weights and the order of tokens.
    :param keep_sinks: Train on attention sinks too.
    """
    need("training a sparse autoencoder", "torch")  # before anything is read
    of_kind, keeps = _kind(kind), _activation(activation)
    sets = of_kind in ("transcoder", "cross_layer")
    _check_output(output, force, sets)
    _check_words(of_kind, sets, name, html, force)
    if against is not None:
        if of_kind != "crosscoder":
            raise UserError(f"--against goes with --kind crosscoder, not with {of_kind}")
        name = (*name, *(f"{AGAINST}{one}" for one in name))
    found = opened(data, against)
    console.use_threads(threads)
    options = {
        "features": features,
        "activation": keeps,
        "k": k,
        "skip": skip,
        "kind": of_kind,
    }
    options |= {"steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    options["keep_sinks"] = keep_sinks
    if sets:
        made = _trained_set(found, output, force, options)
    else:
        made = [_trained(found, name or _taken(found, of_kind), output, force, options)]
    if html is not None:
        from cutaway.inspect import reports

        files.write_file(html, reports.autoencoder(made[0], found), force=force)
    if as_json:
        console.print_json([asdict(one.card) for one in made] if sets else asdict(made[0].card))
    else:
        _show(made, output, keep_sinks)


def _trained_set(data: Activations, output: Path, force: bool, options: dict[str, Any]) -> list[SAE]:
    """Dictionaries of all layers, each written when it is trained."""
    from cutaway.inspect import sae_training

    with console.watched() as progress, _going_on(output, output, force):
        return sae_training.train_set(data, output=output, progress=progress, **options)


def _trained(
    data: Activations, names: Sequence[str], output: Path, force: bool, options: dict[str, Any]
) -> SAE:
    """One dictionary, written where it is asked for."""
    from cutaway.inspect import sae_training

    checkpoint = output.with_name(f"{output.name}.part.safetensors")
    if force:
        checkpoint.unlink(missing_ok=True)
    with console.watched() as progress, _going_on(output, checkpoint, force):
        made = sae_training.train(data, names, checkpoint=checkpoint, progress=progress, **options)
        made.save(output, force)
        checkpoint.unlink(missing_ok=True)
    return made


def _taken(data: Activations, kind: Kind) -> tuple[str, ...]:
    """The activations of a dataset where none is named: of an sae the first, which is printed."""
    if kind == "sae" and len(data.names) > 1:
        others = ", ".join(data.names[1:NAMED]) + (", ..." if len(data.names) > NAMED else "")
        console.note(f"{data.names[0]} is trained on; --name takes another of the dataset: {others}")
    return data.names[:1] if kind == "sae" else data.names


@contextmanager
def _going_on(output: Path, kept: Path, force: bool) -> Iterator[None]:
    """When it is interrupted, print how to go on: from a checkpoint ``kept``, or the folder of a set."""
    try:
        yield
    except KeyboardInterrupt:
        after = "begins anew: no checkpoint is written yet"
        if any(kept.iterdir()) if kept.is_dir() else kept.exists():
            after = ("without --force " if force else "") + "goes on from the last checkpoint"
            if force and kept != output and output.exists():  # which is refused without --force
                after = "begins anew, by its --force"
        console.note(f"stopped: the same command {after}")
        raise


def _check_words(kind: Kind, sets: bool, name: Words, html: Path | None, force: bool) -> None:
    if html is not None:
        files.check_file(html, force)
        if sets:
            raise UserError(
                "--html draws one dictionary: `cutaway sae features FOLDER/layer_N` draws those of a set"
            )
    if sets and name:
        raise UserError(f"--kind {kind} takes every MLP of the dataset; --name goes with sae and crosscoder")


def _kind(word: str) -> Kind:
    if word in ACTIVATIONS:
        raise UserError(f"--kind {word} is --activation {word}: kinds are {', '.join(KINDS)}")
    for known in KINDS:
        if word == known:
            return known
    raise UserError(f"--kind {word} is not known: use one of {', '.join(KINDS)}")


def _activation(word: str) -> Activation:
    for known in ACTIVATIONS:
        if word == known:
            return known
    raise UserError(f"--activation {word} is not known: use one of {', '.join(ACTIVATIONS)}")


def _check_output(output: Path, force: bool, sets: bool) -> None:
    """UserError for a folder that is there; a set of layers is gone on with, or emptied by ``force``."""
    files.check_folder(output)
    if not sets:
        files.check_overwrite(output, force)
        return
    others = (
        [path for path in output.glob("*") if not path.name.startswith(("layer_", "."))]
        if output.exists()
        else []
    )
    if output.is_file() or others:
        files.check_overwrite(output, False)
    if force:
        import shutil

        for path in output.glob("layer_*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _show(made: list[SAE], output: Path, keep_sinks: bool) -> None:
    card = made[0].card
    of = made[0].name if len(made) == 1 else plural(len(made), "layer")
    console.say(f"{output}: {card.features:,} features of {of}, {_spelt(card)}, {card.steps:,} steps")
    console.say(
        f"{card.sinks:,} of {card.tokens:,} tokens are attention sinks and "
        + ("trained on too (--keep-sinks)" if keep_sinks else "left out (--keep-sinks trains on them too)")
    )
    usual = card.tokens - card.sinks
    drawn = usual - -(-usual // TESTED) + (card.sinks - -(-card.sinks // TESTED) if keep_sinks else 0)
    if card.batch > drawn:
        console.note(f"each step drew {card.batch:,} tokens of {drawn:,}, some of them several times")
    for one in made:
        where = f"{one.name}: " if len(made) > 1 else ""
        beside = "" if one.card.linear is None else f" (the best linear map: {one.card.linear:.3f})"
        console.say(
            f"{where}held out: {one.card.unexplained:.3f} of the variance unexplained{beside}, "
            f"{one.card.l0:.1f} features a token, {one.card.dead:,} dead; with attention sinks "
            f"{one.card.unexplained_with_sinks:.3f} unexplained"
        )
        if (parts := one.parts_against) is not None:
            first, other = int((parts < ALONE).sum()), int((parts > 1 - ALONE).sum())
            console.say(
                f"of {len(parts):,} features {first:,} are the first model's alone, {other:,} the other's "
                f"(above {1 - ALONE:.0%} of the direction), {len(parts) - first - other:,} both models'"
            )


def _spelt(card: Card) -> str:
    return f"{card.kind}, {card.activation}" + (" with a linear skip" if card.skip else "")


VERBS = {
    "check": "Replace activations by what it writes, and see what the model's loss becomes.",
    "features": "Show its features: texts, effects on logits, labels; or search them.",
    "texts": "Keep beside it the texts at which its features are strongest, for the page.",
    "convert": "Write it as SAELens's, circuit-tracer's or Cutaway's folder.",
}
sae = App(name="sae", version_flags=())
sae.default(train)
for _name, _about in VERBS.items():
    sae.command(f"cutaway.commands.sae_{_name}:{_name}", name=_name, help=_about)
