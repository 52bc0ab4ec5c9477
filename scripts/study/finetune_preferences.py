"""SmolLM2 on pairs that a program made: DPO, IPO and SimPO, beside DPO on labels at random; what each costs.

    python -m scripts.study.finetune_preferences     # three seeds, five minutes each on one quiet core
    python -m scripts.study.finetune_preferences --seeds 1 --steps 1 --test 4 --prose 512 --output smoke

Half of the pairs are sums with the right and a wrong result, half tool calls in JSON of which one is valid.
Held-out pairs share no prompt with those that are trained on. Counted are held-out pairs whose better answer
is the likelier one (chance: 50%), and, of greedy answers, sums that are right and calls that are; what it
costs elsewhere is perplexity on prose, token by token against the base. A run that was stopped continues;
what was measured is read. It writes preferences.md and preferences.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cutaway
from cutaway.data import novels
from cutaway.data.conversations import Pair, Reader
from cutaway.evaluate import likelihood
from cutaway.evaluate.exact import proportion
from cutaway.evaluate.perplexity import WINDOW, scores, surprises, windows
from cutaway.evaluate.statistics import mean, student
from cutaway.lm import LanguageModel
from cutaway.store.files import write_file
from cutaway.train import curve, examples

BASE = "smollm2"
TRAINED = 512  # pairs
MEASURED = "measured.json"
ARMS = {  # name: method, and what differs from the preset
    "DPO": ("dpo", "--optimizer.learning-rate 0.0005"),
    "IPO": ("ipo", "--optimizer.learning-rate 0.0005"),
    "SimPO": ("simpo", "--optimizer.learning-rate 0.0005"),
    "DPO, labels at random": ("dpo", "--optimizer.learning-rate 0.0005"),
}
CONTROL = "DPO, labels at random"
SHARED = "--batch-size 1 --micro-batch-size 1 --data.context 256 --data.validation-fraction 0 --threads 1"
SHARED += " --base-type packed --schedule.warmup-steps 1 --intervals.save 5 --intervals.sample 0"
SHARED += " --intervals.evaluate 0 --precision float32 --compile never"
CITIES = (
    "Paris",
    "Rome",
    "Oslo",
    "Cairo",
    "Lima",
    "Delhi",
    "Tokyo",
    "Quito",
    "Bern",
    "Riga",
    "Accra",
    "Hanoi",
)
UNITS = ("metre", "mile", "inch", "yard", "gram", "pound", "ounce", "litre")
HEAD = ("better answer likelier", "95%, seeds", "95%, pairs", "raised", "sums right", "calls right")
HEAD += ("perplexity of prose", "times the base's", "seconds")


@dataclass(frozen=True)
class Question:
    """A prompt with both answers, and what judges an answer that is written."""

    kind: str
    prompt: str
    chosen: str
    rejected: str

    def right(self, text: str) -> bool:
        """Whether a text begins with the right result, or with the same call."""
        first = text.strip().split("\n")[0]
        if self.kind == "sum":
            return first.split(" ")[:1] == [self.chosen.strip()]
        try:
            return json.loads(first) == json.loads(self.chosen)
        except ValueError:
            return False


def a_sum(draw: random.Random) -> Question:
    """Two numbers of two digits; the wrong result is near, or has a digit of its own."""
    a, b = draw.randint(10, 99), draw.randint(10, 99)
    wrong = a + b + draw.choice([-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20])
    return Question("sum", f"{a} + {b} =", f" {a + b}", f" {wrong}")


def a_call(draw: random.Random) -> Question:
    """A request and the call that it asks for; the wrong one is not JSON, or has another name or argument."""
    if draw.random() < 0.5:
        city, days = draw.choice(CITIES), draw.randint(2, 30)
        asked = f"Weather in {city} for {days} days."
        call: dict[str, Any] = {"name": "weather", "city": city, "days": days}
    else:
        count, unit = draw.randint(2, 999), draw.choice(UNITS)
        asked = f"Convert {count} {unit}s."
        call = {"name": "convert", "unit": unit, "count": count}
    right, last = json.dumps(call), [*call][-1]
    wrong = draw.choice([
        right[:-1],
        right.replace('"', "'"),
        right.replace('", "', '" "'),
        json.dumps({**call, last: str(call[last])}),
        json.dumps({**call, "name": f"get_{call['name']}"}),
        json.dumps({key: value for key, value in call.items() if key != last}),
    ])  # fmt: skip
    return Question("call", f"{asked} Call:", f" {right}", f" {wrong}")


def questions(seed: int, count: int, without: frozenset[str] = frozenset()) -> list[Question]:
    """As many of each kind in turns, none twice and none of ``without``'s prompts."""
    draw, made = random.Random(seed), dict[str, Question]()
    while len(made) < count:
        kind: Callable[[random.Random], Question] = (a_sum, a_call)[len(made) % 2]
        one = kind(draw)
        if one.prompt not in without:
            made.setdefault(one.prompt, one)
    return list(made.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of each run, of some six pairs")
    parser.add_argument("--test", type=int, default=120, help="held-out pairs, half of each kind")
    parser.add_argument("--prose", type=int, default=1024, help="tokens of prose")
    parser.add_argument("--output", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    held_out = questions(1 << 20, asked.test)
    base = cutaway.load(BASE)
    before = measured(asked.output / "base.json", base, held_out, asked.prose)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in range(asked.seeds):
        for name, (method, words) in ARMS.items():
            folder = asked.output / f"{seed}-{name.replace(', ', '-').replace(' ', '-').lower()}"
            seconds = trained(folder, method, words.split(), seed, asked.steps, name == CONTROL, held_out)
            own = measured(folder / MEASURED, base, held_out, asked.prose, folder)
            found[name].append({**own, "seconds": seconds})
    asked.results.mkdir(parents=True, exist_ok=True)
    write_file(asked.results / "preferences.md", page(before, found, held_out, asked))
    with (asked.results / "preferences.csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("arm", "seed", "likelier", "raised", "sums", "calls", "perplexity", "seconds"))
        for name, each in [("base", [before]), *found.items()]:
            rows.writerows((name, seed, *summary(one, before)) for seed, one in enumerate(each))
    print((asked.results / "preferences.md").read_text("utf-8"))


def trained(
    folder: Path,
    method: str,
    words: Sequence[str],
    seed: int,
    steps: int,
    at_random: bool,
    held_out: Sequence[Question],
) -> float:
    """Train unless it is done and measured; the seconds that its steps took."""
    if (folder / MEASURED).is_file():
        return sum(line["seconds"] for line in metrics(folder))
    data = folder.parent / f"{folder.name}.jsonl"
    draw = random.Random(seed)
    pairs = questions(seed, TRAINED, frozenset(one.prompt for one in held_out))
    flipped = [at_random and draw.random() < 0.5 for _ in pairs]
    lines = [
        {"prompt": one.prompt, "chosen": one.rejected, "rejected": one.chosen}
        if flip
        else {"prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected}
        for one, flip in zip(pairs, flipped, strict=True)
    ]
    write_file(data, "\n".join(map(json.dumps, lines)))
    resume = ["--resume"] if (folder / "run.yaml").is_file() else []
    command = [sys.executable, "-m", "cutaway", "finetune", method, "--model", BASE, "--data", str(data)]
    command += ["--output", str(folder), f"--seed={seed}", f"--steps={steps}", "--intervals.log=1"]
    subprocess.run([*command, *SHARED.split(), *words, *resume], check=True)
    return sum(line["seconds"] for line in metrics(folder))


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's steps."""
    path = folder / curve.METRICS
    lines = map(json.loads, path.read_text("utf-8").splitlines() if path.is_file() else ())
    return [line for line in lines if "seconds" in line]


def measured(
    path: Path, base: LanguageModel, held_out: Sequence[Question], prose: int, adapter: Path | None = None
) -> dict[str, Any]:
    """A model's log-probability of each held-out answer [n 2], which greedy answers are right [n], and the
    surprises of prose; kept in a file.
    """
    if path.is_file():
        return json.loads(path.read_text("utf-8"))
    lm = base if adapter is None else base.with_adapter(adapter)
    reader = examples.reader(base.checkpoint)
    scored = likelihood.score(lm, [asked(reader, one) for one in held_out])
    prompts = [lm.ids(one.prompt) for one in held_out]
    answers = lm.generate_batch(prompts, max_tokens=28, stop="\n")
    ids = lm.tokenizer.encode(text())[:prose]
    parts = [
        surprises(scores(lm.engine, each), each[WINDOW // 2 + 1 :])
        for each in windows(lm.engine, ids, WINDOW, None)
    ]
    found = {
        "log_probabilities": [[each.log_probability for each in both] for both in scored],
        "right": [one.right(made.text) for one, made in zip(held_out, answers, strict=True)],
        "answers": [made.text for made in answers],
        "surprises": np.concatenate(parts).tolist(),
    }
    write_file(path, json.dumps(found))
    return found


def asked(reader: Reader, one: Question) -> likelihood.Likelihood:
    """A pair's prompt and both answers with their end token, as training has them."""
    row = {"prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected}
    (pair,) = reader.items("pairs", row, "a held-out pair")
    assert isinstance(pair, Pair)
    start = int(np.flatnonzero(pair.chosen.trained)[0])
    answers = [each.to_end.ids[start:].tolist() for each in pair.documents]
    return likelihood.Likelihood(tuple(pair.chosen.ids[:start].tolist()), tuple(map(tuple, answers)))


def text() -> str:
    """Prose that no run trains on: a novel's chapters."""
    return "\n\n".join(path.read_text("utf-8") for path in sorted(novels.folder().glob("*.txt"))[:2])


def summary(one: dict[str, Any], before: dict[str, Any]) -> list[float]:
    """What the table has of a run."""
    apart, first = differences(one), differences(before)
    raised = float(np.mean(apart > first)) if one is not before else float("nan")
    half = np.array(one["right"], float)
    surprise = float(np.mean(one["surprises"]))
    figures = [np.mean(apart > 0), raised, half[::2].mean(), half[1::2].mean(), np.exp(surprise)]
    return [round(float(value), 4) for value in (*figures, one.get("seconds", 0.0))]


def differences(one: dict[str, Any]) -> np.ndarray:
    """log p of the better answer less that of the worse, [n]."""
    scores = np.array(one["log_probabilities"])
    return scores[:, 0] - scores[:, 1]


def page(
    before: dict[str, Any],
    found: dict[str, list[dict[str, Any]]],
    held_out: Sequence[Question],
    asked: argparse.Namespace,
) -> str:
    """The results as a page."""
    n = len(held_out)
    command = f"--seeds {asked.seeds} --steps {asked.steps} --test {asked.test} --prose {asked.prose}"
    about = (
        f"`python -m scripts.study.finetune_preferences {command}`: LoRA of rank 16 beside the packed base, "
        f"{asked.steps} steps on pairs of two-digit sums (right, wrong) and of JSON tool calls (valid, not); "
        f"{n} held-out pairs, half of each, whose prompts no run trained on. A better answer is likelier "
        "where the sum of its tokens' log-probabilities, end token among them, is greater (chance: 50%); "
        "raised, where that difference is greater than the base's. Intervals are of 95%: Student's over "
        "seeds, and Clopper and Pearson's over pairs and seeds together. Greedy answers; one thread."
    )
    head = " | ".join(("", *HEAD, "")).strip()
    lines = ["# Learning from comparisons: SmolLM2-135M on pairs that a program made", "", about, ""]
    lines += [f"| {head}", "|" + "---|" * (len(HEAD) + 1)]
    for name, runs in [("base", [before]), *found.items()]:
        rows = [summary(one, before) for one in runs]
        likelier, raised, sums, calls, prose, seconds = (
            statistics.fmean(column) for column in zip(*rows, strict=True)
        )
        values = [row[0] for row in rows]
        low, high = proportion(round(sum(values) * n), n * len(values))
        over = f"± {student(values)[1] - likelier:.1%}" if len(values) > 1 else ""
        more = [np.array(one["surprises"]) - np.array(before["surprises"]) for one in runs]
        ratio = mean(np.mean(more, axis=0))
        tuned = name != "base"
        cost = f"{np.exp(ratio.value):.3f} ({np.exp(ratio.low):.3f} to {np.exp(ratio.high):.3f})"
        more_often = f"{raised:.1%}" if tuned else ""
        lines.append(
            f"| {name} | {likelier:.1%} | {over} | {low:.1%} to {high:.1%} | {more_often} "
            f"| {sums:.1%} | {calls:.1%} | {prose:.2f} | {cost if tuned else ''} | {seconds:.0f} |"
        )
    chosen = [[row[0] for row in (summary(one, before) for one in runs)] for runs in found.values()]
    base = summary(before, before)[0]
    for name, values in zip(found, chosen, strict=True):
        low, high = (each - base for each in student(values))
        verdict = "separated" if low > 0 or high < 0 else "not separated"
        lines.append(
            f"\n{name} less the base, over seeds: {statistics.fmean(values) - base:+.1%} "
            f"({low:+.1%} to {high:+.1%}): {verdict}."
        )
    for name, values in list(zip(found, chosen, strict=True))[1:]:
        low, high = student(np.subtract(chosen[0], values))
        verdict = "separated" if low > 0 or high < 0 else "not separated"
        lines.append(
            f"\nDPO less {name}, paired by seed: {np.mean(np.subtract(chosen[0], values)):+.1%} "
            f"({low:+.1%} to {high:+.1%}): {verdict}."
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
