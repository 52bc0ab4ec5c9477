"""`cutaway quantize`: write a model with small weights, and say what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

import cutaway
from cutaway.commands import console
from cutaway.commands.options import Flag, Json, Strict
from cutaway.errors import UserError
from cutaway.evaluate import perplexity as scoring
from cutaway.evaluate.perplexity import Divergence
from cutaway.evaluate.statistics import finite
from cutaway.quantization import mixes
from cutaway.store.files import Progress, check_file
from cutaway.weights import imatrix as imatrices
from cutaway.weights import load, retype, save
from cutaway.weights import quantize as quantizing

if TYPE_CHECKING:
    import numpy as np

Type = Literal[
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL",
    "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
]  # fmt: skip
Kind = Annotated[Type, Parameter(converter=console.any_case(*mixes.KINDS))]
WINDOW = 512  # tokens that a calibration reads together, as inspect/importance.py does
SAMPLES = 4  # windows that the model writes itself where no text is given


def quantize(
    source: str,
    /,
    *,
    type: Kind,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    calibration: Path | None = None,
    imatrix: Path | None = None,
    imatrix_output: Path | None = None,
    text: Path | None = None,
    measure: bool = True,
    strict: Strict = False,
    force: Flag = False,
    as_json: Json = False,
) -> None:
    """Write a model as GGUF with weights of 2 to 8 bits, scales searched for, and measure the cost.

    The types are llama.cpp's mixes, tensor by tensor. A source that is quantized already is rounded a second
    time, which is noted.

    The text should be one that neither the model nor the calibration has seen. Without --text, the model
    itself writes 2,048 tokens at temperature 1, on which the divergence is that between the two models'
    own distributions of texts.

    **Examples:**

    cutaway quantize my-model --type Q4_K

    cutaway quantize my-model --type Q4_0 --calibration train.txt --text held-out.txt --output small.gguf

    cutaway quantize my-model --type IQ4_XS --imatrix imatrix.gguf

    :param source: A model's name, a .gguf file, a Hugging Face folder, or a folder that Cutaway wrote.
    :param type: Q8_0 (8.5 bits a weight), Q6_K (6.6), Q5_K_M, Q5_K_S, Q5_1, Q5_0 (5.5 to 6), Q4_K_M, Q4_K_S,
        Q4_1, Q4_0, IQ4_NL (4.5 to 5), IQ4_XS (4.25), Q3_K_L, Q3_K_M, Q3_K_S (3.4 to 4), Q2_K (2.6 to 3);
        Q5_K, Q4_K and Q3_K are the _M mixes.
    :param output: The file to write: NAME.gguf; without it the model's name and the type, in this folder.
    :param calibration: A text like those the model is for: columns that it sends more through count more.
    :param imatrix: An importance matrix of llama-imatrix (GGUF), instead of a calibration text.
    :param imatrix_output: Write what the calibration measured as such a file.
    :param text: Measure on this text; 20 KB say enough, each window of 512 tokens takes seconds.
    :param measure: Say what quantizing costs; both models are read over the text.
    :param force: Replace the output if it exists, and quantize even where the weights do not get smaller.
    """
    path = console.model_path(source)
    target = output or Path(f"{path.stem}-{type}.gguf")
    if target.suffix != ".gguf":
        raise UserError(f"{target}: quantized weights are written as GGUF: give a name that ends in .gguf")
    if imatrix is not None and calibration is not None:
        raise UserError("--imatrix and --calibration each say how much columns count: give one of them")
    if imatrix_output is not None:
        if calibration is None:
            raise UserError("--imatrix-output writes what --calibration measures: give a text there")
        check_file(imatrix_output, force)
    texts = {
        each: console.read_text(each) for each in (calibration, text) if each is not None
    }  # before long work
    save.check_free(target, "gguf", force)
    checkpoint, notes, seen = load.read_checkpoint(path, strict), (), None
    if imatrix is not None:
        seen, notes = imatrices.read_imatrix(imatrix, checkpoint)
    if not force:
        planned = quantizing.quantized(checkpoint, type, seen).checkpoint
        quantizing.check_smaller(source, checkpoint.tensors, planned.tensors, type)
    measured = to_measure(cutaway.load(path), text, texts) if measure else None
    with console.watched() as bar:
        if calibration is not None:
            sums = _sums(path, texts[calibration], bar)
            seen = {name: total / rows for name, (total, rows) in sums.items()}
            if imatrix_output is not None:
                window = min(WINDOW, checkpoint.config.context)
                imatrices.write_imatrix(imatrix_output, checkpoint, sums, str(calibration), window, force)
        made = quantizing.quantized(checkpoint, type, seen)
        saved = save.write_checkpoint(
            target, made.checkpoint, "gguf", file_type=made.file_type, force=force, progress=bar
        )
        cost = cost_of(*measured, target, bar) if measured else None
    before = path.stat().st_size if path.is_file() else retype.stored_bytes(checkpoint.tensors)
    if as_json:
        console.print_json(_document(saved, (*notes, *made.notes), before, cost))
        return
    for note in (*notes, *made.notes, *saved.notes):
        console.note(f"Note: {note}.")
    types = ", ".join(f"{count} {name}" for name, count in saved.types.items())
    console.say(f"{saved.path}: {console.size(saved.nbytes)} (was {console.size(before)}), {types}")
    if cost is not None:
        console.say(summary(cost, text))


def _sums(path: Path, text: str, progress: Progress) -> dict[str, tuple[np.ndarray, int]]:
    from cutaway.inspect.importance import runs, sums

    lm = cutaway.load(path)
    if lm.is_encoder:
        raise UserError(f"{path}: is an encoder, and only decoders are calibrated: leave --calibration out")
    engine, ids = lm.subject.engine, lm.ids(text)
    return sums(engine if runs(engine) else lm.model, ids, progress)


def to_measure(lm: Any, text: Path | None, texts: Mapping[Path, str]) -> tuple[Any, int, list[int] | None]:
    """The model to compare with, how many tokens a window takes, and the ids of the text if one is given."""
    if lm.is_encoder:
        raise UserError(f"{lm.checkpoint.source}: only decoders are measured: add --no-measure")
    window = min(scoring.WINDOW, lm.config.context // 2 * 2)
    if text is None:
        return lm, window, None
    ids = lm.tokenizer.encode(texts[text])
    if len(ids) < window:
        raise UserError(f"{text}: has {len(ids)} tokens, and a window {window}: give a longer text")
    return lm, window, ids


def cost_of(reference: Any, window: int, ids: list[int] | None, target: Path, bar: Any) -> Divergence:
    """Compare the model with the one on the path, on the ids or on text that the first one writes."""
    other, begin = cutaway.load(target), begin_of(reference)
    console.note_fallback(reference)
    if ids is None:
        ids = written(reference, window, bar)
    return scoring.divergence(reference.engine, other.engine, ids, window, begin, bar)


def begin_of(lm: Any) -> int | None:
    """The token that begins each window, of a model that expects one."""
    return lm.tokenizer.bos if lm.tokenizer.add_bos else None


def written(lm: Any, window: int, progress: Progress) -> list[int]:
    """Windows of what the model writes by itself, each from its begin token."""
    if lm.tokenizer.bos is None:
        raise UserError("The tokenizer has no begin token to write a text from: give one with --text")
    ids: list[int] = []
    for seed in range(SAMPLES):
        ids.append(lm.tokenizer.bos)
        start = [lm.tokenizer.bos]
        for piece in lm.stream(start, max_tokens=window - 1, temperature=1, ignore_eos=True, seed=seed):
            if piece.id is not None:
                ids.append(piece.id)
                progress("sampling", len(ids), SAMPLES * window)
    return ids


def summary(cost: Divergence, text: Path | None) -> str:
    where = text or "what the model writes itself"
    before, after = cost.reference.perplexity, cost.other.perplexity
    return (
        f"On {where} ({cost.tokens:,} tokens scored): perplexity {before:.3f} -> {after:.3f} "
        f"({100 * (after / before - 1):+.2f}%), KL divergence {cost.mean:.5f} {scoring.margin(cost.error)} "
        f"nats a token, same best token in {100 * cost.same_best:.1f}%"
    )


def _document(
    saved: save.Saved, notes: tuple[str, ...], before: int, cost: Divergence | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": str(saved.path),
        "family": saved.family,
        "bytes": saved.nbytes,
        "bytes_before": before,
        "types": saved.types,
        "notes": [*notes, *saved.notes],
    }
    if cost is not None:
        document["cost"] = {
            "tokens": cost.tokens,
            "perplexity_before": cost.reference.perplexity,
            "perplexity": cost.other.perplexity,
            "kl_divergence": cost.mean,
            "kl_error": finite(cost.error),
            "kl_median": cost.median,
            "kl_99_percent": cost.high,
            "kl_largest": cost.largest,
            "same_best_token": cost.same_best,
        }
    return document
