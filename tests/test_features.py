"""Features of a small model's transcoder: the replacement, texts, effects, labels, pages, and steering."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway.cli import main
from cutaway.commands import serve, serve_options
from cutaway.commands.serve_options import Several
from cutaway.errors import UserError
from cutaway.inspect import (
    dictionaries,
    feature_labels,
    features,
    sae_check,
    sae_folders,
    sae_formats,
    sae_training,
)
from cutaway.inspect.activations import Activations
from cutaway.inspect.arrays import log_softmax
from cutaway.inspect.features import Scan
from cutaway.inspect.sae import SAE, Card
from cutaway.serve.edit_schema import MODELS
from cutaway.serve.service import Limits
from cutaway.weights import safetensors
from tests.small import model_file

TEXTS = [
    f"{word} <i>adds<i> up <i> and <i>then<i> some {word} of it <b>"
    for word in ("all", "none", "most", "half", "more", "few")
]
NAMES = ["blocks.1.mlp_norm", "blocks.1.mlp.down"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, a dataset of its MLP, and a transcoder of it."""
    here = tmp_path_factory.mktemp("features")
    lm = cutaway.load(model_file(here / "tiny.gguf"))
    data = lm.activations(TEXTS, NAMES, here / "acts")
    options: Any = {"features": 48, "k": 4, "steps": 30, "batch": 32, "skip": True}
    sae_training.train(data, NAMES, kind="transcoder", **options).save(here / "made")
    (here / "texts.jsonl").write_text("".join(json.dumps({"text": text[::-1]}) + "\n" for text in TEXTS))
    return here


