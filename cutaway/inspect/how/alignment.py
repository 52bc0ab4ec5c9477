"""Alignments of Bahdanau's attention (1409.0473): a small translator learns to spell words backwards.

A bidirectional GRU reads the letters, another writes them from the last to the first, attending at each step
to what was read. Trained on random letters, it aligns each letter that it writes with where it was read. The
words are the sentence's own; the translator never saw them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from cutaway.attention import bahdanau
from cutaway.hooks import tracing
from cutaway.inspect.how.tokenizers import check_text
from cutaway.model.seq2seq import Recurrent, RecurrentSeq2Seq

LETTERS = "abcdefghijklmnopqrstuvwxyz"
START = len(LETTERS)  # the target's first input; letters are their places in the alphabet
SHORTEST, LONGEST = 3, 8
STEPS, BATCH, LEARNING_RATE, SEED = 400, 32, 1.2e-2, 0  # writes most unseen words right
WORDS = 12


def go_on() -> None:
    """Called before each step; another function in its place may raise, and ends the training."""


def alignments(text: str, check: Callable[[], None] = go_on) -> dict[str, Any]:
    """The attention weights [written read] of each word of 3 to 8 Latin letters in a text, twelve at most.

    ``check`` is called before each step of training and each word. Raises UserError as ``tokenizers`` does.
    """
    chosen = words_of(text)
    model, aligned = trained(check), []
    for word in chosen:
        check()
        aligned.append(_aligned(model, word))
    return {"steps": STEPS, "words": aligned}


def words_of(text: str) -> list[str]:
    """The first words of a text that the translator spells."""
    check_text(text)
    words = dict.fromkeys("".join(c if c in LETTERS else " " for c in text.lower()).split())
    return [word for word in words if SHORTEST <= len(word) <= LONGEST][:WORDS]


@cache
def trained(check: Callable[[], None] = go_on) -> RecurrentSeq2Seq:
    """The translator, trained once in a process unless ``check`` ends it; always the same."""
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(SEED)
        config = Recurrent(
            source=START, target=START + 1, width=24, hidden=96, attention=bahdanau.Config(size=32)
        )
        model = config.build()
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
        for _ in range(STEPS):
            check()
            length = int(torch.randint(SHORTEST, LONGEST + 1, ()))
            source = torch.randint(0, START, (BATCH, length))
            target = source.flip(1)
            at = torch.arange(length).expand(BATCH, -1)
            logits = model(source, at, _inputs(target), at)
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            falling.step()
    return model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products so small wait for threads longer than they compute: with two busy cores, ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _inputs(target: torch.Tensor) -> torch.Tensor:
    """What the writer reads: the start, then each letter but the last."""
    return F.pad(target[:, :-1], (1, 0), value=START)


@torch.no_grad()
def _aligned(model: RecurrentSeq2Seq, word: str) -> dict[str, Any]:
    source = torch.tensor([[LETTERS.index(letter) for letter in word]])
    at = torch.arange(len(word))[None]
    state, written, rows = model.start(source, at), [START], []
    for n in range(len(word)):
        with tracing(model, "writer.pattern") as seen:
            logits = model.read(torch.tensor([written[-1:]]), torch.tensor([[n]]), state)
        written.append(int(logits[0, -1, :START].argmax()))
        rows.append(seen["writer.pattern"][0, 0].tolist())
    return {"word": word, "written": "".join(LETTERS[id] for id in written[1:]), "weights": rows}
