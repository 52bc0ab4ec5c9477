"""/v1/runs...: curves, samples and checkpoints of runs in a folder, and nothing outside of it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway.commands import open as verb
from cutaway.commands.serve import Loader
from cutaway.commands.serve_options import Loading, Several
from cutaway.errors import UserError
from cutaway.inspect import checkpoints
from cutaway.inspect.head_scores import head_scores
from cutaway.weights.run_checkpoint import is_checkpoint
from tests import serving, training
from tests.serving import Server

from cutaway.serve.operations.models import CHECKPOINTS  # isort: skip
from cutaway.serve.runs.folder import Runs  # isort: skip
from cutaway.serve.runs.log import Log, pooled  # isort: skip
from cutaway.serve.service import Limits  # isort: skip

SENTENCE = "the same tees"
STEPS = training.SAVED


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, an experiment with an arm, answers to questions, and what leads out of it."""
    outside = tmp_path_factory.mktemp("outside")
    found = tmp_path_factory.mktemp("runs")
    training.saved(found / "one")
    (found / "arms" / "mha" / "0.01-6-0").mkdir(parents=True)
    (found / "arms" / "experiment.yaml").write_text("steps: 6\n")
    for name in ("run.yaml", "metrics.jsonl"):
        shutil.copy(found / "one" / name, found / "arms" / "mha" / "0.01-6-0" / name)
    answer = {"question": "1 + 1 =", "answer": "2", "completion": "2", "score": 1.0}
    (found / "arms" / "mha" / "0.01-6-0" / "samples.jsonl").write_text(
        json.dumps({"step": 4, **answer}) + "\n"
    )
    training.saved(outside / "secret")
    (found / "linked").symlink_to(outside / "secret")
    inside = found / "half"
    inside.mkdir()
    shutil.copy(found / "one" / "run.yaml", inside / "run.yaml")
    (inside / "metrics.jsonl").symlink_to(outside / "secret" / "metrics.jsonl")
    (inside / "checkpoints").symlink_to(outside / "secret" / "checkpoints")
    shutil.copytree(found / "one", found / "weights")
    linked = found / "weights" / "checkpoints" / "step-00000002" / "weights.safetensors"
    linked.unlink()
    linked.symlink_to(outside / "secret" / "checkpoints" / "step-00000002" / "weights.safetensors")
    os.mkfifo(found / "one" / "samples.jsonl")  # which a reader would wait at
    return found


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    lm = serving.model()
    with serving.running(lm, runs=Runs(root)) as made:
        yield made


def asked(server: Server, path: str, **body: Any) -> Any:
    answer = server.post(f"/v1/runs/{path}", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_checkpoint_is_the_model_that_was_saved(root: Path, tmp_path: Path) -> None:
    folder = root / "one" / "checkpoints" / "step-00000006"
    assert is_checkpoint(folder) and not is_checkpoint(root / "one")
    last, whole = cutaway.load(folder), cutaway.load(root / "one")
    assert np.array_equal(last.logits(SENTENCE), whole.logits(SENTENCE)), "the run's model is its last step's"
    first = cutaway.load(root / "one" / "checkpoints" / "step-00000002")
    assert not np.allclose(first.logits(SENTENCE), last.logits(SENTENCE))
    copied = tmp_path / "run" / "checkpoints" / folder.name
    shutil.copytree(folder, copied)
    (tmp_path / "run" / "run.yaml").write_text("data: {sources: []}\n")
    with pytest.raises(UserError, match="names no model"):
        cutaway.load(copied)


def test_runs_are_listed_with_their_state(server: Server) -> None:
    found = {one["id"]: one for one in server.get("/v1/runs").json()["data"]}
    assert found.keys() == {"one", "arms/mha/0.01-6-0", "half", "weights"}, "no link is followed"
    one = found["one"]
    assert one["step"] == 6 and one["steps"] == 8 and one["state"] == "running"
    assert one["checkpoints"] == [*STEPS] and one["has_model"] and one["objective"] == "next_token"
    assert found["arms/mha/0.01-6-0"]["experiment"] == "arms"
    assert "link" in found["half"]["error"] and found["half"]["checkpoints"] == []


def test_curves_and_samples(server: Server, root: Path) -> None:
    (found,) = asked(server, "curves", runs=["one"])["data"]
    lines = [json.loads(line) for line in (root / "one" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert found["curves"]["loss"] == {"x": [1, 2, 3, 4, 5, 6], "y": losses, "points": 6}
    assert found["curves"]["validation_loss"]["x"] == [*STEPS] and "learning_rate" not in found["curves"]
    (few,) = asked(server, "curves", runs=["one"], points=2)["data"]
    assert few["curves"]["loss"]["y"] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])])
    texts = asked(server, "samples", run="one")["samples"]
    assert [one["text"] for one in texts] == [f" sample of {step}" for step in STEPS]
    (answer,) = asked(server, "samples", run="arms/mha/0.01-6-0")["answers"]
    assert answer == {"step": 4, "question": "1 + 1 =", "answer": "2", "completion": "2", "score": 1.0}


