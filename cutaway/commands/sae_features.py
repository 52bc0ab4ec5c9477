"""`cutaway sae features`: what the features of a sparse dictionary are: texts, effects, labels, a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

from cutaway import lm
from cutaway.commands import console
from cutaway.commands.options import Flag, Force, Html, Json, Threads, Words
from cutaway.errors import UserError, visible
from cutaway.inspect import feature_labels, feature_pages, sae_folders, steering
from cutaway.inspect import features as of_features
from cutaway.inspect.activations import Activations, opened
from cutaway.inspect.edits import Add, to_json
from cutaway.inspect.features import Effects, Example, Scan
from cutaway.inspect.sae import LAYER, SAE
from cutaway.store import files

if TYPE_CHECKING:
    from cutaway.lm import LanguageModel

SHOWN = 20
INTO_STREAM = ("out", "mlp.down", "mlp.out", "mlp_post_norm", "attention.out", "attention_post_norm")


def features(
    folder: Path,
    data: Path,
    /,
    *,
    feature: Annotated[tuple[int, ...], Parameter(negative=())] = (),
    search: str | None = None,
    label: Words = (),
    suggest: Flag = False,
    judge: Flag = False,
    pairs: int = feature_labels.PAIRS,
    steering_file: Path | None = None,
    neuronpedia: Path | None = None,
    html: Html = None,
    model: str | None = None,
    against: Path | None = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show the features of a sparse dictionary: where they fire, what they promote, and what they are called.

    Without --feature the features that fire most are listed, or those that --search finds by label, token or
    number. One text in five of the dataset is held out: labels are judged there. --judge asks the model which
    of two texts has to do with the label, one in which the feature fires and one in which it does not.

    **Examples:**

    cutaway sae features saes/layer15 acts

    cutaway sae features saes/layer15 acts --search Paris

    cutaway sae features saes/layer15 acts --feature 17 --label "17=names of months" --judge

    cutaway sae features saes/layer15 acts --feature 17 --feature 40 --html features.html

    cutaway sae features saes/layer15 acts --feature 17 --steering-file months.safetensors

    :param folder: A folder that `cutaway sae` wrote, or another tool's; of a set the folder of one layer.
    :param data: An activation dataset of what it reads.
    :param feature: A feature's number, shown with its texts; again for more.
    :param search: Only the features in whose label, tokens or number this is.
    :param label: NUMBER=TEXT, kept in the folder's labels.json; again for more. An empty text removes one.
    :param suggest: Let the model name the features that are shown and have no label.
    :param judge: Judge the labels of the features that are shown, on held-out texts.
    :param pairs: Pairs of texts that a label is judged on.
    :param steering_file: Write the one feature's direction, times its largest activation, for --steer.
    :param neuronpedia: Write the features that are shown as Neuronpedia's JSON.
    :param model: The model; the one that the dictionary is of by default.
    :param against: Of a crosscoder of two models, the other one's dataset.
    """
    made, folder = sae_folders.load_one(folder)
    for one in feature:
        made.check_feature(one)
    if steering_file is not None and len(feature) != 1:
        raise UserError(f"--steering-file takes one --feature, and {len(feature) or 'none'} are given")
    if pairs < 1:
        raise UserError(f"--pairs is {pairs}: it goes from 1")
    if (suggest or judge or neuronpedia or html) and not feature and not search:
        raise UserError("name the features to be shown: --feature 17, again for more, or --search WORD")
    for path in (html, neuronpedia, steering_file):
        if path is not None:
            files.check_file(path, force)
    for one in label:
        _set(folder, made, one)
    console.use_threads(threads)
    dataset = opened(data, against)
    loaded = lm.load(console.model_path(model or made.card.model))
    with console.watched() as progress:
        view = _View(made, dataset, loaded, folder, list(feature), search, progress)
        if suggest:
            view.suggest()
        if judge:
            view.judge(pairs, progress)
    if steering_file is not None:
        _write_steering(view, feature[0], steering_file)
    if html is not None:
        files.write_file(html, view.page(), force=force)
        console.wrote(html)
    if neuronpedia is not None:
        files.write_file(neuronpedia, json.dumps(view.neuronpedia(), indent=1), force=force)
        console.wrote(neuronpedia)
    if as_json:
        console.print_json(view.document())
        return
    view.print()
    console.note(
        f"percentages are of {len(view.scan.rows):,} tokens, none of them an attention sink; one text in "
        "five is held out"
    )


