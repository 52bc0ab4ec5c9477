"""Greedy coordinate gradient (2307.15043): a suffix of tokens that makes a model begin an answer.

    L(x)  =  mean over prompts of -log p(target | before, x, after), all of x's tokens shared
    g     =  dL / d one-hot(x_i), [positions vocabulary], by the PyTorch model
    a step:  draw ``candidates`` texts, each x with one token replaced by one of the ``top`` of -g at its
             place; keep the one of least L, if it is less than x's

Candidates are read by the engine that serves the model, after the state of what comes before the suffix. A
candidate counts only if its *text*, put into the whole prompt and encoded, gives its ids again; without that
most of what is found cannot be typed. Random search is the same without g, at as many forward passes: a
gradient counts as three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cutaway.errors import OperationalError
from cutaway.generate.sample import log_softmax, mask_padding
from cutaway.hooks import tracing
from cutaway.lm import LanguageModel

GRADIENT_PASSES = 3  # forward passes that one gradient costs
TOGETHER = 16  # candidates in one call of the engine
Render = Callable[[str], list[int]]  # the whole prompt's ids with this suffix
Penalty = Callable[[Sequence[str]], np.ndarray]  # what suffixes cost beside L, as a known defence scores them


@dataclass(frozen=True)
class Prompt:
    """A prompt that takes a suffix, and the ids that its answer shall begin with."""

    render: Render
    target: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """A suffix, its loss in nats after each step, and what it took; ``lost`` candidates did not re-encode."""

    suffix: str
    losses: tuple[float, ...]
    passes: int
    lost: int


@dataclass(frozen=True)
class GCGSettings:
    """How long the suffix is, and how long is searched. ``gradient`` False is random search."""

    tokens: int = 10
    steps: int = 20
    candidates: int = 32
    top: int = 128
    gradient: bool = True


class Placed:
    """A prompt with the suffix's ids in it: ``before``, then the suffix, then ``after``."""

    def __init__(self, lm: LanguageModel, prompt: Prompt, suffix: str, ids: Sequence[int]) -> None:
        whole = prompt.render(suffix)
        start = _find(whole, ids)
        self.prompt = prompt
        self.before, self.after = whole[:start], [*whole[start + len(ids) :], *prompt.target]
        self.state = lm.engine.new_state()
        lm.engine.prefill(self.before, self.state)

    def holds(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the whole prompt with this text has these ids at the suffix's place."""
        return self.prompt.render(text) == [*self.before, *ids, *self._tail]

    @property
    def _tail(self) -> list[int]:
        return self.after[: len(self.after) - len(self.prompt.target)]


def search(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    settings: GCGSettings,
    *,
    seed: int,
    allowed: Sequence[int] | None = None,
    penalty: Penalty | None = None,
    passes: int | None = None,
) -> Found:
    """The suffix of least loss. ``allowed`` ids may be in it; ``passes`` bounds the forward passes."""
    random = np.random.default_rng(seed)
    vocabulary = np.array(printable(lm) if allowed is None else allowed)
    ids = start(lm, prompts, vocabulary, settings.tokens, random)
    text = lm.tokenizer.decode(ids)
    placed = [Placed(lm, prompt, text, ids) for prompt in prompts]

    def cost(texts: Sequence[str], rows: Sequence[Sequence[int]]) -> np.ndarray:
        own = np.mean([losses(lm, one, rows) for one in placed], 0)
        return own if penalty is None else own + penalty(texts)

    best = float(cost([text], [ids])[0])
    done, lost, history = len(placed), 0, [best]
    for _ in range(settings.steps):
        if settings.gradient:
            gradient = np.mean([one_hot_gradient(lm, one, ids) for one in placed], 0)
            order = np.argsort(gradient[:, vocabulary], 1)[:, : settings.top]
            done += GRADIENT_PASSES * len(placed)
        else:
            order = np.tile(np.arange(len(vocabulary)), (len(ids), 1))
        rows, texts = [], []
        for _ in range(settings.candidates):
            at = int(random.integers(len(ids)))
            row = [*ids]
            row[at] = int(vocabulary[order[at, int(random.integers(order.shape[1]))]])
            spelt = lm.tokenizer.decode(row)
            if all(one.holds(spelt, row) for one in placed):
                rows.append(row)
                texts.append(spelt)
            else:
                lost += 1
        if passes is not None:
            rows = rows[: max(0, (passes - done) // len(placed))]
        if rows:
            found = cost(texts[: len(rows)], rows)
            done += len(rows) * len(placed)
            if found.min() < best:
                best, ids, text = float(found.min()), rows[int(found.argmin())], texts[int(found.argmin())]
        history.append(best)
        if passes is not None and done + len(placed) > passes:
            break
    return Found(text, tuple(history), done, lost)


def printable(lm: LanguageModel) -> list[int]:
    """Ids of plain ASCII tokens without control characters."""
    found = []
    for id in range(len(lm.tokenizer)):
        raw = lm.tokenizer.token_bytes(id)
        if raw and not lm.tokenizer.is_special(id) and all(32 <= byte < 127 for byte in raw):
            found.append(id)
    return found


def words(lm: LanguageModel) -> list[int]:
    """Ids of tokens that are a space and lower-case letters: what no rewriting of spaces or case changes.

    A tokenizer without such tokens, as one of bytes, gives its letters.
    """
    plain = {id: lm.tokenizer.token_bytes(id).decode() for id in printable(lm)}
    lower = [id for id, text in plain.items() if text.strip().isalpha() and text.islower()]
    return [id for id in lower if plain[id].startswith(" ")] or lower


def start(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    vocabulary: np.ndarray,
    tokens: int,
    random: np.random.Generator,
) -> list[int]:
    """Random ids that survive in every prompt; drawn again until they do."""
    for _ in range(1000):
        ids = random.choice(vocabulary, tokens).tolist()
        text = lm.tokenizer.decode(ids)
        if all(_survives(prompt.render(text), ids) for prompt in prompts):
            return ids
    raise OperationalError(
        f"1000 random suffixes of {tokens} tokens were encoded to other tokens: search a shorter one"
    )


def losses(lm: LanguageModel, placed: Placed, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """float64 [n]: -log p of the target, a token, with each of these suffixes, by the engine."""
    engine: Any = lm.engine
    target = placed.prompt.target
    out = np.empty(len(rows))
    for first in range(0, len(rows), TOGETHER):
        some = rows[first : first + TOGETHER]
        texts = [[*row, *placed.after[:-1]] for row in some]
        states = [engine.fork(placed.state) for _ in some]
        length = len(texts[0])
        at = [n * length + length - len(target) + k for n in range(len(some)) for k in range(len(target))]
        logits = engine.read(texts, states, at)
        for n in range(len(some)):
            own = logits[n * len(target) : (n + 1) * len(target)]
            scores = [
                log_softmax(mask_padding(row, len(lm.tokenizer)))[id]
                for row, id in zip(own, target, strict=True)
            ]
            out[first + n] = -np.mean(scores)
    return out


def one_hot_gradient(lm: LanguageModel, placed: Placed, ids: Sequence[int]) -> np.ndarray:
    """float32 [positions vocabulary]: the loss's gradient by each token's share, by the PyTorch model.

    The embedding is linear in the one-hot rows, so it is the gradient by the embedding, times the table.
    """
    model = lm.pytorch.model
    whole = torch.tensor([[*placed.before, *ids, *placed.after]], device=lm.pytorch.device)
    pos = torch.arange(whole.shape[1], device=whole.device)[None]
    place = slice(len(placed.before), len(placed.before) + len(ids))
    table = model.embedding.weight.detach()
    added = torch.zeros(
        (len(ids), table.shape[1]), dtype=table.dtype, device=whole.device, requires_grad=True
    )

    def embed(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value[:, : place.start], value[:, place] + added, value[:, place.stop :]], 1)

    count = len(placed.prompt.target)
    with torch.enable_grad(), tracing(model, edit={"embed": embed}):
        logits = model(whole[:, :-1], pos[:, :-1])[0, -count:, : len(lm.tokenizer)]
        loss = torch.nn.functional.cross_entropy(logits.float(), whole[0, -count:])
    (by_embedding,) = torch.autograd.grad(loss, added)
    return (by_embedding @ table.T * model.config.embedding_scale).float().cpu().numpy()


def _survives(whole: Sequence[int], ids: Sequence[int]) -> bool:
    return any(list(whole[n : n + len(ids)]) == list(ids) for n in range(len(whole) - len(ids) + 1))


def _find(whole: Sequence[int], ids: Sequence[int]) -> int:
    """The last occurrence of the suffix."""
    for n in range(len(whole) - len(ids), -1, -1):
        if list(whole[n : n + len(ids)]) == list(ids):
            return n
    raise ValueError("the suffix is not in the prompt")
