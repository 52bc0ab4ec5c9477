"""/v1/attention, /v1/lens, /v1/attribution and /v1/divergence against the same numbers of Python."""

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.inspect import features, tuned_maps
from cutaway.inspect.arrays import log_softmax, softmax
from cutaway.inspect.dictionaries import Contexts, Dictionary
from cutaway.inspect.edits import Ablate, from_json
from cutaway.inspect.jacobian_lens import JacobianLens
from cutaway.inspect.sae import SAE, Card
from cutaway.weights import adapters
from tests import serving
from tests.serving import Server
from tests.waiting import wait_until

from cutaway.serve.service import adapter_engine  # isort: skip

TEXT = "The capital of France is the city of"
EDITS = [
    {"kind": "ablate", "layer": 1, "part": "head", "head": 3},
    {"kind": "scale", "layer": 0, "part": "mlp", "strength": 0.5},
]


LABEL = "<b>a label</b>\u202e"
WHERE = {"transcoder": ("blocks.0.mlp_norm", "blocks.0.mlp.down"), "sae": ("blocks.1.out", "blocks.1.out")}


@pytest.fixture(scope="module")
def saes() -> list[Dictionary]:
    """Two dictionaries of random directions; of the second a label and texts are kept."""
    draw = np.random.default_rng(0)
    kinds: Any = []
    for kind, names in WHERE.items():
        card = Card(kind, "topk", names[:1], names[1:], (576, 576), "model", 64, 4)  # type: ignore[arg-type]
        of = {name: draw.standard_normal((64, 576), np.float32) for name in ("W_enc", "W_dec")}
        kinds.append(SAE(card, of | {"b_enc": np.zeros(64, "f4"), "b_dec": np.zeros(576, "f4")}))
    numbers, ids = np.full(64, 0.25, np.float32), np.full((64, 1, 3), -1, np.int32)
    ids[17, 0, :2] = 504, 3575  # "The", " capital"
    strengths = np.where(np.arange(64) == 17, np.float32(2.5), 0)[:, None]
    texts = Contexts(numbers, numbers, ids, np.ones((64, 1), np.int32), strengths)
    return [Dictionary(kinds[0], {}, None), Dictionary(kinds[1], {17: LABEL}, texts)]


@pytest.fixture(scope="module")
def server(saes: list[Dictionary]) -> Iterator[Server]:
    lm = serving.model()
    with serving.running(lm, dictionaries=saes, trace_numbers=2_000, trace_tokens=200) as made:
        yield made


def asked(server: Server, path: str, **body: Any) -> Any:
    answer = server.post(path, {"text": TEXT} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Server, path: str, **body: Any) -> str:
    answer = server.post(path, {"text": TEXT} | body)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


def roots(weights: np.ndarray) -> np.ndarray:
    """Weights as the API's bytes."""
    return np.rint(255 * np.sqrt(np.clip(weights, 0, 1)))


def weights_of(server: Server, edit: Any = None) -> np.ndarray:
    """[layer head query key]"""
    trace = server.service.lm.trace(TEXT, edit=edit)
    return np.stack([trace.attention(i) for i in range(2)])


# ---- features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edits", [[], EDITS])
def test_features_are_those_of_the_traces_activations(
    server: Server, saes: list[Dictionary], edits: list[Any]
) -> None:
    names = [one.made.name for one in saes]
    trace = server.service.lm.trace(TEXT, names=names, edit=list(map(from_json, edits)) or None)
    found = asked(server, "/v1/features", position=-2, top=3, edits=edits)["dictionaries"]
    for one, its in zip(saes, found, strict=True):
        own = one.made.top(trace[one.made.name][-2:-1], 3)[0]
        assert [each["feature"] for each in its["features"]] == [each.feature for each in own]
        ours = [each["activation"] for each in its["features"]]
        assert ours == pytest.approx([each.activation for each in own], rel=1e-4)
    assert [(its["layer"], its["kind"], its["sink"]) for its in found] == [
        (0, "transcoder", False), (1, "sae", False)
    ]  # fmt: skip
    assert all(its["sink"] for its in asked(server, "/v1/features", position=0)["dictionaries"])