def test_a_log_is_read_as_it_grows(tmp_path: Path) -> None:
    log, path = Log(), tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    log.update(path, tmp_path / "absent")
    assert log.curves == {"loss": [(1, 2.0)]}, "a line that is being written is left for later"
    with path.open("a") as file:
        file.write('ss": 1.0}\n[1]\n{"step": true, "loss": 1e400, "x": 3}\n')
    log.update(path, tmp_path / "absent")
    assert log.curves == {"loss": [(1, 2.0), (2, 1.0)], "x": [(0, 3.0)]} and log.step == 2
    other = tmp_path / "other"
    other.write_text('{"step": 1, "loss": 7.0}\n')
    other.replace(path)  # as a run that is resumed cuts its log
    log.update(path, tmp_path / "absent")
    assert log.curves == {"loss": [(1, 7.0)]}
    assert pooled([(0, 1.0), (1, 3.0), (2, 5.0)], 2)["y"] == [1.0, 4.0]


def test_what_a_checkpoint_has_learned(server: Server, root: Path) -> None:
    found = asked(server, "checkpoint", run="one", step=2, text=SENTENCE, reference=6)
    lm, last = (cutaway.load(root / "one" / "checkpoints" / f"step-0000000{step}") for step in (2, 6))
    ids = lm.ids(SENTENCE)
    scores = lm.logits(ids).astype(np.float64)
    nats = np.log(np.exp(scores).sum(1)) - scores[range(len(ids)), [*ids[1:], 0]]
    assert [one["nats"] for one in found["tokens"]] == pytest.approx(nats[:-1].tolist(), abs=1e-4)
    assert "".join(one["text"] for one in found["tokens"]) == SENTENCE and found["model"] == "one@2"
    expected = head_scores(lm, "induction", length=8, texts=2).values
    assert np.allclose(found["induction"]["heads"], expected)
    assert found["induction"]["score"] == pytest.approx(expected.max())
    drawn = [*dict.fromkeys(one["id"] for one in found["tokens"])]
    rows, onto = (checkpoints.table(one.subject, drawn) for one in (lm, last))
    assert found["map"] == {"texts": [chr(one) for one in drawn]} | checkpoints.aligned(rows, onto)


def test_the_map_is_rotated_and_no_more() -> None:
    draw = np.random.default_rng(0)
    onto = draw.standard_normal((20, 6))
    rotation, _ = np.linalg.qr(draw.standard_normal((6, 6)))
    same = checkpoints.aligned(onto @ rotation + 3, onto)
    assert same["distance"] < 1e-12
    assert np.allclose(same["at"], checkpoints.aligned(onto, onto)["at"], atol=1e-6)
    found = checkpoints.rotation(draw.standard_normal((20, 6)), onto)
    assert np.allclose(found @ found.T, np.eye(6))
    assert checkpoints.aligned(2 * onto, onto)["distance"] == pytest.approx(1), "sizes stay as they are"


HOSTILE = [
    "..",
    "../secret",
    "one/..",
    "/etc",
    "one/",
    "./one",
    "linked",
    "a\0b",
    "one\\..",
    "",
    "arms",
    "é" * 300,
]
HOSTILE += ["one/checkpoints/step-00000002", "one//", "x/" * 99]


@pytest.mark.parametrize("run", HOSTILE)
def test_nothing_outside_of_the_folder_is_read(server: Server, run: str) -> None:
    for path, more in (("samples", {}), ("checkpoint", {"step": 2, "text": "a"})):
        answer = server.post(f"/v1/runs/{path}", {"run": run, **more})
        assert answer.status_code in (400, 404), answer.text
        assert "samples" not in answer.json() and "/tmp" not in answer.text
    answer = server.post("/v1/chat/completions", {"model": f"{run}@2", "messages": []})
    assert answer.status_code in (400, 404)


