"""Completions by a server: the ids and log-probabilities of this machine's, refusals, hand-overs, resume."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.data import run_tokenizer
from cutaway.errors import OperationalError, UserError
from cutaway.model.decoder import Decoder
from cutaway.quantization import formats
from cutaway.serve import app
from cutaway.serve.operations.access import AccessPolicy
from cutaway.serve.operations.api_keys import KeyRing
from cutaway.train import checkpoint, remote_sampler, rewards_config, rollouts
from cutaway.train import run as training_run
from cutaway.train.parallel import Parallel
from cutaway.train.recipes import rewards
from cutaway.train.remote_sampler import Server
from cutaway.train.trainable import TrainingBatch
from cutaway.train.training import DataError, Training
from cutaway.weights import load, save
from cutaway.weights.named_tensors import Tensors
from tests import serving
from tests.test_finetune import TEMPLATE
from tests.training import Quiet, model

VOCAB = len(run_tokenizer.of_bytes())
SCORER = "def ascii(text, row):\n    return sum(c.isascii() for c in text) / 8\n"
SECRET = "a-key-for-all"
Answer = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with sharp choices, its task, and a folder for runs."""
    home = tmp_path_factory.mktemp("remote")
    torch.manual_seed(1)
    made, tokenizer = Decoder(model(VOCAB, 128)), run_tokenizer.of_bytes()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    tensors = Tensors({name: formats.pack(p.detach().numpy(), "F32") for name, p in made.named_parameters()})
    words = run_tokenizer.save(tokenizer, home / "words")
    (words / "chat_template.jinja").write_text(TEMPLATE)
    saved = load.Checkpoint(model(VOCAB, 128), tensors, None, words, lambda: tokenizer, TEMPLATE)
    save.write_checkpoint(home / "base", saved, "safetensors")
    (home / "score.py").write_text(SCORER)
    rows = [{"prompt": chr(97 + n % 26) * (1 + n // 26)} for n in range(60)]
    (home / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "runs").mkdir()
    return home


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote_sampler.KEY, SECRET)


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with served(home) as address:
        yield address


@contextmanager
def served(home: Path) -> Iterator[str]:
    policy = AccessPolicy(keys=KeyRing((SECRET,)))
    lm = cutaway.load(home / "base")
    with serving.running(lm, policy, adapter_folder=home / "runs") as server:
        yield f"{server.url}/v1"


def config(home: Path, sampler: str, *more: str) -> rewards_config.RewardsConfig:
    words = f"--base {home / 'base'} --data.task {home / 'score.py'}:ascii --data.options {{}} --data.test 10"
    words += f" --data.path {home / 'questions.jsonl'} --data.group-size 4 --data.max-tokens 8"
    words += " --data.context 64 --batch-size 2 --micro-batch-size 1 --steps 4 --threads 1 --adapter.rank 4"
    words += " --intervals.save 3 --intervals.evaluate 2 --optimizer.learning-rate 0.03"
    return rewards.read_rewards_config("grpo", [*words.split(), f"--data.sampler={sampler}", *more])


def ready(run: rewards_config.RewardsConfig, folder: Path) -> tuple[Training, rollouts.Sampled]:
    data = rewards.ready(run, folder, lambda _: None)
    assert isinstance(data.train, rollouts.Sampled)
    return Training(run, data, note=lambda _: None), data.train


def test_a_server_samples_what_this_machine_does(home: Path, url: str, tmp_path: Path) -> None:
    """The same ids at the same weights, after updates too; log-probabilities are the trainer's."""
    (theirs, remote), (ours, local) = (
        ready(config(home, one), home / "runs" / "same") for one in (url, "runtime")
    )
    for step in range(3):
        a, b = remote.batch(2 * step, 2), local.batch(2 * step, 2)
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.targets, b.targets)
        for name, values in b.extra.items():
            assert np.allclose(a.extra[name], values, atol=1e-5), name
        sums = theirs.trainable(TrainingBatch.of(a, torch.device("cpu")))[1]
        assert 0 < float(sums["gap"] / sums["tokens"]) < 0.02
        assert theirs.advance()["loss"] == pytest.approx(ours.advance()["loss"], abs=1e-4)
    ends = [one for one in remote.rows if (one.targets[0] == run_tokenizer.of_bytes().eos).any()]
    assert remote.report()["unfinished"] == local.report()["unfinished"]
    assert ends or remote.report()["unfinished"] == 1
    assert remote.report()["reward"] == local.report()["reward"]


def test_replicas_share_the_prompts_and_one_that_is_gone_is_passed_over(
    home: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server by two addresses, the second of which is gone after a step: this machine's ids all along."""
    monkeypatch.setattr(remote_sampler, "WAITS", ())
    other, ask, gone = url.replace("127.0.0.1", "localhost"), Server.ask, set[str]()
    at: dict[tuple[int, ...], set[str]] = {}

    def asked(self: Server, path: str, body: Any = None, waits: Any = None) -> Any:
        if path == "/completions":
            at.setdefault(tuple(body["prompt"]), set()).add(self.url)
        return ask(Server("http://127.0.0.1:9/v1") if self.url in gone else self, path, body, waits)

    monkeypatch.setattr(Server, "ask", asked)
    (theirs, remote), (ours, local) = (
        ready(config(home, one), home / "runs" / "shared") for one in (f"{url}, {other}/", "runtime")
    )
    for step in range(3):
        a, b = remote.batch(2 * step, 2), local.batch(2 * step, 2)
        assert np.array_equal(a.ids, b.ids), step
        if step == 0:
            assert all(len(urls) == 1 for urls in at.values()) and set().union(*at.values()) == {url, other}
        gone.add(other)
        assert theirs.advance()["loss"] == pytest.approx(ours.advance()["loss"], abs=1e-4)
    assert isinstance(remote.sampler, remote_sampler.RemoteSampler) and remote.sampler.gone == {Server(other)}
    gone.add(url)
    with pytest.raises(DataError, match="cannot be reached"):
        theirs.advance()
    gone.clear()
    with pretended({}) as stranger, pytest.raises(UserError, match=r"serve 'm' and 'two-layers': replicas"):
        rewards.ready(config(home, f"{stranger},{url}"), home / "runs" / "none", lambda _: None)


def test_a_tuned_base_is_served_with_both_adapters(home: Path, url: str) -> None:
    """The server has the base's base, and is handed one adapter of both ranks."""
    tuned = home / "runs" / "tuned"
    training, _ = ready(config(home, "runtime", "--steps=1"), tuned)
    training.advance()
    tuned.mkdir()
    training.data.export(training, tuned)
    on = [ready(config(home, one, f"--base={tuned}"), home / "runs" / "on") for one in (url, "runtime")]
    for step in range(2):
        a, b = (sampled.batch(2 * step, 2) for _, sampled in on)
        assert np.array_equal(a.ids, b.ids), step
        for each, _ in on:
            each.advance()


def test_each_step_has_its_own_adapter_and_old_ones_go(home: Path, url: str) -> None:
    folder = home / "runs" / "handed"
    training, sampled = ready(config(home, url), folder)
    names = []
    for _ in range(3):
        training.advance()
        assert isinstance(sampled.sampler, remote_sampler.RemoteSampler) and sampled.sampler.serving
        names.append(sampled.sampler.serving[1])
        assert names[-1] in Server(url).models()
    assert len(set(names)) == 3 and not set(names[:2]) & set(Server(url).models())
    assert [path.name for path in (folder / remote_sampler.SERVED).iterdir()] == ["step-00000002"]


def test_a_policy_that_is_handed_over_now_and_then(home: Path, url: str) -> None:
    """With sync 2 every other step samples from the step before it; what is judged is current."""
    training, sampled = ready(config(home, url, "--data.sync=2"), home / "runs" / "now")
    first = training.advance()
    training.advance()
    held = training.data.validation
    assert isinstance(sampled.sampler, remote_sampler.RemoteSampler) and sampled.sampler.serving
    assert sampled.sampler.serving[0] == 0 and isinstance(held, rollouts.HeldOut)
    training.advance()
    assert sampled.sampler.serving[0] == 2
    held.evaluate(training, 3)
    assert sampled.sampler.serving[0] == 3
    stale = training.advance()
    assert sampled.sampler.serving[0] == 2
    assert stale["sampler_gap"] > 2 * first["sampler_gap"]


def test_a_fixed_policy(home: Path, url: str) -> None:
    run = config(home, url, "--data.sync=0", "--steps=2")
    notes = Quiet()
    training_run.train(run, home / "runs" / "fixed", notes, recipe=rewards)
    assert any("stays as it is" in note for note in notes.notes)
    assert not (home / "runs" / "fixed" / remote_sampler.SERVED).exists()
    assert len(notes.steps) == 2 and all("sampler_gap" in step for step in notes.steps)
    assert notes.validation[-1]["validation_reward"] > 0


@pytest.mark.parametrize("sync", [1, 2])
def test_a_server_that_goes_leaves_a_checkpoint_and_the_run_resumes(
    sync: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an odd step, which with sync 2 has the adapter of the step before on disk alone."""
    monkeypatch.setattr(remote_sampler, "WAITS", ())
    folder, whole = home / "runs" / f"cut-{sync}", home / "runs" / f"whole-{sync}"
    words = f"--data.sync={sync}", "--steps=5", "--intervals.save=100", "--intervals.evaluate=100"

    def gone(step: int) -> None:
        if step == 3:
            monkeypatch.setattr(Server, "ask", away)

    def away(self: Server, path: str, body: Any = None, waits: Any = None) -> Any:
        return asked(Server("http://127.0.0.1:9/v1"), path, body, waits)

    asked = Server.ask
    with served(home) as url:
        run = config(home, url, *words)
        with pytest.raises(OperationalError, match=r"cannot be reached: .* Step 3 is saved: .*--resume"):
            training_run.train(run, folder, Quiet(gone), recipe=rewards)
        assert [checkpoint.step_of(one) for one in checkpoint.all_in(folder / "checkpoints")] == [3]
        monkeypatch.setattr(Server, "ask", asked)
        training_run.train(run, folder, Quiet(), recipe=rewards, resume=True)
        training_run.train(run, whole, Quiet(), recipe=rewards)
    ids = [1, 2, 3, 250]
    both = (cutaway.load(one, engine="pytorch").logits(ids) for one in (folder, whole))
    assert np.array_equal(*both)


# ---- the server's side -------------------------------------------------------------------------------------


def test_a_completion_by_ids_has_the_end_token_too(home: Path, url: str) -> None:
    body = {"prompt": [72, 105], "max_tokens": 5, "seed": 3, "return_token_ids": True, "logprobs": 1}
    whole = Server(url).ask("/completions", body)["choices"][0]
    assert whole["prompt_token_ids"] == [72, 105] and len(whole["token_ids"]) == 5
    tokenizer = run_tokenizer.of_bytes()
    for ending in ({"logit_bias": {str(EOS): 100}}, {"logit_bias": {"66": 100}, "stop_token_ids": [66]}):
        ended = Server(url).ask("/completions", {**body, **ending})["choices"][0]
        last = EOS if "66" not in ending["logit_bias"] else 66
        assert ended["token_ids"] == [last] and ended["text"] == "" and ended["finish_reason"] == "stop"
        assert ended["logprobs"]["tokens"] == [tokenizer.decode([last])]
        assert ended["logprobs"]["token_logprobs"][0] < 0, "the model's own, before the bias"
        plain = {**body, **ending, "return_token_ids": False}
        assert Server(url).ask("/completions", plain)["choices"][0]["logprobs"] is None
    lines = serving.httpx.post(
        f"{url}/completions", json={**body, "stream": True}, headers=Server(url).headers
    ).text.splitlines()
    chunks = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert [id for chunk in chunks for id in chunk["token_ids"]] == whole["token_ids"]
    assert ["prompt_token_ids" in chunk for chunk in chunks] == [True] + [False] * (len(chunks) - 1)


def test_adapters_come_from_the_servers_folder_alone(home: Path, url: str) -> None:
    folder = home / "runs" / "kept"
    training, _ = ready(config(home, "runtime"), folder)
    training.advance()
    folder.mkdir()
    training.data.export(training, folder)
    load_it, name = "/load_lora_adapter", {"lora_name": "kept"}
    for body, message in [
        ({"lora_name": "two-layers", "lora_path": str(folder)}, "the model's own name"),
        ({**name, "lora_path": str(home / "base")}, "outside the folder"),
        ({**name, "lora_path": "../base"}, "outside the folder"),
        ({**name, "lora_path": "none"}, "'none': there is no such folder"),
        ({**name, "lora_path": "."}, "holds no adapter"),
    ]:
        with pytest.raises(UserError, match=message) as refusal:
            Server(url).ask(load_it, body)
        assert str(home) not in str(refusal.value).partition("refuses")[2]
    prompt = {"prompt": [72, 105], "max_tokens": 6, "temperature": 0, "return_token_ids": True}
    assert Server(url).ask(load_it, {**name, "lora_path": "kept"})["parent"] == "two-layers"
    tuned = Server(url).ask("/completions", {**prompt, "model": "kept"})["choices"][0]["token_ids"]
    here = cutaway.load(folder).generate([72, 105], max_tokens=6)
    assert tuple(tuned[: len(here.ids)]) == here.ids
    Server(url).ask("/unload_lora_adapter", name)
    with pytest.raises(UserError, match="There is no model 'kept'"):
        Server(url).ask("/completions", {**prompt, "model": "kept"})
    with pytest.raises(UserError, match="There is no adapter 'kept'"):
        Server(url).ask("/unload_lora_adapter", name)
    roles = [route.roles for route in app.ROUTES if "lora" in route.path]
    assert roles == [("admin",), ("admin",)]
    policy = AccessPolicy(keys=KeyRing((SECRET,)))
    fixed = serving.running(cutaway.load(home / "base"), policy)
    with fixed as server, pytest.raises(UserError, match="start it with --adapter-folder"):
        Server(f"{server.url}/v1").ask(load_it, {**name, "lora_path": "kept"})


# ---- servers that do otherwise -----------------------------------------------------------------------------


@contextmanager
def pretended(answer: Answer, status: int = 200) -> Iterator[str]:
    """A server that gives one answer to every POST, and keeps their keys."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def respond(self, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.respond({"data": [{"id": "m"}, {"id": "old", "parent": "m"}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers.get("Authorization"))
            self.respond(answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


keys: list[str | None] = []
EOS = run_tokenizer.of_bytes().eos
FINE = {"token_ids": [65, EOS], "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.5, -1.0]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": None}, "without token ids"),
        ({"logprobs": None}, "no log-probability for each of 2"),
        ({"logprobs": {"token_logprobs": [-0.5]}}, "no log-probability for each of 2"),
        ({"logprobs": {"token_logprobs": [-0.5, None]}}, "no log-probability for each of 2"),
        ({"prompt_token_ids": [1]}, "another prompt"),
        ({"token_ids": [65, 66]}, "end token must be the last"),
        ({"token_ids": [EOS, 65]}, "end token must be the last"),
        ({"finish_reason": "length"}, "end token must be the last"),
        ({"finish_reason": None}, "end token must be the last"),
        ({}, "serves another model"),
    ],
)
def test_an_answer_that_is_not_exact_is_refused(
    change: Answer, message: str, home: Path, tmp_path: Path
) -> None:
    usage = {"usage": {"prompt_tokens": PROMPT}} if "prompt_token_ids" not in change else {}
    scores = {"logprobs": {"token_logprobs": [-30.0, -30.0]}} if not change else {}
    with pretended({"choices": [{**FINE, **scores, **change}], **usage}) as url:
        data = rewards.ready(config(home, url, "--data.sync=0"), tmp_path, lambda _: None)
        with pytest.raises(UserError, match=message):
            data.train.batch(0, 1)


PROMPT = 20  # ids of the first question, through the template


def test_what_a_server_refuses_and_what_is_not_its_own(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_sampler, "WAITS", ())
    for words, message in [
        (("--objective.temperature=0.7",), "temperature must be 1"),
        (("--data.sampler=somewhere",), "runtime, pytorch, or the address"),
        (("--data.sampler=auto", "--data.sync=2"), "are of a sampler that is an address"),
    ]:
        with pytest.raises(UserError, match=message):
            config(home, url, *words)
    with pytest.raises(UserError, match="name an adapter"):
        replace(config(home, url), adapter=None)
    for address, words, message in [
        (url, ("--data.sampler-model=other",), "serves 'two-layers'"),
        (url.removesuffix("/v1") + "/nothing", (), "refuses with 404"),
        ("http://127.0.0.1:9/v1", (), "cannot be reached"),
    ]:
        with pytest.raises((UserError, OperationalError), match=message):
            rewards.ready(config(home, address, *words), tmp_path, lambda _: None)
    with pytest.raises(UserError, match=r"outside the folder .*--adapter-folder runs"):
        rewards.ready(config(home, url), tmp_path, lambda _: None).train.batch(0, 1)
    busy = pretended({"error": {"message": "busy"}}, status=503)
    with busy as url, pytest.raises(OperationalError, match="answers 503: busy"):
        Server(url).ask("/completions", {})


def test_one_process_that_fails_ends_all() -> None:
    class Two(Parallel):
        def all_reduce(self, numbers: torch.Tensor) -> torch.Tensor:
            return numbers + 1

    with pytest.raises(DataError, match="another process"), remote_sampler.all_or_none(Two()):
        pass
    with pytest.raises(UserError, match="mine"), remote_sampler.all_or_none(Two()):
        raise UserError("mine")
    with remote_sampler.all_or_none(Parallel()):
        pass


def test_the_key_is_the_environments(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended({}) as url:
        Server(url).ask("/completions", {})
        monkeypatch.delenv(remote_sampler.KEY)
        Server(url).ask("/completions", {})
    assert keys[-2:] == [f"Bearer {SECRET}", None]
