"""/v1/trace against the traces and edits of Python, and what it refuses."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.generate.batch.observation import Observation
from cutaway.inspect import edits, explanation, page_data
from cutaway.inspect.edits import Ablate, ablation
from cutaway.quantization import formats
from cutaway.weights import safetensors
from tests import serving
from tests.serving import Server

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving.running(serving.model(), trace_numbers=60_000, trace_tokens=100) as server:
        yield server


@dataclass
class Seen:
    """A text's values and logits by the served engine itself, outside of the server's batch."""

    tokens: list[str]
    values: dict[str, Any]
    logits: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        rows = self.values[name]
        if name.endswith("pattern"):
            rows = np.stack([np.pad(row, ((0, 0), (0, len(rows) - row.shape[1]))) for row in rows])
        return rows if rows.ndim == 2 else rows.swapaxes(0, 1)

    def top(self, count: int) -> list[tuple[int, float]]:
        weights = np.exp(self.logits - self.logits.max())
        best = np.argsort(-self.logits, kind="stable")[:count].tolist()
        return [(id, float(weights[id] / weights.sum())) for id in best]


@dataclass
class Own:
    """The served model, as `lm.trace` reads it."""

    lm: Any

    def trace(self, text: str, edit: Any = ()) -> Seen:
        ids = self.lm.ids(text)
        edited = self.lm.edited_engine(edit, ids)
        logits, found = edited.engine.observe([ids], [edited.new_state()], ["*"], [len(ids) - 1])
        tokens = [self.lm.tokenizer.token_bytes(id).decode() for id in ids]
        return Seen(tokens, found, logits[0][: len(self.lm.tokenizer)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lm, name)


@pytest.fixture(scope="module")
def lm(server: Server) -> Own:
    return Own(server.service.lm)


def traced(server: Server, **body: Any) -> Any:
    answer = server.post("/v1/trace", {"text": TEXT} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def values(answer: Any) -> dict[str, np.ndarray]:
    return {name: np.array(one["data"]).reshape(one["shape"]) for name, one in answer["values"].items()}


def next_of(server: Server, **body: Any) -> list[tuple[int, float]]:
    answer = traced(server, values=["embed"], positions=[0], top=5, **body)
    return [(one["id"], one["probability"]) for one in answer["next"]]


def test_values_are_those_of_a_trace(server: Server, lm: Own) -> None:
    ours = lm.trace(TEXT)
    answer = traced(server, values=["attention.pattern", "attention.q", "out", "embed"], layers=[1])
    assert [token["text"] for token in answer["tokens"]] == ours.tokens
    assert answer["next"][0]["id"] == ours.top(1)[0][0]
    found = values(answer)
    assert set(found) == {"embed", "blocks.1.attention.pattern", "blocks.1.attention.q", "blocks.1.out"}
    for name, value in found.items():
        assert np.allclose(value, ours[name], atol=1e-6), name


def test_some_heads_and_positions(server: Server, lm: Own) -> None:
    ours = lm.trace(TEXT)
    asked = {"values": ["attention.pattern", "out"], "layers": [0], "heads": [7, 2], "positions": [-1, 0]}
    found = values(traced(server, **asked))
    assert np.allclose(
        found["blocks.0.attention.pattern"], ours["blocks.0.attention.pattern"][[2, 7]][:, [-1, 0]]
    )
    assert np.allclose(found["blocks.0.out"], ours["blocks.0.out"][[-1, 0]])


def test_safetensors_holds_the_same(server: Server, tmp_path: Path) -> None:
    asked = {"values": ["out", "attention.pattern"], "positions": [4]}
    answer = server.post("/v1/trace", {"text": TEXT, "format": "safetensors", **asked})
    (tmp_path / "trace.safetensors").write_bytes(answer.content)
    held = safetensors.read_safetensors(tmp_path / "trace.safetensors")
    answer = values(traced(server, **asked))
    assert held.keys() == answer.keys()
    assert all(np.allclose(formats.unpack(held[name]), answer[name], atol=1e-6) for name in answer)
    assert json.loads(safetensors.metadata(tmp_path / "trace.safetensors")["tokens"])[0]["text"] == "The"


def test_ablating_is_what_it_is_in_python(server: Server, lm: Own) -> None:
    expected = lm.trace(TEXT, edit=ablation("1.4")).top(5)
    answer = next_of(server, edits=[{"kind": "ablate", "layer": 1, "part": "head", "head": 4}])
    assert [id for id, _ in answer] == [id for id, _ in expected]
    assert np.allclose([p for _, p in answer], [p for _, p in expected], atol=1e-6)
    usual = next_of(server)
    assert answer != usual
    none = [{"kind": "ablate", "layer": 1, "part": part, "strength": 0} for part in ("mlp", "attention")]
    assert np.allclose([p for _, p in next_of(server, edits=none)], [p for _, p in usual], atol=1e-6)
    both = [{"kind": "ablate", "layer": 1, "part": part} for part in ("mlp", "attention")]
    skipped = lm.trace(TEXT, edit=ablation("1")).top(5)
    assert np.allclose([p for _, p in next_of(server, edits=both)], [p for _, p in skipped], atol=1e-5)


def test_patching_everything_is_the_other_text(server: Server, lm: Own) -> None:
    other = "The capital of Spain was"
    patch = {"kind": "patch", "layer": 1, "part": "residual", "text": other}
    expected = lm.trace(other).top(5)
    answer = next_of(server, edits=[patch])
    assert np.allclose([p for _, p in answer], [p for _, p in expected], atol=1e-6)
    last = next_of(server, edits=[patch | {"positions": [4]}])
    assert np.allclose([p for _, p in last], [p for _, p in answer], atol=1e-6)
    assert next_of(server, edits=[patch | {"positions": [0]}]) == next_of(server)
    half = values(traced(server, values=["out"], layers=[1], edits=[patch | {"strength": 0.5}]))[
        "blocks.1.out"
    ]
    ours, theirs = (lm.trace(text)["blocks.1.out"] for text in (TEXT, other))
    assert np.allclose(half, (ours + theirs) / 2, rtol=1e-5, atol=1e-5)


def test_adding_a_vector(server: Server) -> None:
    vector = np.random.default_rng(0).normal(size=576).round(3).tolist()
    add = {"kind": "add", "layer": 0, "vector": vector, "strength": 2.0, "positions": [2]}
    usual, moved = (
        values(traced(server, values=["out"], layers=[0], edits=e))["blocks.0.out"] for e in ([], [add])
    )
    assert np.allclose(moved[2] - usual[2], 2 * np.array(vector), atol=1e-4)
    assert np.allclose(np.delete(moved, 2, 0), np.delete(usual, 2, 0))


def test_edits_by_name_and_to_a_mean_are_what_they_are_in_python(server: Server, lm: Own) -> None:
    asked = [
        {
            "kind": "scale",
            "name": "blocks.0.mlp.hook_post",
            "units": [3, 5],
            "strength": 40.0,
            "from_step": 1,
        },
        {"kind": "ablate", "layer": 1, "part": "mlp", "to": "mean", "reference": ["Water boils", "at sea"]},
    ]
    edit = [
        edits.Scale(name="blocks.0.mlp.hidden", units=[3, 5], strength=40.0, positions=[-1]),
        edits.Ablate(1, "mlp", to="mean", reference=[lm.ids("Water boils"), lm.ids("at sea")]),
    ]
    expected = lm.trace(TEXT, edit).top(5)
    answer = next_of(server, edits=asked)
    assert np.allclose([p for _, p in answer], [p for _, p in expected], atol=1e-6)
    assert answer != next_of(server, edits=asked[1:]) != next_of(server)
    for wrong, why in (
        ({"name": "blocks.*.attn.hook_pattern"}, "attention maps"),
        ({"name": "blocks.0.mlp.hiden"}, "near are"),
        ({"name": "norm"}, "started with --engine pytorch makes every edit"),
        ({"name": "embed", "units": [576]}, "no unit 576: its units are 0 to 575"),
        ({"name": "embed", "layer": 0}, "one of the two"),
        ({}, "one of the two"),
    ):
        refused = server.post(
            "/v1/trace", {"text": TEXT, "values": ["embed"], "edits": [{"kind": "scale"} | wrong]}
        )
        assert refused.status_code == 400 and why in refused.text


def test_projecting_out_a_direction(server: Server) -> None:
    vector = np.random.default_rng(0).normal(size=576).round(3)
    project = {"kind": "project", "layer": 0, "vector": vector.tolist()}
    left = values(traced(server, values=["out"], layers=[0], edits=[project]))["blocks.0.out"]
    assert np.abs(left @ vector / np.linalg.norm(vector)).max() < 1e-4


def test_the_page_is_the_same_document(server: Server) -> None:
    answer = server.post("/v1/trace", {"text": TEXT, "format": "page"})
    lm = server.service.lm
    trace = lm.trace(TEXT, names=page_data.names(lm.config))
    assert answer.headers["content-type"] == "application/vnd.cutaway.page"
    assert answer.content == page_data.packed([page_data.build(trace, "two-layers")])
    answer = traced(server, values=["embed"], positions=[0])
    explained = explanation.explain(trace)
    assert answer["tokens"] == [asdict(token) for token in explained.tokens]
    assert answer["next"][0]["id"] == explained.next[0].id and set(answer["next"][0]) == set(
        asdict(explained.next[0])
    )


def test_answers_are_written_with_edits_of_their_request_alone(server: Server) -> None:
    lm = server.service.lm  # which makes the edits by the engine that serves
    ablate = {"kind": "ablate", "layer": 1, "part": "mlp"}
    body = {"prompt": TEXT, "max_tokens": 6, "temperature": 0}
    expected = lm.generate(TEXT, max_tokens=6, temperature=0, edit=Ablate(1, "mlp")).text

    def written(**more: Any) -> str:
        answer = server.post("/v1/completions", body | more)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    usual = written()
    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda i: written(edits=[ablate]) if i % 2 else written(), range(6)))
    assert texts == [usual, expected] * 3 and usual != expected
    streamed = server.post("/v1/completions", body | {"edits": [ablate], "stream": True}).text
    parts = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(part["choices"][0]["text"] for part in parts) == expected
    messages = [{"role": "user", "content": "Hi"}]
    chat = {"messages": messages, "max_tokens": 6, "temperature": 0, "edits": [ablate]}
    answer = server.post("/v1/chat/completions", chat).json()["choices"][0]["message"]["content"]
    assert answer == lm.chat(messages, max_tokens=6, temperature=0, edit=Ablate(1, "mlp")).text
    wrong = server.post("/v1/chat/completions", chat | {"edits": [ablate | {"layer": 9}]})
    assert wrong.status_code == 400 and "layer 9" in wrong.json()["error"]["message"]


def test_edits_and_traces_are_read_in_the_batch(server: Server, lm: Own) -> None:
    """By the server's one scheduler, which counts them; no PyTorch model is made for them."""
    scheduler, length = server.service.decoder, len(lm.ids(TEXT))
    other = "The capital of Spain was"
    kinds: list[Any] = [
        {"kind": "swap", "layer": 0, "head": 1, "other": 2},
        {"kind": "noise", "layer": 0, "strength": 0.5, "seed": 3},
        {"kind": "patch", "layer": 0, "part": "head", "head": 1, "text": other, "positions": [-1]},
    ]
    patch = edits.Patch(0, lm.ids(other), "head", 1, positions=[-1])
    given = [edits.Swap(0, 1, 2), edits.Noise(0, strength=0.5, seed=3), patch]
    for asked, edit in zip(kinds, given, strict=True):
        before = scheduler.stats()
        answer = traced(server, values=["out", "mlp.hidden"], layers=[1], edits=[asked])
        after, expected = scheduler.stats(), lm.trace(TEXT, edit=edit)
        for name, value in values(answer).items():
            assert np.allclose(value, expected[name], rtol=1e-5, atol=1e-6), (asked["kind"], name)
        texts = 1 + (asked["kind"] == "patch")
        assert after.finished - before.finished == texts
        assert after.prompt_tokens - before.prompt_tokens == texts * length
    scores = values(traced(server, values=["attention.scores"], layers=[1], positions=[-1, 2]))
    rows = lm.trace(TEXT).values["blocks.1.attention.scores"]
    assert np.allclose(scores["blocks.1.attention.scores"][:, 0], rows[-1], rtol=1e-5, atol=1e-5)
    body = {"prompt": TEXT, "max_tokens": 4, "temperature": 0, "edits": kinds, "logprobs": 2, "echo": True}
    answer = server.post("/v1/completions", body).json()
    made = server.service.lm.generate(TEXT, max_tokens=4, temperature=0, edit=given)
    assert answer["choices"][0]["text"] == TEXT + made.text


