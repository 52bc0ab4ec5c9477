"""`cutaway generate`: continue a text, shown as it is written or printed as one JSON document."""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import cutaway
from cutaway.commands.console import model_path, note, note_fallback, print_json, read_text, use_threads
from cutaway.commands.options import (
    OWN_DRAFTS,
    Adapter,
    Context,
    Draft,
    Engine,
    Flag,
    Json,
    KVCache,
    Model,
    Strict,
    Threads,
)
from cutaway.commands.steer import Steer, steered
from cutaway.errors import UserError
from cutaway.generate.batch.request import Generation, Piece
from cutaway.generate.sampling_params import SamplingParams
from cutaway.weights import eagle3

Style = Literal["text", "table", "nothing"]


@Parameter(name="*")
@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to stop; what is not given is left to the verb."""

    max_tokens: Annotated[int | None, Parameter(help="Tokens to write at most.")] = None
    temperature: Annotated[float | None, Parameter(help="0 is greedy; higher is more random.")] = None
    top_k: Annotated[int | None, Parameter(help="Choose among this many tokens; 0 is off.")] = None
    top_p: Annotated[float | None, Parameter(help="Choose among the fewest that hold this probability.")] = (
        None
    )
    min_p: Annotated[
        float | None,
        Parameter(help="Leave out what is below this fraction of the best one."),
    ] = None
    typical_p: Annotated[float | None, Parameter(help="Locally typical sampling; 1 is off.")] = None
    repetition_penalty: Annotated[
        float | None, Parameter(help="Divide the logits of tokens already seen, prompt included; 1 is off.")
    ] = None
    frequency_penalty: Annotated[
        float | None, Parameter(help="Subtract this for each time a token was written (-2 to 2).")
    ] = None
    presence_penalty: Annotated[
        float | None, Parameter(help="Subtract this once from tokens that were written (-2 to 2).")
    ] = None
    logit_bias: Annotated[
        tuple[str, ...],
        Parameter(help="ID=NUMBER, added to that token's logit; again for more.", negative=()),
    ] = ()
    stop: Annotated[
        tuple[str, ...],
        Parameter(help="Stop before this text; again for more.", negative=(), allow_leading_hyphen=True),
    ] = ()
    ignore_eos: Annotated[bool, Parameter(help="Go on past the model's end token.", negative=())] = False
    seed: Annotated[int | None, Parameter(help="The same seed writes the same text.")] = None
    watermark: Annotated[
        str | None, Parameter(help="Mark the text: kgw:SECRET, gumbel:SECRET or synthid:SECRET.")
    ] = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as `lm.generate` and `lm.chat` take them."""
        options = {option.name: getattr(self, option.name) for option in fields(self)}
        options = {
            name: value
            for name, value in options.items()
            if not any(value is none for none in (None, False, ()))
        }
        if self.logit_bias:
            options["logit_bias"] = dict(map(_bias, self.logit_bias))
        if self.watermark:
            from cutaway.generate import watermark  # the usual command starts without it, as without thinking

            options["watermark"] = watermark.parse(self.watermark)
        return options


NOTHING_GIVEN = Sampling()


def generate(
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    file: Path | None = None,
    model: Model = "smollm2",
    chat: Flag = False,
    allow_steering: Flag = False,
    logprobs: int | None = None,
    as_json: Json = False,
    adapter: Adapter = None,
    engine: Engine = "auto",
    threads: Threads = None,
    context: Context = None,
    strict: Strict = False,
    kv_cache: KVCache = "F16",
    draft: Draft = None,
    think: str | None = None,
    steer: Steer = (),
    sampling: Sampling = NOTHING_GIVEN,
) -> None:
    """Continue a text: by default greedily, up to 128 tokens.

    **Examples:**

    cutaway generate "The capital of France is" --max-tokens 8

    cutaway generate "Write a haiku about rain." --chat --temperature 0.8 --top-p 0.95 --seed 7

    cutaway generate - --json < prompt.txt

    :param prompt: The text to continue; - reads it from standard input (without its last newline).
    :param file: Read the prompt from this file (without its last newline).
    :param chat: Put the prompt as a question, through the model's chat template.
    :param allow_steering: Let what the prompt says change which control tokens the template writes; refused
        without it.
    :param logprobs: One line a token: log-probability, token, and this many alternatives.
    :param think: Slow thinking: best-of-N, vote-N, budget-N, tree-WxD, refine-N (docs/thinking.md).
    """
    if think is not None:
        if draft is not None or logprobs is not None:
            raise UserError("--think writes several texts side by side: leave out --draft, --logprobs")
        from cutaway.generate import thinking

        thinking.parse(think)
    text = prompt_text(prompt, file)
    options: dict[str, Any] = sampling.given() | ({} if logprobs is None else {"logprobs": logprobs})
    SamplingParams(**options)  # refused before anything is loaded
    use_threads(threads)
    lm: Any = cutaway.load(
        model_path(model), engine=engine, context=context, adapter=adapter, kv_cache=kv_cache, strict=strict
    )
    lm = steered(lm, steer)
    note_fallback(lm)
    if draft is not None:
        options["speculate"] = drafts(draft, engine, strict)
    if think is not None:
        _think(lm, model, text, chat, think, options, as_json)
        return
    if chat:
        options |= {"steering": "flag"} if allow_steering else {}
        pieces = lm.chat_stream([{"role": "user", "content": text}], **options)
    else:
        pieces = lm.stream(text, **options)
    style: Style = "nothing" if as_json else "text" if logprobs is None else "table"
    done = _show(pieces, lm, style)
    if as_json:
        print_json(_document(done, lm, model, text, logprobs))
    note_ending(done)
    if sys.stderr.isatty():
        note(statistics(done))
    if draft is not None:
        times = done.timings
        note(drafted(times.drafted_tokens, times.accepted_tokens, f"the text has {len(done.ids)}"))