def test_a_card_has_what_is_kept_of_a_feature_and_its_effect(server: Server, saes: list[Dictionary]) -> None:
    card = asked_card(server, 1, 17)
    assert (card["label"], card["density"], card["largest"]) == (LABEL, 0.25, 0.25)
    assert card["texts"] == [{"tokens": ["The", " capital"], "at": 1, "activation": 2.5}]
    (effect,) = features.effects(server.service.lm, saes[1].made, [17])
    for ours, side in ((effect.raised, "raises"), (effect.lowered, "lowers")):
        assert [(one["id"], one["logit"]) for one in card[side]] == list(ours)
    bare = asked_card(server, 0, 3)
    assert bare["label"] is bare["density"] is None and bare["texts"] == []


@pytest.mark.parametrize("n", [0, 1])
def test_a_cards_direction_edits_an_answer_as_in_python(
    server: Server, saes: list[Dictionary], n: int
) -> None:
    direction, lm = asked_card(server, n, 17)["direction"], server.service.lm
    made = saes[n].made
    for edit, ours in (
        ({"kind": "project", **direction}, made.remove(17)),
        ({"kind": "project", **direction, "strength": 0.5}, replace(made.remove(17), strength=0.5)),
        ({"kind": "add", **direction, "strength": 30.0}, made.add(17, 30.0)),
    ):
        asked = {"prompt": TEXT, "max_tokens": 4, "temperature": 0, "edits": [edit]}
        answer = server.post("/v1/completions", asked).json()["choices"][0]["text"]
        assert answer == lm.generate(TEXT, max_tokens=4, edit=ours).text
    assert answer != lm.generate(TEXT, max_tokens=4).text


def test_what_features_refuse(server: Server) -> None:
    assert "There is no position 99" in refused(server, "/v1/features", position=99)
    wanted = {"dictionary": 2, "feature": 0}
    assert "they are 0 to 1" in server.post("/v1/features/card", wanted).json()["error"]["message"]
    wanted = {"dictionary": 0, "feature": 64}
    assert "There is no feature 64" in server.post("/v1/features/card", wanted).json()["error"]["message"]


def asked_card(server: Server, dictionary: int, feature: int) -> Any:
    answer = server.post("/v1/features/card", {"dictionary": dictionary, "feature": feature})
    assert answer.status_code == 200, answer.text
    return answer.json()


# ---- attention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edits", [[], EDITS])
def test_a_row_of_all_heads_is_that_of_the_trace(server: Server, edits: list[Any]) -> None:
    found = asked(server, "/v1/attention", positions=[-1, 2], edits=edits)
    ours = weights_of(server, list(map(from_json, edits)) or None)
    length = ours.shape[-1]
    assert found["maps"] == [[i, h] for i in range(2) for h in range(9)]
    assert found["positions"] == [2, length - 1] and found["shape"] == [2, length]
    expected = roots(ours[:, :, [2, -1]]).reshape(18, 2, length)
    assert np.abs(np.array(found["data"]) - expected).max() <= 1