def test_links_inside_of_a_run_lead_nowhere(server: Server, root: Path) -> None:
    for path, body in (
        ("curves", {"runs": ["half"]}),
        ("samples", {"run": "half"}),
        ("checkpoint", {"run": "half", "step": 2, "text": "a"}),
        ("checkpoint", {"run": "weights", "step": 2, "text": "a"}),
    ):
        answer = server.post(f"/v1/runs/{path}", body)
        assert answer.status_code in (400, 403, 404) and "/tmp" not in answer.text, (path, answer.text)
    (root / "broken").mkdir(exist_ok=True)
    (root / "broken" / "run.yaml").write_text("a: [")
    (root / "broken" / "metrics.jsonl").write_text('{"step": 1}\n{{\n')
    answer = server.post("/v1/runs/curves", {"runs": ["broken"]})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("broken/metrics.jsonl")
    assert "error" in next(one for one in server.get("/v1/runs").json()["data"] if one["id"] == "broken")
    shutil.rmtree(root / "broken")


def test_a_checkpoint_answers_under_its_own_name(root: Path) -> None:
    loader = Loader((str(root / "one"),), Loading(), Several(runs=root), Limits(max_sequences=2), plain=True)
    models = loader.models()
    try:
        assert models.find("one@4").name == "one@4" and models.find("one@4") is models.find("one@4")
        for step in STEPS:
            models.find(f"one@{step}")
        assert sum(one.of_run for one in models.models) == 1, "those that none uses are forgotten"
        service = models.load_checkpoint("one@4", root / "one" / "checkpoints" / "step-00000004")
        text = service.lm.chat_ids([{"role": "user", "content": "the"}])
        expected = cutaway.load(root / "one" / "checkpoints" / "step-00000004").ids("the")
        assert text == expected, "its text is continued: there is no chat template"
        service.stop(0.0)
        for name in ("one@3", "one@99999999999", "two@2"):
            with pytest.raises(Exception, match=r"no checkpoint of step 3|There is no"):
                models.find(name)
    finally:
        models.close()
    with pytest.raises(UserError, match="there is no such folder"):
        Loader((str(root / "one"),), Loading(), Several(runs=root / "absent"), Limits()).models()


def test_few_checkpoints_are_loaded_at_once(server: Server, root: Path) -> None:
    models = server.server.models

    def load(name: str, path: Path) -> Any:
        loader = Loader(
            ("one",), Loading(), Several(), Limits(max_sequences=1), first=server.service, plain=True
        )
        return loader._service(name, path, ())

    models.load_checkpoint = load
    chat = {"messages": [{"role": "user", "content": "the"}], "max_tokens": 4, "temperature": 0}
    for step in STEPS:
        answer = server.post("/v1/chat/completions", {"model": f"one@{step}", **chat})
        assert answer.status_code == 200, answer.text
        own = cutaway.load(root / "one" / "checkpoints" / f"step-0000000{step}")
        expected = own.generate("the", max_tokens=4, temperature=0).text
        assert answer.json()["choices"][0]["message"]["content"] == expected
        loaded = [one for one in models.models if one.of_run and one.service]
        assert len(loaded) <= CHECKPOINTS
    assert server.get("/v1/models/one@6").json()["max_model_len"] == training.CONTEXT


def test_open_takes_a_run_and_a_folder_of_runs(root: Path, tmp_path: Path) -> None:
    assert verb._with_runs(str(root / "one")) == (str(root / "one"), root / "one")
    model, runs = verb._with_runs(str(root))
    assert Path(model).parent == root and (Path(model) / "model").is_dir() and runs == root
    assert verb._with_runs("smollm2") == ("smollm2", None)
    assert Runs(root / "one").folder("one") == root / "one", "a run that is served alone has its own name"
    (tmp_path / "a").mkdir()
    shutil.copy(root / "one" / "run.yaml", tmp_path / "a" / "run.yaml")
    with pytest.raises(UserError, match="has saved a model yet"):
        verb._with_runs(str(tmp_path))


def test_a_server_without_runs_says_so(root: Path) -> None:
    with serving.running(serving.model(1)) as plain:
        assert plain.get("/v1/runs").json() == {"object": "list", "data": [], "served": False}
        answer = plain.post("/v1/runs/curves", {"runs": ["one"]})
        assert answer.status_code == 404 and "--runs" in answer.json()["error"]["message"]