class _View:
    """The requested view of one dictionary: scan, effects and labels."""

    def __init__(
        self,
        made: SAE,
        data: Activations,
        loaded: LanguageModel,
        folder: Path,
        features: list[int],
        search: str | None,
        progress: files.Progress,
    ) -> None:
        self.made, self.data, self.lm, self.folder = made, data, loaded, folder
        self.labels = of_features.labels(folder, made)
        self.judged: dict[int, feature_pages.Judged] = {}
        scan = Scan(made, data, features, progress=progress)
        firing = [int(one) for one in np.flatnonzero(scan.often > 0)]
        self.effects = self._effects(list(dict.fromkeys((*features, *firing))))
        self.lines = feature_pages.rows(scan, self.effects, self.labels, loaded)
        if search is not None:
            self.lines = feature_pages.found(self.lines, search)
            if not self.lines:
                raise UserError(f"no feature has {search!r} in its label, its tokens or its number")
        self.features, self.scan = features, scan

    def _effects(self, features: list[int]) -> dict[int, Effects]:
        if self.made.decoder(self.made.writes[-1]).shape[1] != self.lm.config.width:
            return {}
        return dict(zip(features, of_features.effects(self.lm, self.made, features), strict=True))

    def suggest(self) -> None:
        for one in self.features:
            if one not in self.labels:
                self.labels[one] = feature_labels.suggested(self.lm, self.scan, one)
                of_features.set_label(self.folder, self.made, one, self.labels[one])

    def judge(self, pairs: int, progress: files.Progress) -> None:
        from cutaway.evaluate.statistics import proportion

        named = [one for one in self.features if one in self.labels]
        if not named:
            raise UserError('--judge needs a label: give --label "17=names of months" or --suggest')
        held = Scan(self.made, self.data, named, held=True, progress=progress)
        for one in named:
            right, of = feature_labels.judged(self.lm, held, one, self.labels[one], pairs, progress=progress)
            self.judged[one] = feature_pages.Judged(right, of, *proportion(right, of))

    def page(self) -> str:
        return feature_pages.page(self.scan, self.effects, self.labels, self.judged, self.lm)

    def neuronpedia(self) -> dict[str, Any]:
        return feature_pages.neuronpedia(self.scan, self.effects, self.labels, self.lm)

    def document(self) -> dict[str, Any]:
        """All of it for programs; ``edit`` is what a request to the server takes."""
        keys = [name.replace(" ", "_") for name in feature_pages.COLUMNS]
        listed = [dict(zip(keys, line, strict=True)) for line in self.lines]
        if not self.features:
            return {"features": listed}
        shown = []
        for one in self.features:
            row: dict[str, Any] = next((line for line in listed if line["feature"] == one), {"feature": one})
            judged = self.judged.get(one)
            row["judged"] = None if judged is None else vars(judged)
            if (parts := self.made.parts_against) is not None:
                row["against"] = float(parts[one])
            examples = {
                name: [{"text": self._text(each), "activation": each.strength} for each in some]
                for name, some in self.scan.examples(one).items()
            }
            correlates = [{"feature": near, "r": r} for near, r in self.scan.correlates(one)]
            single = len(self.made.writes) == 1
            edit = to_json(self.made.add(one, float(self.scan.most[one]))) if single else None
            shown.append(row | {"examples": examples, "correlates": correlates, "edit": edit})
        return {"features": shown}

    def _text(self, one: Example) -> str:
        return self.lm.tokenizer.decode(list(one.ids))

    def print_table(self, lines: list[Any]) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in feature_pages.COLUMNS:
            table.add_column(name)
        for number, label, often, most, at, raises in lines[:SHOWN]:
            cells = (str(number), visible(label), f"{often:.2%}", f"{most:.3g}", visible(at), visible(raises))
            table.add_row(*cells)
        console.on_screen(lambda screen: console.print_table(screen, table))
        if len(lines) > SHOWN:
            console.note(f"{len(lines) - SHOWN:,} more: --search WORD finds some, --json prints all")

    def print(self) -> None:
        """The features that were asked for one by one, else the table."""
        if self.features:
            self.print_each()
        else:
            self.print_table(self.lines)

    def print_each(self) -> None:
        by_number = {line[0]: line for line in self.lines}
        for one in self.features:
            if one not in by_number:
                console.say(f"feature {one}: it fires at no token that was read")
                continue
            _, label, often, most, at, raises = by_number[one]
            named = f": {visible(str(label))}" if label else ""
            console.say(f"feature {one}{named}")
            where = f"at most {most:.4g}; strongest at {visible(str(at))}"
            console.say(
                f"  fires on {often:.3%} of tokens, {where}" if often else "  fires at no token that was read"
            )
            console.say(
                f"  raises {visible(str(raises))}" if raises else "  writes no vector of the residual stream"
            )
            if (parts := self.made.parts_against) is not None:
                console.say(f"  {parts[one]:.0%} of its direction is in the other model")
            if one in self.judged:
                console.say(f"  label: right in {self.judged[one]}")
            for name, examples in self.scan.examples(one).items():
                console.say(f"  {name}:")
                for each in examples:
                    before = self.lm.tokenizer.decode(list(each.ids[: each.at]))
                    own = self.lm.tokenizer.decode([each.ids[each.at]])
                    after = self.lm.tokenizer.decode(list(each.ids[each.at + 1 :]))
                    text = " ".join(f"{before}>>{own}<<{after}".split())
                    console.say(f"    {each.strength:8.3g}  {visible(text)}")
            near = ", ".join(f"{other} ({r:.2f})" for other, r in self.scan.correlates(one))
            console.say(f"  goes along with {near or 'no other'}")


def _set(folder: Path, made: SAE, given: str) -> None:
    """A --label: NUMBER=TEXT."""
    number, equals, text = given.partition("=")
    if not equals or not number.strip().isdecimal():
        raise UserError(f'--label is {given!r}: write NUMBER=TEXT, as --label "17=names of months"')
    made.check_feature(int(number))
    of_features.set_label(folder, made, int(number), text)


def _write_steering(view: _View, feature: int, path: Path) -> None:
    """The direction as a steering file, which is added to a layer's output."""
    name, *others = view.made.writes
    where = LAYER.fullmatch(name)
    norms = view.lm.config.blocks[int(where[1])].norms if where else ()
    normed = where is not None and f"{where[2].partition('.')[0]}_post_norm" in norms
    if others or where is None or where[2] not in INTO_STREAM or (normed and "post_norm" not in name):
        raise UserError(
            f"{name} is not added to a layer's output as it is: the feature is no steering vector"
        )
    most = float(view.scan.most[feature])
    if most <= 0:
        raise UserError(
            f"feature {feature} fires at no token that was read, so its largest activation is 0: give a "
            "feature that fires"
        )
    steering.save(path, [Add(int(where[1]), view.made.W_dec[feature].tolist(), strength=most)])
    console.note(f'Wrote {path}: cutaway generate "..." --steer {path}:1')