def test_maps_are_pooled_by_their_largest_weight(server: Server) -> None:
    found = asked(server, "/v1/attention", layers=[1], heads=[7, 2], size=3)
    whole = weights_of(server)[1][[2, 7]]
    length = whole.shape[-1]
    each = -(-length // 3)
    assert found["pooled"] == [each, each] and found["maps"] == [[1, 2], [1, 7]]
    pooled = [
        [
            [head[q : q + each, k : k + each].max() for k in range(0, length, each)]
            for q in range(0, length, each)
        ]
        for head in whole
    ]
    assert np.abs(np.array(found["data"]) - roots(np.array(pooled))).max() <= 1


def test_the_binary_is_laid_out_as_documented(server: Server) -> None:
    body = {"text": TEXT, "positions": [-1], "size": 4}
    answer = server.post("/v1/attention", body | {"format": "binary"})
    assert answer.headers["content-type"] == "application/vnd.cutaway.maps"
    data = answer.content
    size = int.from_bytes(data[:4], "little")
    facts = json.loads(data[4 : 4 + size])
    cells = np.frombuffer(data[4 + size :], np.uint8).reshape(len(facts["maps"]), *facts["shape"])
    assert (4 + size) % 4 == 0
    whole = asked(server, "/v1/attention", positions=[-1], size=4)
    assert (cells == np.array(whole.pop("data"))).all() and facts == whole


def test_a_prompt_of_ids_is_read_as_it_is(server: Server) -> None:
    ids = server.service.lm.ids(TEXT)
    whole = asked(server, "/v1/attention", positions=[-1])
    found = server.post("/v1/attention", {"prompt_token_ids": ids, "positions": [-1]}).json()
    assert found == whole
    assert "Give the prompt once" in refused(server, "/v1/attention", prompt_token_ids=ids)


def test_what_attention_refuses(server: Server) -> None:
    assert "There is no layer 2" in refused(server, "/v1/attention", layers=[2])
    assert "There is no head 0.9" in refused(server, "/v1/attention", heads=[9], layers=[0])
    assert "There is no position 99" in refused(server, "/v1/attention", positions=[99])
    assert "at most 2,000: give a smaller size" in refused(server, "/v1/attention", text="a b " * 20)
    assert "no tokens: give at least one" in refused(server, "/v1/attention", text="", size=8)


@pytest.mark.parametrize("path", ["/v1/attention", "/v1/attribution"])
def test_a_client_that_leaves_stops_the_work(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, held = server.service.decoder, threading.Event()
    deliver = scheduler.on_step

    def hold() -> None:
        deliver()
        if scheduler._running:
            held.wait(20)

    monkeypatch.setattr(scheduler, "on_step", hold)
    body = json.dumps({"text": TEXT}).encode()
    host = server.url.removeprefix("http://")
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    try:
        with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2]))) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: scheduler.stats().running == 1, "the text is read")
        wait_until(lambda: scheduler._running[0].stream.cancelled, "the server sees that the client left")
    finally:
        held.set()


# ---- lenses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [-1, 3])
def test_the_logit_lens_is_the_traces(server: Server, at: int) -> None:
    found = asked(server, "/v1/lens", position=at)
    ours = server.service.lm.trace(TEXT).lens()
    assert [one["after"] for one in found["logit_lens"]] == list(ours.names)
    assert [one["top"][0]["id"] for one in found["logit_lens"]] == ours.ids[:, at].tolist()
    best = [one["top"][0]["probability"] for one in found["logit_lens"]]
    assert np.allclose(best, ours.probabilities[:, at], atol=1e-4)
    assert np.allclose([one["probability"] for one in found["logit_lens"]], ours.final[:, at], atol=1e-4)
    assert found["tuned_lens"] is None


def test_a_tuned_lens_is_beside_it(tmp_path: Path) -> None:
    lm = serving.model()
    width, draw = lm.config.width, np.random.default_rng(0)
    maps = tuned_maps.TunedLens(
        lm.subject,
        draw.normal(0, 0.01, (2, width, width)).astype(np.float32),
        draw.normal(0, 0.1, (2, width)).astype(np.float32),
    )
    maps.save(tmp_path / "lens.safetensors")
    with serving.running(lm, lenses={"tuned": tuned_maps.load(tmp_path / "lens.safetensors", lm)}) as server:
        found = asked(server, "/v1/lens")
        internals = {"layers": [1, 0], "attention": False, "lens": 1, "lens_kind": "tuned"}
        body = {"prompt": TEXT, "max_tokens": 1, "temperature": 0, "internals": internals}
        inside = server.post("/v1/completions", body).json()["choices"][0]["internals"][0]["layers"]
    ours = lm.trace(TEXT).lens(maps)
    assert [one["lens"][0]["id"] for one in inside] == ours.ids[[2, 1], -1].tolist()
    assert [one["top"][0]["id"] for one in found["tuned_lens"]] == ours.ids[:, -1].tolist()
    assert np.allclose([one["probability"] for one in found["tuned_lens"]], ours.final[:, -1], atol=1e-4)
    assert found["tuned_lens"][0] != found["logit_lens"][0]