def drafts(draft: str, engine: Any, strict: bool) -> Any:
    """What drafts, as `lm.generate` takes it: "lookup", "mtp", a folder with a head, or a model."""
    if draft in OWN_DRAFTS:
        return draft
    path = draft_path(draft)
    return path if eagle3.is_head(path) else cutaway.load(path, engine=engine, strict=strict)


def draft_path(draft: str) -> Path:
    """The folder of a head or the model that drafts. UserError where there is none."""
    try:
        return model_path(draft)
    except UserError as error:
        raise UserError(
            f"--draft {draft}: {error}; without a model or a head, {' and '.join(OWN_DRAFTS)} draft"
        ) from None


def _think(
    lm: Any, model: str, text: str, chat: bool, strategy: str, options: dict[str, Any], as_json: bool
) -> None:
    """Print the answer that a strategy chose, and what it cost."""
    thought = lm.think([{"role": "user", "content": text}] if chat else text, strategy, **options)
    if as_json:
        document = _document(thought.generation, lm, model, text, None)
        candidates = [one.text for one in thought.candidates]
        print_json(document | {"think": strategy, "tokens": thought.tokens, "candidates": candidates})
        return
    print(thought.generation.text)
    note(f"{strategy}: {len(thought.candidates)} candidates, {thought.tokens:,} tokens in all.")


def prompt_text(prompt: str | None, file: Path | None) -> str:
    """The prompt from the one place it was given in: an argument, standard input or a file."""
    if (prompt is None) == (file is None):
        raise UserError('Give the prompt once: as text, as "-" for standard input, or with --file')
    if prompt is not None and re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", prompt, re.I):
        raise UserError(f'There is no option {prompt}: if it is the prompt, give it through --file or "-"')
    if prompt is not None and prompt != "-":
        return prompt
    if file is None and sys.stdin.isatty():
        note("Type the prompt; Ctrl-D on a new line ends it.")
    return read_text(file).removesuffix("\n").removesuffix("\r")


def note_ending(done: Generation) -> None:
    """Say so on standard error if the text ended because the context is full."""
    if done.finish_reason == "context":
        used = len(done.prompt_ids) + len(done.ids)
        note(
            f"The context is full: prompt and answer have {used} tokens, the model holds {done.max_context}."
        )


def statistics(done: Generation) -> str:
    """One line of speeds."""
    times = done.timings
    return (
        f"{len(done.ids)} tokens at {times.decode_tokens_per_second:.1f}/s, first after "
        f"{times.first_token_seconds:.2f} s; prompt {times.prefill_tokens} tokens at "
        f"{times.prefill_tokens_per_second:.1f}/s; ended by {done.finish_reason}"
    )


def drafted(count: int, accepted: int, written: str) -> str:
    """One line for what drafts were asked for: how many tokens were drafted, accepted and written."""
    if not count:
        return "No token was drafted: there was nothing to draft from, or it promised no gain."
    return f"{accepted:,} of {count:,} drafted tokens were accepted; {written}."


def _show(pieces: Iterable[Piece], lm: Any, style: Style) -> Generation:
    """Print pieces as they come and return what the last one brings."""
    done = None
    try:
        for piece in pieces:
            done = piece.generation
            if style == "text":
                sys.stdout.write(piece.text)
                sys.stdout.flush()
            elif style == "table" and piece.id is not None:
                print(_row(piece, lm), flush=True)
    finally:
        if style == "text":
            print(flush=True)
    assert done is not None, "the last piece brings the generation"
    return done


def _row(piece: Piece, lm: Any) -> str:
    others = "  ".join(f"{_quoted(lm, id)} {logprob:.3f}" for id, logprob in piece.top_logprobs)
    return f"{piece.logprob:9.3f}  {_quoted(lm, piece.id)}" + (f"   [{others}]" if others else "")


def _quoted(lm: Any, id: int | None) -> str:
    return json.dumps(lm.tokenizer.decode([id]), ensure_ascii=False)


def _document(done: Generation, lm: Any, model: str, prompt: str, logprobs: int | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "prompt_ids": done.prompt_ids,
        "text": done.text,
        "ids": done.ids,
        "finish_reason": done.finish_reason,
        "stop": done.stop,
        "timings": {
            "first_token_seconds": done.timings.first_token_seconds,
            "prefill_tokens_per_second": done.timings.prefill_tokens_per_second,
            "decode_tokens_per_second": done.timings.decode_tokens_per_second,
            "drafted_tokens": done.timings.drafted_tokens,
            "accepted_tokens": done.timings.accepted_tokens,
        },
    }
    if logprobs is not None:
        document["logprobs"] = [
            {**_alternative(lm, id, logprob), "top": [_alternative(lm, *one) for one in top]}
            for id, logprob, top in zip(done.ids, done.logprobs, done.top_logprobs, strict=True)
        ]
    return document


def _alternative(lm: Any, id: int, logprob: float) -> dict[str, Any]:
    return {"id": id, "text": lm.tokenizer.decode([id]), "logprob": logprob}


def _bias(text: str) -> tuple[int, float]:
    id, _, value = text.partition("=")
    try:
        return int(id), float(value)
    except ValueError:
        raise UserError(f"--logit-bias is {text!r}: it must be ID=NUMBER, such as 42=-5") from None
