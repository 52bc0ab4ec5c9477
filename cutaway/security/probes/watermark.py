"""Watermarks under attack: how long a text must be to be recognised by its key, and what takes the mark away.

A user of a marked model who wants to deny it edits the text: other words for some (substitution), letters of
another alphabet that look alike (homoglyphs), or other text around it (dilution). Success is that the key's
p is no longer below ALPHA, of the text as it reads, encoded again. Controls: the same texts unattacked, and
unmarked ones under many keys, of which a hundredth are below ALPHA if the null is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cutaway.evaluate.statistics import Estimate, mean, paired
from cutaway.generate import watermark
from cutaway.generate.watermark import gumbel, kgw, synthid
from cutaway.generate.watermark.scheme import Watermark
from cutaway.security.finding import Arm, Budget, Curve, Finding, Progress, verdict

if TYPE_CHECKING:
    from cutaway.lm import LanguageModel

ALPHA = 0.01
HIDDEN = (
    0.25  # of texts: an attack that is bounded under this share leaves the mark of use; 0 of 12 has 0.243
)
LENGTHS = (8, 12, 25, 50, 100, 200)  # tokens of which the first so many are scored
NULL_KEYS = 25  # each unmarked text is scored with them
PASSAGE_KEYS = 199
SCHEMES: dict[str, Callable[[str], Watermark]] = {
    "kgw": kgw.Config,
    "gumbel": gumbel.Config,
    "synthid": synthid.Config,
}
OPENINGS = ("A short history of", "How to care for", "A letter about", "My opinion of", "What I know about")
TOPICS = "bread rivers chess clocks gardens trains music paper honey bridges wool lamps maps tea boats glass"
LOOKALIKES = str.maketrans("aceopxyAEOPCXHKMTB", "асеорхуАЕОРСХНКМТВ")
LATIN = {there: here for here, there in LOOKALIKES.items()}


def run(lm: LanguageModel, *, seed: int, budget: Budget, progress: Progress) -> list[Finding]:
    """A finding for each scheme's power, and one for each attack on it, of budget.trials / 4 texts."""
    texts = max(4, budget.trials // 4)
    draw = np.random.default_rng(seed)
    prompts = [_prompt(n) for n in range(texts)]
    plain, plain_logprob = _written(lm, prompts, seed, None)
    found: list[Finding] = []
    for n, (name, scheme) in enumerate(SCHEMES.items()):
        progress(n, len(SCHEMES))
        marked = scheme(f"{seed}")
        own, logprob = _written(lm, prompts, seed, marked)
        found.append(_power(lm, name, marked, own, plain, (logprob, plain_logprob), seed))
        found += _attacks(lm, name, marked, own, plain, draw, seed)
    progress(len(SCHEMES), len(SCHEMES))
    return found


def substitute(text: str, fraction: float, words: Sequence[str], draw: np.random.Generator) -> str:
    """The text with this fraction of its words replaced by others, drawn from ``words``."""
    own = text.split(" ")
    for at in draw.permutation(len(own))[: round(fraction * len(own))]:
        own[at] = words[int(draw.integers(len(words)))]
    return " ".join(own)


def lookalike(text: str) -> str:
    """The text with every Latin letter that Cyrillic has too written in Cyrillic."""
    return text.translate(LOOKALIKES)


def folded(text: str) -> str:
    """The defence against ``lookalike``: Cyrillic letters that look Latin written in Latin."""
    return text.translate(LATIN)


def _prompt(n: int) -> str:
    topics = TOPICS.split()
    opening, rest = OPENINGS[n % len(OPENINGS)], n // len(OPENINGS)
    second = f" and {topics[(rest // len(topics) + n) % len(topics)]}" if n >= len(topics) else ""
    return f"{opening} {topics[n % len(topics)]}{second}:\n"


def _written(
    lm: LanguageModel, prompts: Sequence[str], seed: int, marked: Watermark | None
) -> tuple[list[str], list[float]]:
    """Each prompt continued, and the mean log-probability of the model of each text's tokens."""
    length = LENGTHS[-1] + 8
    made = lm.generate_batch(
        prompts, watermark=marked, temperature=1.0, max_tokens=length, seed=seed, ignore_eos=True
    )
    return [one.text for one in made], [float(np.mean(one.logprobs)) for one in made]


def _p(lm: LanguageModel, marked: Watermark, text: str, most: int | None = None) -> float:
    ids = lm.tokenizer.encode(text)[: None if most is None else most + marked.context]
    return watermark.detect(marked, ids, keys=0).p


def _power(
    lm: LanguageModel,
    name: str,
    marked: Watermark,
    own: Sequence[str],
    plain: Sequence[str],
    logprobs: tuple[list[float], list[float]],
    seed: int,
) -> Finding:
    arms, points = [], []
    for length in LENGTHS:
        found = mean([_p(lm, marked, text, length) < ALPHA for text in own])
        arms.append(Arm(f"detected at {length} tokens", found, "defence"))
        points.append((float(length), found.value))
    keys = [replace(marked, key=f"null {seed} {n}") for n in range(NULL_KEYS)]
    false = [_p(lm, key, text) < ALPHA for text in plain for key in keys]
    alarms = mean(false, [n for n in range(len(plain)) for _ in keys])
    price = paired(*logprobs).difference
    arms = [*reversed(arms), Arm("unmarked text, random keys", alarms, "control")]
    arms.append(Arm("log-probability, marked less plain", price, "benign", "nats a token"))
    sound = alarms.low <= 2 * ALPHA and arms[0].value.low > alarms.high
    return Finding(
        "watermark",
        f"{name} tells its own text",
        "sound" if sound else "vulnerable" if alarms.low > 2 * ALPHA else "not separated",
        f"At p < {ALPHA} the key finds {_share(arms[0].value)} of {len(own)} texts of {LENGTHS[-1]} tokens, "
        f"and {alarms.value:.1%} of unmarked ones under {NULL_KEYS} keys each.",
        tuple(arms),
        chance=ALPHA,
        seeds=(seed,),
        curves=(Curve(name, "tokens", f"detected at p < {ALPHA}", tuple(points)),),
    )


def _attacks(
    lm: LanguageModel,
    name: str,
    marked: Watermark,
    own: Sequence[str],
    plain: Sequence[str],
    draw: np.random.Generator,
    seed: int,
) -> list[Finding]:
    words = [word for text in plain for word in text.split()]
    whole = [_p(lm, marked, text) >= ALPHA for text in own]
    folds = [_p(lm, marked, folded(text)) >= ALPHA for text in own]

    def finding(
        title: str, texts: Sequence[str], defended: tuple[str, list[bool], list[bool]] | None
    ) -> Finding:
        missed = [_p(lm, marked, text) >= ALPHA for text in texts]
        hidden, lost = mean(missed), mean(whole)
        arms = [Arm("not detected after it", hidden), Arm("not detected before", lost, "control")]
        summary = f"It hides {_share(hidden)} of the texts; unattacked, {_share(lost)} are missed."
        if defended is not None:
            how, after, before = defended
            arms += [Arm(f"not detected after it, {how}", mean(after), "defence")]
            arms += [Arm(f"not detected before, {how}", mean(before), "benign")]
            summary += f" With {how}: {_share(arms[2].value)}."
        found = verdict(missed, whole, limit=HIDDEN)
        return Finding("watermark", f"{name}: {title}", found, summary, tuple(arms), seeds=(seed,))

    found = [
        finding(f"{part:.0%} of words replaced", [substitute(text, part, words, draw) for text in own], None)
        for part in (0.1, 0.3, 0.5)
    ]
    swapped = [lookalike(text) for text in own]
    back = [_p(lm, marked, folded(text)) >= ALPHA for text in swapped]
    found.append(finding("homoglyphs", swapped, ("letters folded back", back, folds)))
    around = [[plain[(n + k) % len(plain)] for k in range(1, 5)] for n in range(len(own))]
    diluted = [" ".join([*four[:2], text, *four[2:]]) for text, four in zip(own, around, strict=True)]
    found.append(
        finding(
            "four times as much other text around",
            diluted,
            ("the best passage", _passages(lm, marked, diluted), _passages(lm, marked, own)),
        )
    )
    return found


def _passages(lm: LanguageModel, marked: Watermark, texts: Sequence[str]) -> list[bool]:
    ids = [lm.tokenizer.encode(text) for text in texts]
    return [watermark.detect(marked, one, keys=PASSAGE_KEYS).p_passage >= ALPHA for one in ids]


def _share(value: Estimate) -> str:
    return f"{value.value:.0%}"