def test_texts_are_kept_beside_a_dictionary_and_read_back(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "set" / "layer_1"
    shutil.copytree(folder / "made", own)
    assert main(["sae", "texts", str(tmp_path / "set"), str(folder / "acts"), "--threads", "1"]) == 0
    lm, scan = (
        cutaway.load(folder / "tiny.gguf"),
        Scan(sae_folders.load(own), Activations.open(folder / "acts")),
    )
    features.set_label(own, sae_folders.load(own), 3, "a label")
    (found,) = dictionaries.read_dictionaries(tmp_path / "set", lm)
    kept = found.contexts
    assert kept is not None and found.labels == {3: "a label"}
    assert (kept.often == scan.often.astype(np.float32)).all() and (kept.most == scan.most).all()
    strongest = int(scan.often.argmax())
    ids, at, activation = next(kept.of(strongest))
    example = scan.example(strongest, int(scan.best[strongest, 0]))
    assert (tuple(ids), at) == (example.ids, example.at)
    assert activation == pytest.approx(example.strength, rel=1e-5) and activation == scan.most[strongest]
    fires = [bool(list(kept.of(one))) for one in range(48)]
    assert fires == (scan.often > 0).tolist()
    tensors = safetensors.read_safetensors(own / dictionaries.CONTEXTS)
    tensors["ids"] = ("I32", kept.ids.shape, np.where(kept.ids >= 0, 9999, -1).astype(np.int32))
    safetensors.write_safetensors(own / dictionaries.CONTEXTS, tensors)
    with pytest.raises(UserError, match="of another dictionary or another tokenizer: make it anew"):
        dictionaries.read_dictionaries(tmp_path / "set", lm)


@pytest.mark.parametrize(
    ("values", "why"),
    [("blocks.9.mlp_norm", "other: there is no blocks.9.mlp_norm"), (NAMES[0], "of 3 numbers")],
)
def test_a_dictionary_of_another_model_is_refused(
    folder: Path, tmp_path: Path, values: str, why: str
) -> None:
    card = Card("transcoder", "topk", (values,), (NAMES[1],), (3, 3), "another", 2, 1)
    SAE(
        card,
        {
            "W_enc": np.ones((2, 3), "f4"),
            "W_dec": np.ones((2, 3), "f4"),
            "b_enc": np.zeros(2, "f4"),
            "b_dec": np.zeros(3, "f4"),
        },
    ).save(tmp_path / "other")
    given = serve_options.Loading(features=(str(tmp_path / "other"),))
    with pytest.raises(UserError, match=why):
        serve.Loader((str(folder / "tiny.gguf"),), given, Several(), Limits()).models()
    given = serve_options.Loading(features=(str(tmp_path / "none"),))
    with pytest.raises(UserError, match="there is no such folder"):
        serve.Loader((str(folder / "tiny.gguf"),), given, Several(), Limits()).models()


def test_another_tools_folder_is_read_too_and_damaged_ones_are_refused(folder: Path, tmp_path: Path) -> None:
    lm, names = cutaway.load(folder / "tiny.gguf"), ("blocks.1.out",)
    width = lm.config.width
    of = {"W_enc": np.ones((6, width), "f4"), "W_dec": np.ones((6, width), "f4"), "b_enc": np.zeros(6, "f4")}
    card = Card("sae", "topk", names, names, (width, width), "tiny", 6, 2)
    made = SAE(card, of | {"b_dec": np.zeros(width, "f4")})
    sae_formats.save([made], tmp_path / "theirs", "saelens")
    (found,) = dictionaries.read_dictionaries(tmp_path / "theirs" / "cfg.json", lm)
    assert found.made.name == "blocks.1.out" and found.made.card.features == 6
    made.save(tmp_path / "ours")
    for text, why in (
        ('{"6": "a"}', "there is no feature 6: they are 0 to 5; remove the file"),
        ("[]", "labels.json"),
        ('{"1": 2}', "no feature's number"),
    ):
        (tmp_path / "ours" / "labels.json").write_text(text)
        with pytest.raises(UserError, match=why):
            dictionaries.read_dictionaries(tmp_path / "ours", lm)
    with pytest.raises(UserError, match="holds no autoencoder"):
        dictionaries.read_dictionaries(tmp_path / "theirs" / "none", lm)


def test_the_replacement_is_the_model_with_what_is_written_in_place(folder: Path) -> None:
    lm = cutaway.load(folder / "tiny.gguf", engine="pytorch")
    made, data = sae_folders.load(folder / "made"), Activations.open(folder / "acts")
    found = sae_check.check(lm, [made], TEXTS[:2], data)
    rows = {(row.what, row.by): row for row in found.rows}
    assert list(rows) == [(NAMES[1], by) for by in ("features", "mean", "linear map")] + [
        (sae_check.ERRORS, "features")
    ]
    losses, divergences, weights = [], [], []
    for text in TEXTS[:2]:
        ids = lm.ids(text)
        seen: dict[str, Any] = {}
        clean = log_softmax(lm.logits(ids)[:-1].astype(np.float64))

        def written(value: Any, seen: dict[str, Any] = seen) -> Any:
            x = seen["x"][0].numpy()
            y = made.decode(made.encode(x), x)
            return np.where(np.arange(len(x))[:, None] == 0, value[0].numpy(), y)[None]

        def read(value: Any, seen: dict[str, Any] = seen) -> None:
            seen["x"] = value.clone()

        after = log_softmax(lm.logits(ids, edit={NAMES[0]: read, NAMES[1]: written})[:-1].astype(np.float64))
        losses.append(-after[np.arange(len(ids) - 1), ids[1:]].mean())
        divergences.append((np.exp(clean) * (clean - after)).sum(1).mean())
        weights.append(len(ids) - 1)
    features_row = rows[NAMES[1], "features"]
    assert features_row.loss == pytest.approx(np.average(losses, weights=weights), abs=1e-4)
    assert features_row.kl == pytest.approx(np.average(divergences, weights=weights), abs=1e-4)
    assert features_row.kl > 1e-6 and abs(rows[sae_check.ERRORS, "features"].kl) < 1e-5
    assert rows[sae_check.ERRORS, "features"].loss == pytest.approx(found.loss, abs=1e-4)
    assert all(row.kl_error is not None for row in found.rows)
    alone = sae_check.check(lm, [made], TEXTS[:1])  # one text has no standard error
    assert alone.texts == 1 and all(row.kl_error is None for row in alone.rows)
    with pytest.raises(UserError, match="give texts of two tokens or more"):
        sae_check.check(lm, [made], ["a"])


def test_a_scan_counts_what_fires_and_correlates(folder: Path) -> None:
    made, data = sae_folders.load(folder / "made"), Activations.open(folder / "acts")
    rows = np.flatnonzero((data.documents % features.HELD != 0) & (data.positions > 0))
    f = made.encode(data.rows(NAMES[0], rows))
    one = int((f > 0).sum(0).argmax())
    scan = Scan(made, data, [one])
    assert np.array_equal(scan.rows, rows) and np.allclose(scan.often, (f > 0).mean(0))
    assert np.allclose(scan.most, f.max(0)) and scan.best[one, 0] == rows[f[:, one].argmax()]
    counts, _ = scan.histogram(one)
    assert counts.sum() == (f[:, one] > 0).sum()
    for other, r in scan.correlates(one, 3):
        assert other != one and r == pytest.approx(np.corrcoef(f[:, one], f[:, other])[0, 1], abs=1e-4)
    examples = scan.examples(one)
    top = examples["strongest"][0]
    assert (
        top.strength == pytest.approx(f[:, one].max(), rel=1e-5)
        and top.ids[top.at] == data.token_ids[top.row]
    )
    shown = {int(data.documents[each.row]) for some in examples.values() for each in some}
    assert shown and not any(document % features.HELD == 0 for document in shown)
    held = Scan(made, data, [one], held=True)
    assert set(data.documents[held.rows].tolist()) == {0, 5}


def test_effects_are_the_directions_through_the_head(folder: Path) -> None:
    lm, made = cutaway.load(folder / "tiny.gguf", engine="pytorch"), sae_folders.load(folder / "made")
    (found,) = features.effects(lm, made, [7])
    norm, head = lm.model.norm.weight, lm.model.embedding.weight
    logits = ((head * norm).detach().numpy() @ made.W_dec[7])[: len(lm.tokenizer)]
    assert [id for id, _ in found.raised] == np.argsort(-logits, kind="stable")[:8].tolist()
    assert found.lowered[0][1] == pytest.approx(logits.min(), rel=1e-3)


def test_a_label_is_judged_by_pairs_of_held_out_texts(folder: Path) -> None:
    """A label that tells texts apart is right in all pairs; one that says nothing in about half."""
    count, size = 200, 8
    documents = np.repeat(np.arange(count), size).astype(np.int32)
    fires = documents % 2 == 0
    rows = np.zeros((len(documents), 2), np.float16)
    rows[fires, 0] = 1
    shard = {
        "token_ids": np.where(fires, 65, 66).astype(np.int32),
        "documents": documents,
        "blocks.1.out": rows,
    }
    shard["positions"] = np.tile(np.arange(size, dtype=np.int32), count)
    eye = np.eye(2, dtype=np.float32)
    tensors = {"W_enc": eye, "b_enc": np.zeros(2, np.float32), "W_dec": eye, "b_dec": np.zeros(2, np.float32)}
    made = SAE(Card("sae", "topk", ("blocks.1.out",), ("blocks.1.out",), (2, 2), "m", 2, 1), tensors)
    held = Scan(made, Activations([shard], {"model": "m"}), [0, 1], held=True)
    lm = cutaway.load(folder / "tiny.gguf")
    ask = lambda score: feature_labels.judged(lm, held, 0, "capital A", 20, score=score)  # noqa: E731
    assert ask(lambda text: text.count("A")) == (20, 20) and ask(lambda text: -text.count("A")) == (0, 20)
    chance = np.random.default_rng(0)
    assert 3 <= ask(lambda text: chance.random())[0] <= 17
    with pytest.raises(UserError, match="feature 1 fires in no held-out text"):
        feature_labels.judged(lm, held, 1, "nothing", score=len)
    always = Activations([shard | {"blocks.1.out": np.ones_like(rows)}], {"model": "m"})
    held = Scan(made, always, [0], held=True)
    with pytest.raises(UserError, match=r"feature 0 fires in every held-out text of the dataset \(40\)"):
        feature_labels.judged(lm, held, 0, "everything", score=len)


def test_the_verbs_show_label_find_and_steer(
    folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, acts, model = str(folder / "made"), str(folder / "acts"), str(folder / "tiny.gguf")
    command = ["sae", "features", made, acts, "--model", model]
    assert main([*command, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["features"]
    one = listed[0]["feature"]
    assert main([*command, "--label", f"{one}=the <b> of it", "--search", "the <b>", "--json"]) == 0
    assert [row["feature"] for row in json.loads(capsys.readouterr().out)["features"]] == [one]
    page, board, file = folder / "page.html", folder / "board.json", folder / "steer.safetensors"
    shown = [*command, "--feature", str(one), "--html", str(page), "--neuronpedia", str(board)]
    assert main([*shown, "--steering-file", str(file)]) == 0
    out, err = capsys.readouterr()
    assert f"Wrote {page} (" in " ".join(err.split()) and f"Wrote {board} (" in " ".join(err.split())
    read = len(Scan(sae_folders.load(folder / "made"), Activations.open(folder / "acts"), []).rows)
    assert f"percentages are of {read} tokens, none of them an attention sink" in " ".join(err.split())
    for words, answer in (
        (["--steering-file", str(file)], "--steering-file takes one --feature, and none are given"),
        (["--feature", str(one), "--pairs", "0"], "--pairs is 0"),
    ):
        assert main([*command, *words]) == 2
        err = " ".join(capsys.readouterr().err.split())
        assert answer in err and ("--pairs" in err) == ("--pairs" in words)
    assert f"feature {one}: the <b> of it" in out and "strongest:" in out and "goes along with" in out
    document = page.read_text()
    contexts = "".join(re.findall(r'<ul class="contexts">(.*?)</ul>', document, re.S))
    assert "&lt;" in contexts and "<" not in re.sub(r"</?(?:span|b|li)( [^>]*)?>", "", contexts)
    assert "Feature" in document and "&lt;b&gt; of it" in document and "<b> of it" not in document
    charts = json.loads(
        zlib.decompress(base64.b64decode(re.findall(r'id="data">([^<]*)</script>', document)[0]))
    )
    assert charts[0]["rows"][0][:2] == [one, "the <b> of it"]
    (dashboard,) = json.loads(board.read_text())["features"]
    assert dashboard["feature_index"] == one and dashboard["explanations"] == [
        {"description": "the <b> of it"}
    ]
    first = dashboard["activations"][0]
    assert first["values"][first["maxValueTokenIndex"]] == first["maxValue"] > 0
    lm, features_of = cutaway.load(model), sae_folders.load(made)
    steered = lm.logits(
        "all of it", edit=features_of.add(one, float(Scan(features_of, Activations.open(acts)).most[one]))
    )
    from cutaway.inspect import steering

    assert np.allclose(lm.logits("all of it", edit=steering.load(file)), steered, atol=1e-4)
    plain, changed = (
        [*["generate", "all of it", "--model", model, "--max-tokens=4"], *more]
        for more in ([], ["--steer", f"{file}:900"])
    )
    texts = [capsys.readouterr().out for line in (plain, changed) if main(line) == 0]
    assert len(texts) == 2 and texts[0] != texts[1]
    assert main([*command, "--feature", str(one), "--json"]) == 0
    edit = json.loads(capsys.readouterr().out)["features"][0]["edit"]  # what a request to the server takes
    assert MODELS["add"].model_validate(edit) and np.allclose(edit["vector"], features_of.W_dec[one])
    (folder / "template").write_text("{% for one in messages %}{{ one.content }}{% endfor %}")
    talks = []
    for strength in (0, 900):
        monkeypatch.setattr("sys.stdin", io.StringIO("all of it\nand more\n"))
        chat = ["chat", model, "--chat-template", str(folder / "template"), "--max-tokens=4"]
        assert main([*chat, "--temperature=0", "--steer", f"{file}:{strength}"]) == 0
        talks.append(capsys.readouterr().out)
    assert talks[0] != talks[1]
    assert main(["chat", "--steer", f"{file}:nine"]) == 2
    assert "write FILE:STRENGTH" in capsys.readouterr().err
    for wrong, why in (
        (["--label", "17"], "write NUMBER=TEXT"),
        (["--feature", "48"], "there is no feature 48: they are 0 to 47"),
        (["--search", "nowhere"], "no feature has 'nowhere'"),
        (["--judge"], "name the features to be shown"),
        (["--feature", "1", "--judge"], "--judge needs a label"),
    ):
        assert main([*command, *wrong]) == 2 and why in " ".join(capsys.readouterr().err.split())


def test_check_and_convert_as_verbs(folder: Path, capsys: Any) -> None:
    made, model = str(folder / "made"), str(folder / "tiny.gguf")
    texts = [str(folder / "texts.jsonl"), "--model", model, "--limit=2"]
    assert main(["sae", "check", made, *texts]) == 0
    assert "blocks.1.mlp.down by features" in capsys.readouterr().out
    assert json.loads((folder / "made" / "replacement.json").read_text())["texts"] == 2
    assert main(["sae", "convert", made, "--output", str(folder / "theirs")]) == 2
    assert "SAELens has no TopK transcoder" in capsys.readouterr().err
    assert (
        main(["sae", "convert", made, "--format", "cutaway", "--model", "m", "--output", str(folder / "own")])
        == 0
    )
    assert sae_folders.load(folder / "own").card.model == "m"


def test_a_set_is_trained_by_the_verb_and_gone_on_with(folder: Path, capsys: Any) -> None:
    out = folder / "set"
    command = [
        "sae",
        str(folder / "acts"),
        "--kind",
        "transcoder",
        "--steps=4",
        "--batch=16",
        "--output",
        str(out),
    ]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "transcoder, topk, 4 steps" in shown and "6 of" in shown and "the best linear map" in shown
    assert main(command) == 0 and main([*command, "--k", "9"]) == 2
    assert "layer_1 has k 32, and 9 is asked for" in capsys.readouterr().err
    assert main([*command, "--k", "9", "--force"]) == 0
    assert main([*command[:2], "--kind", "topk", "--output", str(folder / "no")]) == 2
    assert "--kind topk is --activation topk" in capsys.readouterr().err
    assert main([*command[:2], "--kind", "transcoder", "--output", str(folder / "made")]) == 2
    assert "give --force" in capsys.readouterr().err


def test_a_feature_that_never_fires_steers_nothing(folder: Path, tmp_path: Path, capsys: Any) -> None:
    made = sae_folders.load(folder / "made")
    made.tensors["b_enc"] = made.b_enc - 1e6 * (np.arange(48) == 3).astype(np.float32)
    made.tensors["W_enc"] = made.W_enc * (np.arange(48) != 3)[:, None].astype(np.float32)
    made.save(tmp_path / "made")
    command = ["sae", "features", str(tmp_path / "made"), str(folder / "acts"), "--feature", "3"]
    command += ["--model", str(folder / "tiny.gguf")]
    assert main(command) == 0 and "fires at no token that was read" in capsys.readouterr().out
    assert main([*command, "--steering-file", str(tmp_path / "x.safetensors")]) == 2
    assert "its largest activation is 0" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.safetensors").exists()


def test_a_label_is_seen_wherever_its_feature_is(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """Labels are in the folder of the one layer, also of a set that is given; explain and graph show them."""
    shutil.copytree(folder / "made", tmp_path / "set" / "layer_1")
    (tmp_path / "set" / "layer_1" / "labels.json").unlink(missing_ok=True)
    model, given = str(folder / "tiny.gguf"), str(tmp_path / "set")
    labels = [word for n in range(48) for word in ("--label", f"{n}=word {n} \x1b[31m<b>")]
    command = ["sae", "features", given, str(folder / "acts"), "--model", model, "--search", "<b>", "--json"]
    assert main([*command, *labels]) == 0
    assert (tmp_path / "set" / "layer_1" / "labels.json").is_file()
    assert not (tmp_path / "set" / "labels.json").exists()
    capsys.readouterr()
    assert main(["explain", "all of it", "--model", model, "--sae", given]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\d+ word \d+ .*<b> \d", out) and "\x1b" not in out
    assert main(["explain", "all of it", "--model", model, "--sae", given, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tokens"]
    assert all(one["label"].startswith(f"word {one['feature']} ") for row in rows for one in row["features"])
    page = tmp_path / "graph.html"
    drawn = ["graph", "all of it", "--model", model, "--features", given, "--nodes", "1", "--json"]
    assert main([*drawn, "--html", str(page)]) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    shown = [node["clerp"] for node in nodes if node["feature_type"] == "cross layer transcoder"]
    assert shown and all(re.match(r"feature 1\.(\d+): word \1 ", one) for one in shown)
    assert "<b>" not in re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.S)