def test_a_jacobian_lens_and_its_control_are_beside_it_and_in_the_internals() -> None:
    lm = serving.model()
    width, draw = lm.config.width, np.random.default_rng(0)
    ours = JacobianLens({0: draw.standard_normal((width, width), np.float32)}, 1, 3)
    with serving.running(lm, lenses={"jacobian": ours, "random": ours.random()}) as server:
        found = asked(server, "/v1/lens")
        internals = {"layers": [0, 1], "attention": False, "lens": 2, "lens_kind": "jacobian"}
        body = {"prompt": TEXT, "max_tokens": 1, "temperature": 0, "internals": internals}
        answered = server.post("/v1/completions", body).json()["choices"][0]["internals"][0]["layers"]
        plain = server.post("/v1/completions", body | {"internals": {"layers": [0, 1]}}).json()
        wrong = server.post("/v1/completions", body | {"internals": internals | {"lens_kind": "tuned"}})
    for kind, by in (("jacobian_lens", ours), ("random_lens", ours.random())):
        expected = lm.trace(TEXT).lens(by)
        assert [one["after"] for one in found[kind]] == ["blocks.0.out", "blocks.1.out"]
        assert [one["top"][0]["id"] for one in found[kind]] == expected.ids[:, -1].tolist()
        assert np.allclose([one["probability"] for one in found[kind]], expected.final[:, -1], atol=1e-4)
    seen = lm.trace(TEXT).lens(ours)
    assert [one["lens"][0]["id"] for one in answered] == seen.ids[:, -1].tolist()
    layers = plain["choices"][0]["internals"][0]["layers"]
    assert layers[0]["lens"] != answered[0]["lens"] and layers[1]["lens"][:2] == answered[1]["lens"]
    assert wrong.status_code == 400 and "no tuned lens" in wrong.json()["error"]["message"]


# ---- attribution -------------------------------------------------------------------------------------------


def test_the_parts_are_the_traces_and_sum_to_the_logit(server: Server) -> None:
    found = asked(server, "/v1/attribution", check=0, position=4)
    ours = server.service.lm.trace(TEXT).attribution(position=4)
    assert found["token"]["id"] == ours.token and found["check"] is None
    assert np.allclose(found["heads"], ours.heads, atol=1e-3)
    assert np.allclose(found["mlps"], ours.mlps, atol=1e-3)
    total = found["embed"] + found["biases"] + found["rest"] + np.sum(found["heads"]) + np.sum(found["mlps"])
    assert total == pytest.approx(found["logit"], abs=1e-6)
    strongest = found["writers"][0]
    assert strongest["head"] is None and len(strongest["neurons"]) == 3
    head = next(one for one in found["writers"] if one["head"] is not None)
    row = server.service.lm.trace(TEXT).attention(head["layer"])[head["head"], 4]
    assert head["attends_to"][0] == {
        "position": int(row.argmax()),
        "weight": pytest.approx(float(row.max()), abs=1e-4),
    }


def test_the_neurons_of_an_mlp_are_its_strongest(server: Server) -> None:
    from cutaway.inspect.logit_attribution import logit_attribution

    found = asked(server, "/v1/attribution", check=0)
    parts = logit_attribution(server.service.lm, TEXT, [found["token"]["id"]], by="neuron").values[0]
    for one in (one for one in found["writers"] if one["head"] is None):
        best = np.argsort(-np.abs(parts[one["layer"]]))[:3]
        assert [each["neuron"] for each in one["neurons"]] == best.tolist()
        assert np.allclose([each["logits"] for each in one["neurons"]], parts[one["layer"]][best], atol=1e-3)


