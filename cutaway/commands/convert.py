"""`cutaway convert`: write a model as GGUF or as a safetensors folder, tokenizer and chat template along."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

import cutaway
from cutaway.commands import console
from cutaway.commands.options import Flag, Force, Json, Strict
from cutaway.commands.quantize import begin_of, to_measure, written
from cutaway.errors import UserError
from cutaway.evaluate import perplexity as scoring
from cutaway.lm import LanguageModel
from cutaway.store.files import Progress
from cutaway.weights import adapters, conversion, gguf_adapters, load, save
from cutaway.weights.checkpoint import Checkpoint

Type = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
Attention = Literal["mha", "gqa", "mqa", "local", "mla"]
NUMBER = 2  # bytes of a number in the cache: float16, as the runtime keeps it


def convert(
    source: str,
    target: Path,
    /,
    *,
    type: Annotated[
        Type | None,
        Parameter(
            help="What matrices are stored as; without it nothing is rounded.",
            converter=console.any_case(*get_args(Type)),
        ),
    ] = None,
    attention: Annotated[Attention | None, Parameter(help="Make its attention this mechanism.")] = None,
    kv_heads: int | None = None,
    window: int | None = None,
    latent: int | None = None,
    rotary: int | None = None,
    calibration: Path | None = None,
    text: Path | None = None,
    measure: bool = True,
    adapter: Flag = False,
    model: str | None = None,
    strict: Strict = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model in another format: TARGET is NAME.gguf, or a folder of safetensors.

    Without --type, GGUF keeps each weight as it is stored, to the bit; a folder keeps F32, F16 and BF16 and
    unpacks the rest to F32. With it, matrices become that type; vectors stay F32 in GGUF, and the matrix that
    makes the logits is Q8_0 where the others are Q4_0 or Q4_1. Notes name what could not be made as asked.

    With --attention, softmax attention becomes another mechanism: mla (the same function at the same cache;
    smaller with --latent), mha (the same function), gqa or mqa (means of key-value heads, to be trained
    further), local. The report has the logits' error, perplexity, and the cache's bytes before and after.

    **Examples:**

    cutaway convert smollm2 smollm2-folder

    cutaway convert smollm2-folder smollm2.gguf --type Q8_0

    cutaway convert smollm2 smollm2-mla --attention mla --latent 128

    cutaway convert runs/talk talk-adapter.gguf --adapter

    :param source: A model's name, a .gguf file, a Hugging Face folder, or a folder that Cutaway wrote.
    :param target: Where to write: NAME.gguf or a folder.
    :param kv_heads: Of gqa: how many key-value heads.
    :param window: Of local: how many tokens a token sees, itself included.
    :param latent: Of mla: how many numbers the cache keeps of a token beside rotated keys; without it as many
        as lose nothing.
    :param rotary: Of mla: how many heads' worth of keys stays rotated; all, or 1 with --latent.
    :param calibration: A text like those the model is for, by which a latent's directions are chosen; without
        it the model writes one.
    :param text: Measure on this text; without it on what the model writes itself.
    :param measure: Read the models before and after over the text.
    :param adapter: Write an adapter by itself: SOURCE is PEFT's folder or llama.cpp's GGUF, TARGET the other.
    :param model: The base model of the adapter; without it the one that a PEFT folder names.
    """
    given = {"kv_heads": kv_heads, "window": window, "latent": latent, "rotary": rotary}
    options = {name: value for name, value in given.items() if value is not None}
    if attention is None and (named := [*options, *(["text"] if text else [])]):
        raise UserError(f"--{named[0].replace('_', '-')} is for --attention: name a mechanism")
    if adapter or model is not None:
        if attention is not None:
            raise UserError("--attention is for models: an adapter has none")
        _adapter(Path(source), target, type, model, force)
        return
    texts = {each: console.read_text(each) for each in (calibration, text) if each is not None}
    checkpoint, report = load.read_checkpoint(console.model_path(source), strict), None
    with console.watched() as bar:
        if attention is not None:
            save.check_free(target, "gguf" if target.suffix == ".gguf" else "safetensors", force)
            before = LanguageModel(checkpoint)
            checkpoint = _converted(
                before, attention, options, texts[calibration] if calibration else None, bar
            )
        saved = save.write_checkpoint(target, checkpoint, type=type, force=force, progress=bar)
        if attention is not None and measure:
            report = _report(before, *to_measure(before, text, texts)[1:], target, bar)
    if as_json:
        _print_json(saved, report)
    else:
        _show(saved, report, text)