def test_the_pytorch_model_reads_traces_and_edits_in_its_batch() -> None:
    """Of a server of the PyTorch model: by its scheduler, which counts them, values and edits are its own."""
    asked = [
        "embed",
        "attention.q",
        "attention.k",
        "attention.scores",
        "attention.pattern",
        "mlp.hidden",
        "out",
    ]
    ablate = {"kind": "ablate", "layer": 0, "part": "head", "head": 4}
    with serving.running(serving.model(engine="pytorch")) as server:
        lm, scheduler = server.service.lm, server.service.decoder
        for edit, given in (([], None), ([ablate], [ablation("0.4")])):
            before = scheduler.stats()
            found = values(traced(server, values=asked, layers=[1], edits=edit, positions=[-1, 2]))
            after, ours = scheduler.stats(), lm.trace(TEXT, edit=given)
            assert after.finished - before.finished == 1
            assert after.prompt_tokens - before.prompt_tokens == len(lm.ids(TEXT))
            for name, value in found.items():
                expected = ours[name][..., [-1, 2], :]
                seen = np.isfinite(expected) & (value != 0)  # scores of what comes later are none
                assert np.allclose(value[seen], expected[seen], rtol=1e-4, atol=1e-5), name
                assert seen.any() and name in found
        page = server.post("/v1/trace", {"text": TEXT, "format": "page", "edits": [ablate]})
        assert page.status_code == 200 and scheduler.stats().finished == after.finished + 1
        assert "Nothing is named" in server.post("/v1/trace", {"text": TEXT, "values": ["out"], "edits": [
            {"kind": "scale", "name": "blocks.0.mlp.hiden"}]}).text  # fmt: skip