def test_the_causal_check_is_what_ablation_does_in_python(server: Server) -> None:
    found = asked(server, "/v1/attribution", check=3, samples=2, seed=5)
    lm, token = server.service.lm, found["token"]["id"]
    ids = lm.ids(TEXT)
    sets = [found["check"]["writers"], *found["check"]["random"]]
    assert [len(one["ablated"]) for one in sets] == [3, 3, 3]
    parts = [{(part["layer"], part["head"]) for part in one["ablated"]} for one in sets]
    assert not parts[0] & (parts[1] | parts[2]) and all(len(one) == 3 for one in parts)
    best = sorted((part for part in found["writers"] if part["logits"] > 0), key=lambda one: -one["logits"])
    assert [(one["layer"], one["head"]) for one in best[:3]] == [
        (one["layer"], one["head"]) for one in sets[0]["ablated"]
    ]
    for one in sets:
        edit = [
            Ablate(part["layer"], "mlp" if part["head"] is None else "head", part["head"], positions=[-1])
            for part in one["ablated"]
        ]
        logits = lm.edited(edit).logits(ids)[-1]
        assert one["logit"] == pytest.approx(float(logits[token]), abs=1e-3)
        assert one["probability"] == pytest.approx(float(softmax(logits.astype(np.float64))[token]), abs=1e-4)
    assert found == asked(server, "/v1/attribution", check=3, samples=2, seed=5), "the seed draws the parts"


def test_the_difference_of_two_logits(server: Server) -> None:
    found = asked(server, "/v1/attribution", check=0, token=260, against=253)
    ours = server.service.lm.trace(TEXT).attribution(260, -1, 253)
    assert found["logit"] == pytest.approx(ours.logit, abs=1e-3)
    assert "vocabulary" in refused(server, "/v1/attribution", token=10**6)


# ---- divergence --------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_logits(server: Server) -> None:
    found = asked(server, "/v1/divergence", edits=EDITS, positions=[-1, 0, 3])
    lm = server.service.lm
    ids = lm.ids(TEXT)
    p, q = (
        log_softmax(one.logits(ids).astype(np.float64))
        for one in (lm, lm.edited(list(map(from_json, EDITS))))
    )
    ours = (np.exp(p) * (p - q)).sum(-1)
    assert found["positions"] == [0, 3, len(ids) - 1]
    assert np.allclose(found["kl"], ours[found["positions"]], atol=1e-4)


def test_what_divergence_refuses(server: Server) -> None:
    assert "Give what changes the model" in refused(server, "/v1/divergence")
    assert (
        "There is no model 'other'" in server.post("/v1/divergence", {"text": TEXT, "against": "other"}).text
    )
    assert "at most 162 of this vocabulary: ask in parts" in refused(
        server, "/v1/divergence", text="a b " * 90, edits=EDITS
    )


def test_the_pytorch_model_answers_the_same_way() -> None:
    """What the runtime does not show or edit is read alone, and has the numbers of its own traces."""
    with serving.running(serving.model(engine="pytorch")) as server:
        test_a_row_of_all_heads_is_that_of_the_trace(server, EDITS)
        test_the_logit_lens_is_the_traces(server, 3)
        test_the_parts_are_the_traces_and_sum_to_the_logit(server)
        test_the_causal_check_is_what_ablation_does_in_python(server)
        test_the_divergence_is_that_of_the_logits(server)


def test_an_adapter_and_its_model_are_compared(tmp_path: Path) -> None:
    lm, name = serving.model(), "blocks.1.mlp.down.weight"
    rows, columns = lm.checkpoint.tensors.later(name).shape
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal(size).astype(np.float32) for size in ((2, columns), (rows, 2)))
    adapters.write_adapter(
        tmp_path / "talk", {name: adapters.LowRank(a, b, 0.2)}, lm.checkpoint, serving.NAME
    )
    talk = lm.with_adapter(tmp_path / "talk")
    with serving.running(lm, adapters={"talk": adapter_engine(lm, tmp_path / "talk")}) as server:
        ids = lm.ids(TEXT)
        found = asked(server, "/v1/divergence", model="talk", against=serving.NAME)
        p, q = (log_softmax(one.logits(ids).astype(np.float64)) for one in (talk, lm))
        assert np.allclose(found["kl"], (np.exp(p) * (p - q)).sum(-1), atol=1e-4) and max(found["kl"]) > 0.01
        rows = asked(server, "/v1/attention", model="talk", positions=[-1])["data"]
        ours = np.stack([talk.trace(TEXT).attention(i) for i in range(2)])
        assert np.abs(np.array(rows) - roots(ours[:, :, [-1]]).reshape(18, 1, len(ids))).max() <= 1
        assert "is an adapter" in server.post("/v1/lens", {"text": TEXT, "model": "talk"}).text