def _print_json(saved: save.Saved, report: Report | None) -> None:
    console.print_json(
        {
            "path": str(saved.path),
            "format": saved.format,
            "family": saved.family,
            "bytes": saved.nbytes,
            "types": saved.types,
            "notes": list(saved.notes),
            **({"conversion": asdict(report)} if report else {}),
        }
    )


def _show(saved: save.Saved, report: Report | None, text: Path | None) -> None:
    for note in saved.notes:
        console.note(f"Note: {note}.")
    types = ", ".join(f"{count} {name}" for name, count in saved.types.items())
    console.say(f"{saved.path}: {console.size(saved.nbytes)}, {types}")
    if report is not None:
        console.say(
            f"Cache: {report.cache_before:,} -> {report.cache:,} bytes a token. On {text or 'its own text'}, "
            f"{report.tokens:,} tokens scored: perplexity {report.perplexity_before:.3f} -> "
            f"{report.perplexity:.3f}, KL divergence {report.kl_divergence:.2g} nats a token, logits at "
            f"most {report.logit_error:.2g} apart"
        )


@dataclass(frozen=True)
class Report:
    """What a conversion changed: cache bytes a token, perplexities, the largest difference of a logit."""

    tokens: int
    cache_before: int
    cache: int
    logit_error: float
    kl_divergence: float
    perplexity_before: float
    perplexity: float


def _converted(
    lm: LanguageModel, kind: str, options: dict[str, Any], calibration: str | None, bar: Progress
) -> Checkpoint:
    """The model's checkpoint with the mechanism, its latent chosen on a text where that loses something."""
    moments = None
    if kind == "mla" and options:
        from cutaway.inspect.importance import moments as measured

        window = min(scoring.WINDOW, lm.config.context // 2 * 2)
        ids = written(lm, window, bar) if calibration is None else lm.tokenizer.encode(calibration)
        moments = measured(LanguageModel(lm.checkpoint, engine="pytorch").model, ids, bar)
    return conversion.converted(lm.checkpoint, kind, **options, moments=moments)


def _report(lm: LanguageModel, window: int, ids: list[int] | None, target: Path, bar: Progress) -> Report:
    """The written model beside the one that it was, on the ids or on what the first one writes."""
    ids = written(lm, window, bar) if ids is None else ids
    # Both in PyTorch: the runtime rounds activations, which is no part of what a conversion changes.
    models: list[Any] = [
        LanguageModel(lm.checkpoint, engine="pytorch"),
        cutaway.load(target, engine="pytorch"),
    ]
    one, other = (each.engine for each in models)
    found = scoring.divergence(one, other, ids, window, begin_of(lm), bar)
    part = scoring.windows(one, ids, window, begin_of(lm))[0]
    error = abs(scoring.scores(one, part) - scoring.scores(other, part)).max()
    cache_before, cache = (each.config.bytes_per_token(NUMBER) for each in models)
    return Report(
        found.tokens,
        cache_before,
        cache,
        float(error),
        found.mean,
        found.reference.perplexity,
        found.other.perplexity,
    )


def _adapter(source: Path, target: Path, type: str | None, model: str | None, force: bool) -> None:
    """Writes an adapter alone."""
    if type is not None:
        raise UserError("--type is for models: an adapter's matrices stay F32")
    base = load.adapter_base(source) if model is None else load.read_checkpoint(console.model_path(model))
    extended = adapters.extended(base, source)
    if extended.head:
        raise UserError(f"{source}: holds a head for labels, which is not converted: use `cutaway merge`")
    if extended.config != base.config:
        raise UserError(
            f"{source}: extends its base's context, which no adapter's file says: use `cutaway merge`"
        )
    changes: Any = adapters.read_adapter(source, base)
    if target.suffix == ".gguf":
        gguf_adapters.write_gguf_adapter(target, changes, base, force)
    else:
        adapters.write_adapter(target, changes, base, model or str(base.source), force)
    console.say(f"{target}: changes of {len(changes)} weights of {base.source}")