def test_a_long_trace_takes_the_memory_of_its_answer(server: Server) -> None:
    """Of all layers' values of a text of several steps, one position: no more rows are held than that."""
    text = " ".join(["word"] * 99)
    kept: list[int] = []
    add = Observation.add

    def counted(self: Observation, name: str, row: np.ndarray) -> None:
        add(self, name, row)
        kept.append(sum(one.nbytes for rows in self.rows.values() for one in rows))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Observation, "add", counted)
        asked = {"values": ["mlp.hidden", "out", "attention.pattern"], "positions": [-1, 3]}
        answer = values(traced(server, text=text, **asked))
    assert max(kept) == sum(4 * value.size for value in answer.values()) - 4 * 2 * 9 * (99 - 4)


def test_chats_are_traced_too(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = server.post("/v1/trace", {"messages": messages, "values": ["embed"], "positions": [0]}).json()
    assert [token["id"] for token in answer["tokens"]] == server.service.lm.chat_ids(messages)


def test_asking_leaves_the_engine_that_answers(server: Server) -> None:
    assert server.service.lm.engine_choice[0] == "runtime"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"values": ["logits"]}, "245,760 numbers.*at most 60,000"),
        ({"values": ["secret"]}, "no value 'secret'"),
        ({"values": ["out"], "layers": [2]}, "no layer 2: this model's are 0 to 1"),
        ({"values": ["attention.k"], "heads": [3]}, "no head 3 in blocks.0.attention.k: it has 0 to 2"),
        ({"values": ["out"], "positions": [5]}, "no position 5"),
        ({"values": ["out"], "text": "x " * 300}, "at most 100"),
        ({"values": ["out"], "messages": []}, "at least 1"),
        ({"values": ["out"], "text": None}, "Give the prompt once"),
        ({"values": ["out"], "edits": [{"kind": "add", "layer": 0, "vector": [1.0]}]}, "1 numbers.*576"),
        ({"values": ["out"], "edits": [{"kind": "ablate", "layer": 0, "part": "head"}]}, "goes with part"),
        (
            {"values": ["out"], "edits": [{"kind": "ablate", "layer": 0, "part": "head", "head": 9}]},
            "heads 0 to 8",
        ),
        ({"values": ["out"], "edits": [{"kind": "patch", "layer": 0, "text": "x"}]}, "equal length"),
        ({"values": ["out"], "edits": [{"kind": "rewrite", "layer": 0}]}, "edits"),
        ({"values": ["out"], "edits": [{"kind": "patch", "layer": 0, "text": "x " * 300}]}, "at most 100"),
        (
            {"values": ["out"], "edits": [{"kind": "add", "layer": 0, "vector": [1e308] * 576}]},
            "beyond float32",
        ),
        (
            {
                "values": ["out"],
                "edits": [{"kind": "add", "layer": 0, "vector": [1e38] * 576, "strength": 9.0}],
            },
            "With these edits .* NaN or infinity",
        ),
        ({"values": []}, "values is missing"),
        ({"values": ["out"], "text": ""}, "no tokens: give at least one"),
        (
            {"values": ["out"], "edits": [{"kind": "patch", "layer": 0, "text": "", "positions": [0]}]},
            "no tokens: give at least one",
        ),
        (
            {
                "values": ["out"],
                "edits": [
                    {"kind": "ablate", "layer": 0, "part": "mlp", "to": "mean", "reference": ["a", ""]}
                ],
            },
            "no tokens: give at least one",
        ),
    ],
)
def test_what_cannot_be_traced_is_refused(server: Server, body: dict[str, Any], sentence: str) -> None:
    answer = server.post("/v1/trace", {"text": TEXT} | body)
    assert answer.status_code == 400
    assert re.search(sentence, answer.json()["error"]["message"]), answer.text
