"""The security laboratory: each probe catches a planted vulnerable build and is silent on the sound one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cutaway
from cutaway import cli, security
from cutaway.evaluate import statistics
from cutaway.lm import LanguageModel
from cutaway.security import Arm, Budget, Curve, Finding, Look
from tests.small import model_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("security") / "small.gguf")


def _canned(lm: LanguageModel, *, seed: int, budget: Budget, progress: security.Progress) -> list[Finding]:
    progress(1, 1)
    attack, control = [1] * budget.trials, [0] * budget.trials
    return [
        Finding(
            "canned",
            "</pre><script>alert(1)</script>",
            security.verdict(statistics.paired(attack, control)),
            "the attack works each time",
            (
                Arm("obeyed", statistics.mean(attack)),
                Arm("nothing asked", statistics.mean(control), "control"),
            ),
            chance=0.0,
            seeds=(seed,),
            curves=(Curve("a defence", "false positives", "caught", ((0.0, 0.0), (1.0, 1.0))),),
            look=(Look(tuple(lm.ids("the canary")), 2, "where it is read"),),
        )
    ]


def test_findings_become_a_document_lines_and_a_page_that_shows_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(security, "_probe", lambda name: SimpleNamespace(run=_canned))
    monkeypatch.setattr(security, "names", lambda **_: ["canned"])
    out = tmp_path / "attacked"
    asked = ["attack", str(model), "--probe", "canned", "--trials", "8", "-o", str(out), "--json"]
    assert cli.main(asked) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((out / "results.json").read_text())
    found = document["probes"]["canned"]
    assert (found["rate"], found["n"], found["verdict"]) == (1.0, 8, "vulnerable")
    assert found["interval"] == list(statistics.wilson(8, 8))
    assert [arm["role"] for arm in found["findings"][0]["arms"]] == ["attack", "control"]
    page = (out / "report.html").read_text()
    assert "<script>alert" not in page and "<iframe sandbox" in page and "where it is read" in page
    assert (
        cli.main([*asked[:-1]]) == 0
        and "obeyed (attack): 1.000, 95% 0.676 to 1.000, n 8" in capsys.readouterr().out
    )


def test_a_name_that_is_no_probe_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attack", "smollm2", "--probe", "forgry"]) == 2
    assert "there is no probe 'forgry': use " in capsys.readouterr().err


def attacked(lm: LanguageModel, probe: str, trials: int = 4) -> dict[str, Finding]:
    """The findings of one probe by title."""
    return {found.title: found for found in security.run(lm, [probe], budget=Budget(trials))}


def test_forgery_is_found_where_the_rendered_text_is_tokenised_and_nowhere_else(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = cutaway.load(model)
    (sound,) = attacked(lm, "forgery").values()
    attack, control, *divergences = sound.arms
    assert (sound.verdict, attack.value.value) == ("sound", 0.0) and control.value.value > 0.05
    assert attack.value.n == control.value.n == 32 and divergences[0].unit == "nats"

    def careless(messages: Any, **_: Any) -> list[int]:
        return lm.tokenizer.encode(lm.chat_text(messages).text, special="allow")

    monkeypatch.setattr(lm, "chat_ids", careless)
    (planted,) = attacked(lm, "forgery").values()
    assert planted.verdict == "vulnerable" and planted.arms[0].value.value > 0.05
