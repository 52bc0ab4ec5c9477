"""The options of `cutaway explain`, checked together: a text, models and edits, and what they give."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cutaway
from cutaway.commands import steer
from cutaway.commands.console import (
    doing,
    model_path,
    on_screen,
    watched,
)
from cutaway.errors import UserError
from cutaway.weights.load import ADAPTER

if TYPE_CHECKING:
    from cutaway.inspect.against import Against
    from cutaway.inspect.edits import Edit
    from cutaway.inspect.explanation import Explanation
    from cutaway.inspect.page_data import PageData
    from cutaway.inspect.sae import SAE
    from cutaway.lm import LanguageModel
    from cutaway.model.config import Decoder


@dataclass(frozen=True)
class Asked:
    """The requested explanation, and how to compute it."""

    text: str
    model: str
    chat: bool
    top: int
    ablate: tuple[str, ...]
    steer: tuple[str, ...]
    patch: str | None
    compare: str | None
    compare_model: str | None
    against: str | None
    lens: str | None = None

    @property
    def two(self) -> bool:
        """Whether two models or texts are shown side by side."""
        return any(each is not None for each in (self.compare, self.compare_model, self.against))

    @property
    def name(self) -> str:
        """The model's name for titles."""
        return model_name(self.model)

    @property
    def other_name(self) -> str:
        """The compared model's name."""
        return model_name(self.compare_model or self.against or self.model)

    def check(self, backends: bool, parallel: bool, sae: bool, page: bool, how: bool) -> None:
        """Refuses what needs no model to be refused."""
        if not self.text:
            raise UserError("the text is empty: there is nothing to explain")
        if self.top < 1:
            raise UserError(f"--top is {self.top}: it must be 1 or more")
        if self.compare == "":
            raise UserError("the other text is empty: there is nothing to compare with")
        if self.against is not None and (self.compare is not None or self.compare_model is not None):
            raise UserError("--against shows one text in two models: leave out --compare and --compare-model")
        changed = self.ablate or self.steer or self.patch is not None
        if self.two and changed:
            raise UserError("two models are shown unchanged: leave out --ablate, --steer and --patch")
        views = backends + parallel + sae
        if views and (self.two or changed or (page and not sae) or views > 1):
            name = "--backends" if backends else "--parallel" if parallel else "--sae"
            raise UserError(f"{name} is a view of its own: leave out other views and edits")
        if self.lens is not None and (self.two or views):
            raise UserError("--lens shows one text in one model: leave out other views")
        if how and (not page or views or self.two or changed or self.chat):
            raise UserError(
                "--how writes a page of its own: give --html or --open, and no other view or edit"
            )
        for part in self.ablate:
            if not re.fullmatch(r"\d+(\.\d+)?", part):
                raise UserError(
                    f"--ablate is {part!r}, which is no part of a model: 5.3 is head 3 of layer 5, 5 "
                    "the whole layer"
                )
        for given in self.steer:
            steer.file_and_strength(given)

    def check_edits(self, lm: LanguageModel, ids: Sequence[int]) -> None:
        """Refuses, before the weights are loaded, edits that do not fit the model."""
        edits = self.edits()
        if not edits:
            return
        from cutaway.inspect.edits import check

        config: Any = lm.config
        for edit in edits:
            check(config, edit, len(ids))

    @contextmanager
    def layers_counted(self, lm: LanguageModel, ids: Sequence[int], page: bool) -> Iterator[None]:
        """Loads the weights, and counts layers where PyTorch answers and unpacks each weight for each use."""
        from cutaway.inspect import explanation

        with doing("Loading the weights"):
            config: Any = lm.config
            names = explanation.names(config)
            if page:
                from cutaway.inspect import page_data

                names = page_data.names(config)
            edit = self.edits()
            engine = lm.subject.choose(names, [edit] if edit else (), [len(ids)] if edit else ())[0]
        if engine.name == "runtime":
            yield
            return
        pytorch: Any = engine
        with _layers_counted(pytorch.model):
            yield

    def ids(self, lm: LanguageModel, text: str) -> list[int]:
        """The ids of a text, through the chat template if that was asked for."""
        ids = lm.chat_ids([{"role": "user", "content": text}]) if self.chat else lm.ids(text)
        if len(ids) > lm.config.context:
            raise UserError(f"the text has {len(ids):,} tokens, the context holds {lm.config.context:,}")
        return ids

    def print_origins(self, lm: LanguageModel) -> None:
        """The conversation by origin, if the chat template was asked for."""
        if self.chat:
            from cutaway.commands import origins

            rendered = lm.chat_text([{"role": "user", "content": self.text}])
            on_screen(lambda console: origins.show(rendered, console))

    def edits(self) -> list[Edit]:
        """The edits of --ablate and --steer."""
        if not (self.ablate or self.steer):
            return []
        from cutaway.inspect import edits

        return [*map(edits.ablation, self.ablate), *steer.vectors(self.steer)]

    def changes(self) -> list[str]:
        """The edits in words."""
        parts = (f"{'head' if '.' in part else 'layer'} {part} ablated" for part in self.ablate)
        added = (
            f"{path} added {strength:g} times" for path, strength in map(steer.file_and_strength, self.steer)
        )
        return [*parts, *added]

    def explanation(self, lm: LanguageModel, ids: list[int]) -> Explanation:
        """The explanation, with what edits change and where a patch takes effect."""
        from cutaway.inspect import explanation

        trace = lm.trace(ids, names=explanation.names(lm.config))
        made = explanation.explain(trace, self.top)
        if edit := self.edits():
            after = lm.trace(ids, names=("logits",), edit=edit)
            made = replace(made, change=explanation.change(trace, after, self.changes(), self.top))
        if self.patch is not None:
            made = replace(made, patch=explanation.patch(trace, self.ids(lm, self.patch)))
        if self.lens is not None:
            from cutaway.inspect.lens_words import words

            shown = {kind: tuple(words(trace, by)) for kind, by in self.lenses(lm).items()}
            made = replace(made, lenses=shown)
        return made

    def lenses(self, lm: LanguageModel) -> dict[str, Any]:
        """The lens that was asked for, and beside a Jacobian one its control."""
        if self.lens is None:
            return {}
        from cutaway.inspect import lenses

        by = lenses.find(self.lens, lm)
        return {} if by is None else lenses.with_control(by)

    def both(self, lm: LanguageModel, ids: list[int]) -> tuple[Explanation, Explanation]:
        """The two explanations to compare."""
        other = self._other(lm)
        with doing("Running the model"):
            one = self.explanation(lm, ids)
            return one, self.explanation(other, self.ids(other, self.compare or self.text))

    def document(self, lm: LanguageModel, ids: list[int], sae: SAE | None) -> str:
        """The page: of the model and its topics, and beside it of the edited or the compared one."""
        from cutaway.inspect import page, page_data

        def data(lm: LanguageModel, ids: list[int], name: str, edit: list[Edit] | None = None) -> PageData:
            trace = lm.trace(ids, names=page_data.names(lm.config), edit=edit)
            return page_data.build(trace, name, self.lenses(lm))

        other = self._other(lm)
        with doing("Running the model"):
            made = [data(lm, ids, self.name)]
            if edit := self.edits():
                made.append(data(lm, ids, f"{self.name}, {', '.join(self.changes())}", edit))
            elif self.two:
                beside = data(other, self.ids(other, self.compare or self.text), self.other_name)
                made.append(beside if self.against is None else replace(beside, model=made[0].model))
        made[0] = replace(made[0], facts=made[0].facts | self._topics(lm, ids, sae))
        return page.page(made)

    def _topics(self, lm: LanguageModel, ids: list[int], sae: SAE | None) -> dict[str, Any]:
        """The optional topics of the page that were requested."""
        from cutaway.inspect import explanation, page_topics

        found: dict[str, Any] = {}
        if self.patch is not None:
            with doing("Patching"):
                parted = explanation.patch(lm.trace(ids, names=("logits",)), self.ids(lm, self.patch))
            found["patch"] = page_topics.patch(parted)
        if self.against is not None:
            names = self.name, self.other_name
            found["changed"] = page_topics.changed(self.against_base(lm, ids), names)
        if sae is not None:
            found["features"] = page_topics.features(lm.trace(ids, names=sae.reads), sae)
        return found

    def against_base(self, lm: LanguageModel, ids: list[int]) -> Against:
        """The difference between a base and the model that was trained from it."""
        from cutaway.inspect import explanation
        from cutaway.inspect.against import against
        from cutaway.weights.adapters import AdaptedTensors

        tuned = self._other(lm)
        tensors = tuned.checkpoint.tensors
        changes = None
        if isinstance(tensors, AdaptedTensors) and tensors.base is lm.checkpoint.tensors:
            changes = tensors.adapter
        with doing("Running both models"):
            base, other = (each.trace(ids, names=explanation.names(each.config)) for each in (lm, tuned))
            return against(base, other, changes, self.top)

    def _other(self, lm: LanguageModel) -> LanguageModel:
        if self.against is None:
            return lm if self.compare_model is None else load_model(self.compare_model)
        from cutaway.inspect.against import check

        adapter = (Path(self.against) / ADAPTER).is_file()
        tuned = lm.with_adapter(self.against) if adapter else load_model(self.against)
        base, other = cast("Decoder", lm.config), cast("Decoder", tuned.config)
        check(base, other, (lm.tokenizer, tuned.tokenizer))
        return tuned


