"""A classifier on a labelled file: accuracy, macro F1 as scikit-learn has it, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

import cutaway
from cutaway import cli
from cutaway.evaluate.labelled import macro_f1
from tests.parity.test_classifiers import CASES, PAIRS, TEXTS, perturbed, transformers, worded

NAMES = ("no", "yes", "maybe")
ROWS = [*TEXTS, *PAIRS, "a", "b c", "the cat the cat", "sat sat", "cab a cab", ("b", "b")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    name, own = CASES["bert"]
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {one: n for n, one in enumerate(NAMES)}}
    auto = transformers.AutoModelForSequenceClassification
    perturbed(auto, name, own | labels).save_pretrained(folder)
    worded(folder, "bert", False)
    return folder


def written(path: Path, labels: list[object], key: str = "label") -> Path:
    lines = []
    for text, label in zip(ROWS, labels, strict=True):
        own = {"text": text} if isinstance(text, str) else {"premise": text[0], "hypothesis": text[1]}
        lines.append(json.dumps(own | {key: label}))
    path.write_text("\n".join(lines) + "\n")
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    code, printed = cli.main(["eval", *map(str, words), "--json"]), capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def test_accuracy_and_f1(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    best = cutaway.load(model).classify(ROWS).best
    given = [one if n % 3 else NAMES[n % 2] for n, one in enumerate(best)]
    mixed = [NAMES.index(one) if n % 2 else one for n, one in enumerate(given)]  # by name or number
    path = written(tmp_path / "own.jsonl", mixed)
    found = evaluated(capsys, model, "--tasks", f"labels:{path}")["tasks"]["own"]
    assert found["acc"] == pytest.approx(np.mean([a == b for a, b in zip(given, best, strict=True)]))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(given, best, average="macro"))
    low, high = found["macro_f1_interval"]
    assert low < found["macro_f1"] < high and found["n"] == len(ROWS)
    assert cli.main(["eval", str(model), "--tasks", f"labels:{path}"]) == 0
    assert "macro_f1" in capsys.readouterr().out


def test_several_labels(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "config.json"
    plain = path.read_text()
    path.write_text(json.dumps(json.loads(plain) | {"problem_type": "multi_label_classification"}))
    chosen = cutaway.load(model).classify(ROWS).chosen()
    given = [list(one) if n % 4 else ["maybe"] for n, one in enumerate(chosen)]
    file = written(tmp_path / "many.jsonl", given, "labels")
    found = evaluated(capsys, model, "--tasks", f"labels:{file}")["tasks"]["many"]
    path.write_text(plain)
    exact = np.mean([set(a) == set(b) for a, b in zip(given, chosen, strict=True)])
    flags = [np.array([[name in row for name in NAMES] for row in rows]) for rows in (given, chosen)]
    assert found["acc"] == pytest.approx(exact) and found["macro_f1"] == pytest.approx(macro_f1(*flags))


def test_what_cannot_be_labelled_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        '{"text": "a", "label": "perhaps"}': "has the label 'perhaps', and the model's are no, yes, maybe",
        '{"text": "a", "label": 3}': "has the label 3",
        '{"prompt": "a", "label": 1}': 'has no "text"',
        '{"text": "a", "label": null}': '"label" should be a name or a number',
        '{"text": "a", "label": 1}\n{"text": "a", "labels": [1]}': "mixes lines",
        "": "has no line",
    }
    for text, problem in cases.items():
        (tmp_path / "own.jsonl").write_text(text)
        assert cli.main(["eval", str(model), "--tasks", f"labels:{tmp_path / 'own.jsonl'}"]) == 2
        assert problem in capsys.readouterr().err
