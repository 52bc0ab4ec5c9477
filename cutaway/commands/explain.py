"""`cutaway explain`: what a model does with a text, from its bytes to the next token, in its own numbers."""

from __future__ import annotations

import re
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

import cutaway
from cutaway.commands import explain_features, explain_how
from cutaway.commands.console import (
    base_of,
    doing,
    model_path,
    note,
    on_screen,
    print_json,
    size,
    use_threads,
    watched,
)
from cutaway.commands.generate import prompt_text
from cutaway.commands.options import Flag, Force, Json, Open, Threads, Words
from cutaway.errors import OperationalError, UserError
from cutaway.store import files
from cutaway.weights.load import ADAPTER

if TYPE_CHECKING:
    from cutaway.inspect.against import Against
    from cutaway.inspect.edits import Edit
    from cutaway.inspect.explanation import Explanation
    from cutaway.inspect.page_data import PageData
    from cutaway.inspect.sae import SAE
    from cutaway.lm import LanguageModel
    from cutaway.model.config import Decoder


def explain(
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    file: Path | None = None,
    model: Annotated[
        str | None, Parameter(help="A model's name, a .gguf file or a folder [smollm2].")
    ] = None,
    chat: Flag = False,
    top: int = 10,
    ablate: Words = (),
    steer: Words = (),
    patch: str | None = None,
    compare: str | None = None,
    compare_model: str | None = None,
    against: str | None = None,
    backends: Flag = False,
    parallel: Flag = False,
    sae: Path | None = None,
    how: Flag = False,
    html: Path | None = None,
    force: Force = False,
    open_page: Open = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Explain what a model does with a text: tokens, embeddings, attention, residual stream, next token.

    **Examples:**

    cutaway explain "The capital of France is"

    cutaway explain "What is rain?" --chat --top 5

    cutaway explain "The capital of France is" --ablate 23.4

    cutaway explain "The capital of France is" --patch "The capital of Italy is"

    cutaway explain "The capital of France is" --html france.html --open

    cutaway explain "The capital of France is" --compare "The capital of Italy is"

    cutaway explain "The capital of France is" --against runs/talk

    cutaway explain - --json < prompt.txt

    cutaway explain "The capital of France is" --backends

    cutaway explain "The capital of France is" --parallel

    :param text: The text to explain; - reads it from standard input. Control tokens spelt in it stay text.
    :param file: Read the text from this file (without its last newline).
    :param chat: Put the text as a question, through the model's chat template.
    :param top: How many of the likeliest next tokens to show.
    :param ablate: Ablate a head (5.3 is head 3 of layer 5) or a layer (5), and show what changes; again for
        more.
    :param steer: FILE:STRENGTH, add a steering vector times the strength, and show what changes; again for
        more.
    :param patch: Another text of as many tokens: activation patching shows where in the model the answers
        diverge.
    :param compare: Another text, of any length: both side by side.
    :param compare_model: Another model: both side by side, on this text or on the other one.
    :param against: A run's or adapter's folder, or a model of the same shape: show what training changed. The
        model, if none is named, is then the one that the run or the adapter began with.
    :param backends: Show instead which attention backend each layer uses for prefill and decode, and why.
    :param parallel: Show instead what can run at once for this text and for the token after it, and what must
        wait: operations, bytes and this machine's measured limits.
    :param sae: Show instead the strongest features of each token, of an autoencoder that `cutaway sae` wrote;
        on a page, besides.
    :param how: With --html or --open: write instead the chapters of "How it works" on this text and model.
    :param html: Write an interactive page to this file: one file that needs no network. A model that
        --ablate or --steer changed is beside the unchanged one; --patch, --against and --sae add a view.
        --open alone writes a temporary file.
    """
    source = model or (against and base_of(Path(against))) or "smollm2"
    asked = _Asked(
        prompt_text(text, file), source, chat, top, ablate, steer, patch, compare, compare_model, against
    )
    asked.check(backends, parallel, sae is not None, html is not None or open_page, how)
    use_threads(threads)
    if html is not None:
        files.check_file(html, force)
    features = None if sae is None else explain_features.autoencoder(sae)
    lm = _load(source)
    ids = asked.ids(lm, asked.text)
    page = html is not None or open_page
    if how:
        _write_page(explain_how.document(lm, ids, asked.text, asked.name), html, open_page)
        return
    if features is not None and not page:
        explain_features.show(lm, ids, features, asked.name, as_json)
        return
    early = sys.stdout.isatty() and not (as_json or backends or parallel or html or open_page or asked.two)
    if early:
        _show_tokens(lm, ids, asked)
    if parallel:
        _print_parallel(lm, ids, asked.name, threads, as_json)
        return
    asked.check_edits(lm, ids)
    if backends:
        with doing("Loading PyTorch and the weights"):
            _ = lm.model
        _print_backends(lm, ids, asked.name, as_json)
        return
    with asked.layers_counted(lm, ids, page):
        if page:
            _write_page(asked.document(lm, ids, features), html, open_page)
        elif against is not None:
            _print_against(asked.against_base(lm, ids), asked, as_json)
        elif asked.two:
            _print_two(asked.both(lm, ids), asked, as_json)
        else:
            with doing("Running the model"):
                explanation = asked.explanation(lm, ids)
            _print(explanation, asked, lm, early, as_json)


@dataclass(frozen=True)
class _Asked:
    """What the user asked for, and how to compute it."""

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
            _steering(given)

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
        from cutaway.inspect import edits, steering

        added = [add for one in self.steer for add in steering.load(*_steering(one))]
        return [*map(edits.ablation, self.ablate), *added]

    def changes(self) -> list[str]:
        """The edits in words."""
        parts = (f"{'head' if '.' in part else 'layer'} {part} ablated" for part in self.ablate)
        added = (f"{path} added {strength:g} times" for path, strength in map(_steering, self.steer))
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
        return made

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
            return page_data.build(lm.trace(ids, names=page_data.names(lm.config), edit=edit), name)

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
        """What the page shows besides, where it was asked for."""
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
            found["features"] = page_topics.features(lm.trace(ids, names=(sae.name,)), sae)
        return found

    def against_base(self, lm: LanguageModel, ids: list[int]) -> Against:
        """What parts the base from the model that was trained from it."""
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
            return lm if self.compare_model is None else _load(self.compare_model)
        from cutaway.inspect.against import check

        adapter = (Path(self.against) / ADAPTER).is_file()
        tuned = lm.with_adapter(self.against) if adapter else _load(self.against)
        base, other = cast("Decoder", lm.config), cast("Decoder", tuned.config)
        check(base, other, (lm.tokenizer, tuned.tokenizer))
        return tuned


def model_name(source: str) -> str:
    """A model as titles show it: the last part of a file's or folder's path, another name as it is."""
    path = Path(source)
    return path.resolve().name.removesuffix(".gguf") if path.exists() else source


def _load(source: str) -> LanguageModel:
    from cutaway.model.config import EncoderDecoder

    lm = cutaway.load(model_path(source))
    if isinstance(lm.config, EncoderDecoder):
        raise UserError(f"{source} is an encoder-decoder: only a decoder or an encoder is explained")
    return lm


def _steering(given: str) -> tuple[str, float]:
    """The file and the strength of a --steer."""
    path, colon, strength = given.rpartition(":")
    try:
        if not colon or not path:
            raise ValueError
        value = float(strength)
    except ValueError:
        raise UserError(f"--steer is {given!r}: write FILE:STRENGTH, as calm.safetensors:0.8") from None
    if not Path(path).exists():
        raise UserError(f"--steer: there is no file {path}")
    return path, value


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


def _show_tokens(lm: LanguageModel, ids: Sequence[int], asked: _Asked) -> None:
    """The title and the first step, which need no torch."""
    from cutaway.commands import explanation_text

    asked.print_origins(lm)
    on_screen(lambda console: explanation_text.show_tokens(lm, ids, asked.name, console))


def _print(explanation: Explanation, asked: _Asked, lm: LanguageModel, early: bool, as_json: bool) -> None:
    from cutaway.commands import explanation_text

    if as_json:
        print_json({"model": asked.name, **asdict(explanation)})
        return
    if not early:
        asked.print_origins(lm)
    on_screen(lambda console: explanation_text.show(explanation, asked.name, console, early))


def _print_two(explanations: tuple[Explanation, Explanation], asked: _Asked, as_json: bool) -> None:
    from cutaway.commands import explanation_compare

    names, same_model = (asked.name, asked.other_name), asked.compare_model is None
    if as_json:
        one, other = ({"model": name, **asdict(each)} for name, each in zip(names, explanations, strict=True))
        print_json(one | {"compare": other})
    else:
        on_screen(lambda console: explanation_compare.show(*explanations, names, same_model, console))


def _print_against(found: Against, asked: _Asked, as_json: bool) -> None:
    from cutaway.commands import explanation_against

    names = asked.name, asked.other_name
    if as_json:
        print_json({"model": names[0], "against": names[1], **asdict(found)})
    else:
        on_screen(lambda console: explanation_against.show(found, names, console))


def _print_backends(lm: LanguageModel, ids: list[int], name: str, as_json: bool) -> None:
    from cutaway.commands import backends_text
    from cutaway.inspect import backends

    passes = backends.backends(lm.model, ids)
    if as_json:
        print_json({"model": name, "passes": [one.to_json() for one in passes]})
    else:
        on_screen(lambda console: backends_text.show(passes, name, console))


def _print_parallel(lm: LanguageModel, ids: list[int], name: str, threads: int | None, as_json: bool) -> None:
    from cutaway import native
    from cutaway.commands import parallel_text
    from cutaway.inspect import parallel

    if lm.is_encoder:
        raise UserError(f"{name}: is an encoder, which reads a text at once and decodes nothing")
    with doing("Measuring this machine"):
        here = parallel.machine(lm, threads or native.threads())
    found = parallel.passes(lm, len(ids))
    if as_json:
        passes = [{**asdict(one), "waits": one.waits} for one in found]
        print_json({"model": name, "machine": asdict(here), "passes": passes})
    else:
        on_screen(lambda console: parallel_text.show(found, here, name, console))


def _write_page(document: str, target: Path | None, open_page: bool) -> None:
    """Writes the page, to a temporary file if none was named, and opens it if that was asked for."""
    target = target or Path(tempfile.mkdtemp(prefix="cutaway-")) / "explain.html"
    files.write(target, document)
    note(f"Wrote {target} ({size(target.stat().st_size)}).")
    if open_page and not webbrowser.open(target.resolve().as_uri()):
        raise OperationalError(f"no browser could be opened: open {target} yourself")