def model_name(source: str) -> str:
    """A model as titles show it: the last part of a file's or folder's path, another name as it is."""
    path = Path(source)
    return path.resolve().name.removesuffix(".gguf") if path.exists() else source


def load_model(source: str) -> LanguageModel:
    from cutaway.model.config import EncoderDecoder

    lm = cutaway.load(model_path(source))
    if isinstance(lm.config, EncoderDecoder):
        raise UserError(f"{source} is an encoder-decoder: only a decoder or an encoder is explained")
    return lm


@contextmanager
def _layers_counted(model: Any) -> Iterator[None]:
    """Progress by layer where weights stay packed: each pass unpacks them all, which may take minutes."""
    from cutaway.layers.packed import PackedLinear

    blocks: list[Any] = list(model.blocks)
    if not any(isinstance(module, PackedLinear) for block in blocks for module in block.modules()):
        yield
        return
    passes = 0
    with watched() as progress:

        def begin(*_: Any) -> None:
            nonlocal passes
            passes += 1

        def shown(done: int) -> Callable[..., None]:
            return lambda *_: progress(f"Reading by layers, pass {passes}", done, len(blocks))

        hooks = [block.register_forward_hook(shown(i + 1)) for i, block in enumerate(blocks)]
        hooks.append(blocks[0].register_forward_pre_hook(begin))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
