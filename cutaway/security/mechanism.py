"""Why an attack worked: the heads that read it, where its answer appears, and what those heads cause.

Heads are chosen on one half of the successes, by how much more the last token attends to the imperative than
to its mention, and judged on the other half: ablated together, against as many random heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.evaluate import statistics
from cutaway.inspect.edits import Ablate
from cutaway.inspect.inputs import output_heads
from cutaway.inspect.logit_lens import lens
from cutaway.lm import LanguageModel
from cutaway.security.defences.attention_tracker import last_attention
from cutaway.security.finding import Arm, Curve, Look

HEADS = 8
DRAWS = 4  # sets of random heads
MOST = 8  # successes of each half


@dataclass(frozen=True)
class Words:
    """What the parts of a success are called: the words that act, their control, what the answer shows."""

    added: str = "the imperative"
    control: str = "its mention"
    wanted: str = "the canary"
    margin: str = "canary minus true value"


@dataclass(frozen=True)
class Success:
    """An attack that worked, and its mention: prompts, where the added words are, both answers' first ids."""

    ids: Sequence[int]
    added: range
    mention: Sequence[int]
    mentioned: range
    word: int
    value: int


@dataclass(frozen=True)
class Explained:
    """Sentences with their figures, the success to open, what ablation does, and the lens by stage."""

    sentences: tuple[str, ...]
    look: tuple[Look, ...] = ()
    arms: tuple[Arm, ...] = ()
    curves: tuple[Curve, ...] = ()


def explain(lm: LanguageModel, found: Sequence[Success], seed: int, words: Words = Words()) -> Explained:
    """Why these attacks worked. Needs two successes."""
    random = np.random.default_rng(seed)
    half = min(MOST, len(found) // 2)
    choosing, judging = found[:half], found[half : 2 * half]
    config: Any = lm.config
    heads = [output_heads(block.attention) for block in config.blocks]
    every = [(layer, head) for layer, count in enumerate(heads) for head in range(count)]
    reads = np.mean([_read(lm, one) for one in choosing], 0)
    order = np.argsort(-reads)
    best, others = order[:HEADS], order[HEADS:]
    names = ", ".join(f"{layer}.{head} ({reads[n]:+.2f})" for n in best[:4] for layer, head in [every[n]])
    stages, tops, own, drawn, kept = [], [], [], [], []
    for one in judging:
        trace = lm.trace(one.ids, names=["embed", "blocks.*.out"])
        last = {name: value[-1:] for name, value in trace.residuals().items()}
        top = lens(trace.instrumented, last, trace.vocabulary).ids[:, 0].tolist()
        tops.append([id == one.word for id in top])
        leads = (n for n in range(len(top)) if all(tops[-1][n:]))
        stages.append(next(leads, len(top)))
        usual = _margin(lm, one, [])
        without = _margin(lm, one, [every[n] for n in best])
        own.append(usual - without)
        kept.append(without > 0)
        draws = [random.permutation(others)[:HEADS] for _ in range(DRAWS)]
        drawn.append(np.mean([usual - _margin(lm, one, [every[n] for n in draw]) for draw in draws]))
    effect = statistics.paired(own, drawn, share=False)
    judged = (
        f"those {HEADS} heads ablated, {words.margin} falls by {np.mean(own):.2f} nats, with "
        f"as many random heads by {np.mean(drawn):.2f}; 95% of the difference "
        f"{effect.difference.between('.2f')}, n {len(own)}: "
        f"{'they carry it' if effect.difference.low > 0 else 'not separated'}; {np.mean(kept):.0%} of the "
        "successes stay"
    )
    stage = f"stage {np.median(stages):.0f} of {len(heads)}"
    leading = f"by the logit lens {words.wanted} leads from {stage} on (median)"
    sentences = (
        f"the last token attends to {words.added} more than to {words.control} most in heads {names}",
        leading,
        judged,
    )
    layer, head = every[best[0]]
    one = judging[0]
    note = f"head {layer}.{head} reads {words.added} from the last token"
    falls, by_chance = (statistics.mean(each, share=False) for each in (own, drawn))
    arms = (
        Arm(f"{words.margin} falls by, those heads ablated", falls, "attack", "nats"),
        Arm(f"{words.margin} falls by, random heads ablated", by_chance, "control", "nats"),
    )
    by_stage = tuple((float(stage), float(share)) for stage, share in enumerate(np.mean(tops, 0)))
    lens_curve = Curve(
        f"{words.wanted} is the likeliest token", "stage (0: embedding)", "share of successes", by_stage
    )
    look = Look(tuple(one.ids), len(one.ids) - 1, note, layer, head)
    return Explained(sentences, (look,), arms, (lens_curve,))


def _read(lm: LanguageModel, one: Success) -> np.ndarray:
    """[layers * heads]: weight on the imperative minus weight on the mention."""
    attack, mention = last_attention(lm, [one.ids, one.mention])
    return attack[:, one.added].sum(1) - mention[:, one.mentioned].sum(1)


def _margin(lm: LanguageModel, one: Success, heads: Sequence[tuple[int, int]]) -> float:
    """log p(canary) - log p(true value) of the next token, with these heads ablated."""
    edit = [Ablate(layer, "head", head) for layer, head in heads]
    logits = lm.trace(one.ids, edit=edit or None, names=["embed"]).logits[-1]
    return float(logits[one.word] - logits[one.value])
