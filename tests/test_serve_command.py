"""`cutaway serve` as a user starts and stops it, and the API fuzzed by the document it gives of itself."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import cutaway
from cutaway import extras
from cutaway.cli import main
from cutaway.commands import serve, serve_greeting, serve_options
from cutaway.commands.serve_options import Several
from cutaway.errors import UserError
from cutaway.inspect import tuned_maps
from tests import inputs, serving, small
from tests.waiting import wait_until

from cutaway.serve.ollama import models as ollama  # isort: skip
from cutaway.serve.service import Limits  # isort: skip

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def started() -> Any:
    """A server of its own process, on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cutaway", "serve", str(inputs.path("smollm2")), "--port", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUTAWAY_API_KEY": "", "COLUMNS": "100"},
    )
    assert process.stderr is not None
    printed = []
    for line in process.stderr:
        printed.append(line)
        if "Ctrl-C" in line:
            break
    yield process, "".join(printed)
    process.kill()
    process.communicate()


def test_it_starts_answers_and_finishes_what_it_began_when_it_is_stopped(started: Any) -> None:
    process, printed = started
    url = re.search(r"serves SmolLM2-135M-Instruct.Q4_1 on (http://127.0.0.1:\d+)", printed)
    assert url is not None and "30 layers, 8,192 tokens" in printed and "512 may wait" in printed, printed
    curl = re.search(r"^  (curl .*)$", printed, re.M)
    assert curl is not None
    done = subprocess.run(
        ["sh", "-c", f"{curl[1]} --silent --max-time 60"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]
    lines: list[str] = []

    def read() -> None:
        body = {
            "prompt": "A lighthouse",
            "max_tokens": 60,
            "ignore_eos": True,
            "stream": True,
            "temperature": 0,
        }
        with serving.httpx.stream("POST", url[1] + "/v1/completions", json=body, timeout=60) as going:
            lines.extend(line for line in going.iter_lines() if line)

    reading = threading.Thread(target=read)
    reading.start()
    wait_until(lambda: len(lines) >= 3, "three lines of the answer")
    process.send_signal(signal.SIGTERM)
    reading.join(60)
    assert lines[-1] == "data: [DONE]" and len(lines) >= 60
    assert process.wait(30) in (0, -signal.SIGTERM)
    log = process.stderr.read()
    assert "path=/v1/completions model=SmolLM2" in log and " generated=60 " in log
    assert "Traceback" not in log and "lighthouse" not in log


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "can be reached by others"),
        (["--host", "192.168.1.1", "--api-key", "short"], "8 or more"),
        (["--max-sequences", "0"], "number above 0"),
        (["--timeout", "-1"], "number above 0"),
        (["--timeout", "nan"], "--timeout is nan"),
        (["--drain", "inf"], "--drain is inf"),
        (["--stop-delay", "-1"], "--stop-delay is -1"),
        (["--port", "70000"], "--port is 70000: give a number from 0 to 65535"),
        (["--trusted-proxy", "nginx"], "give an address"),
        (["--api-key-file", "no-such-file"], "no-such-file cannot be read"),
        (["--api-key", " " * 9], "without spaces"),
        (["--chat-template", "no-such-file", "--port", "0"], "there is no such file"),
        (["--api-key", "long enough", "--api-key", "short"], "8 or more"),
        (["--draft", "nosuch"], "without a model or a head, lookup and mtp draft"),
        (
            ["--engine", "pytorch", "--prefix-cache", "pages"],
            "the PyTorch model answers here, because it was asked for: leave out --engine pytorch or --pref",
        ),
    ],
)
def test_what_is_not_safe_or_not_there_is_refused(
    options: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("CUTAWAY_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["serve", str(inputs.path("smollm2")), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_to_try_names_the_certificate_and_where_keys_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.running(serving.model()) as server:
        service = server.service
    monkeypatch.delenv("CUTAWAY_API_KEY", raising=False)
    given = serve._asked_key(serve_options.Access(api_key_file=Path("keys.yaml")))
    shown = serve_greeting.greeting(service, "https://127.0.0.1:8000", *given, Path("my cert.pem"))
    assert "Try it (KEY is a key of keys.yaml):\n  curl --cacert 'my cert.pem' https://127.0" in shown
    assert "Bearer KEY" in shown and "$CUTAWAY_API_KEY" not in shown and '"temperature": 0.2' in shown
    assert "--unix-socket /run/c.sock http://localhost/v1/" in serve_greeting.greeting(
        service, "http+unix:///run/c.sock"
    )
    monkeypatch.setenv("CUTAWAY_API_KEY", "a-long-key")
    assert serve._asked_key(serve_options.Access())[0] == "$CUTAWAY_API_KEY"
    service.lm.checkpoint = replace(service.lm.checkpoint, defaults={"temperature": 0.6})
    assert "temperature" not in serve_greeting.greeting(service, "http://127.0.0.1:8000")


def test_a_certificate_without_its_key_says_which_option_has_it(tmp_path: Path) -> None:
    cert, key = serving.certificate(tmp_path)
    with pytest.raises(UserError, match="--ssl-keyfile"):
        serve_options.check_certificate(serve_options.Listening(ssl_certfile=cert))
    serve_options.check_certificate(serve_options.Listening(ssl_certfile=cert, ssl_keyfile=key))


def test_ollamas_clients_learn_what_file_the_model_is() -> None:
    file = inputs.path("smollm2")
    models = serve.Loader((str(file),), serve_options.Loading(), Several(), Limits()).models()
    card = ollama.card(models.default, "smollm2")
    assert card["details"]["format"] == "gguf"
    lm = copy(models.default.lm)
    lm.checkpoint = replace(lm.checkpoint, origin=None)
    assert card["digest"] != ollama.card(replace(models.default, lm=lm), "smollm2")["digest"]


def test_without_core_and_pytorch_serving_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = small.model_file(tmp_path / "small.gguf")
    monkeypatch.setattr(cutaway.native, "unavailable_reason", lambda: "The native core is absent.")
    monkeypatch.setattr(cutaway.native, "available", lambda: False)
    monkeypatch.setattr(cutaway.engines, "installed", lambda library: False)
    with pytest.raises(UserError, match=r"serving small needs the native core.* or PyTorch: pip install"):
        serve.Loader((str(file),), serve_options.Loading(), Several(), Limits()).models()


def test_a_tuned_lens_is_loaded_with_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, lens = small.model_file(tmp_path / "small.gguf"), tmp_path / "lens.safetensors"

    def service() -> Any:
        return (
            serve.Loader((str(file),), serve_options.Loading(lens=(str(lens),)), Several(), Limits())
            .models()
            .default
        )

    with monkeypatch.context() as patch:
        patch.setattr("cutaway.load", None)
        with pytest.raises(UserError, match="there is no such file"):
            service()
    lm = cutaway.load(file)
    layers, width = len(lm.config.blocks), lm.config.width
    weights, biases = np.ones((layers, width, width), np.float32), np.ones((layers, width), np.float32)
    tuned_maps.TunedLens(lm.subject, weights, biases).save(lens)
    assert (service().lenses["tuned"].weights == weights).all()


def test_a_port_that_is_taken_is_reported_before_loading(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr("cutaway.load", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", str(inputs.path("smollm2")), "--port", str(taken.getsockname()[1])]) == 1
    assert "Cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_without_the_library_of_grammars_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.running(serving.model()) as server:
        assert "pip install" not in serve_greeting.greeting(server.service, "http://127.0.0.1:8000")
        monkeypatch.setattr(serve_greeting, "installed", lambda library: library != "llguidance")
        shown = serve_greeting.greeting(server.service, "http://127.0.0.1:8000")
        assert f"without  tools, JSON schemas and grammars: {extras.install('agent')}" in shown
        monkeypatch.setattr(extras, "installed", lambda library: library != "llguidance")
        asked = {"messages": [{"role": "user", "content": "x"}]}
        asked |= {"response_format": {"type": "regex", "regex": "no-other-test-asks-[a-z]"}}
        refused = server.post("/v1/chat/completions", asked)
        assert refused.status_code == 400 and extras.install("agent") in refused.json()["error"]["message"]


def test_it_says_how_it_drafts_and_where_it_keeps_pages_and_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path))
    monkeypatch.delenv("CUTAWAY_PREFIX_CACHE_KEY", raising=False)
    monkeypatch.setattr(serve_greeting, "draft_path", Path)
    with serving.running(serving.model()) as server:

        def lines(**options: Any) -> list[str]:
            loading = serve_options.Loading(prefix_cache_size="2GB", **options)
            shown = serve_greeting.greeting(server.service, "http://127.0.0.1:8000", loading=loading)
            return [line.strip() for line in re.findall("^  (?:drafts|prefixes|slots) .*", shown, re.M)]

        assert lines() == []
        assert lines(draft="lookup") == ["drafts   by lookup in earlier text: answers are the same"]
        assert lines(draft="mtp") == ["drafts   by the model's own heads: answers are the same"]
        assert lines(draft="nosuch") == ["drafts   by nosuch, a smaller model: answers are the same"]
        (tmp_path / "key").write_text("k" * 32)
        folders = {"prefix_cache": Path("default"), "slot_save_path": Path("own")}
        assert lines(**folders, prefix_cache_key_file=tmp_path / "key") == [
            f"prefixes in {tmp_path / 'prefixes'}: 0 bytes of 2.0 GB at most, encrypted",
            "slots    in own: 2.0 GB at most, encrypted",
        ]


def test_serving_loads_no_torch() -> None:
    code = f"""
import sys, cutaway, cutaway.serve.app
from cutaway.commands.serve import Loader
from cutaway.commands.serve_options import Loading, Several
from cutaway.serve.service import Limits
from cutaway.serve.openai.schema import CompletionRequest
from cutaway.generate.batch.request import Request
service = Loader(({str(inputs.path("smollm2"))!r},), Loading(), Several(), Limits()).models().default
params = service.sampling_params(CompletionRequest(prompt="x"), 2, 0, 0)
list(service.scheduler.submit(Request((5, 6), params)))
service.scheduler.close()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


# The server's threads share the process's `random` with the strategies: what they draw is not of these.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.filterwarnings("ignore:the vocabulary has no token for byte:RuntimeWarning")
def test_no_request_that_its_document_allows_is_a_fault_of_ours() -> None:
    """Schemathesis: requests made from the OpenAPI document, right ones and wrong ones."""
    from hypothesis import HealthCheck, Phase, given, settings

    limits: dict[str, Any] = {"max_tokens": 8, "trace_tokens": 64, "request_seconds": 20.0}
    with serving.running(serving.model(), **limits) as server:
        document = schemathesis.openapi.from_url(server.url + "/openapi.json")
        checked = 0
        for found in document.get_all_operations():
            operation = found.ok()

            @settings(
                max_examples=3,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                derandomize=True,
                database=None,
            )
            @given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                nonlocal checked
                checked += 1
                answer = case.call(timeout=120)
                assert answer.status_code < 500, (case, answer.text)

            ask()
        assert checked >= 25


def test_options_come_from_words_then_the_environment_then_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def printed(*words: str) -> Any:
        assert main(["serve", *words, "--print-config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    file = tmp_path / "serve.yaml"
    file.write_text("models: [a.gguf]\nport: 1\ndrain: 7\nhost: ::1\nalias: [x, y z]\nlenient: true\n")
    monkeypatch.setenv("CUTAWAY_SERVE_PORT", "2")
    monkeypatch.setenv("CUTAWAY_SERVE_TRUSTED_PROXY", "10.0.0.0/8 127.0.0.1")
    found = printed("--config", str(file), "--host", "localhost", "--api-key", "never-shown")
    assert (found["host"], found["port"], found["drain"]) == ("localhost", 2, 7.0)
    assert (found["models"], found["alias"], found["lenient"]) == (["a.gguf"], ["x", "y z"], True)
    assert found["trusted-proxy"] == ["10.0.0.0/8", "127.0.0.1"] and "never-shown" not in str(found)
    file.write_text(yaml.safe_dump(found))
    monkeypatch.delenv("CUTAWAY_SERVE_PORT")
    monkeypatch.setenv("CUTAWAY_SERVE_CONFIG", str(file))
    assert printed() == found
    for wrong, sentence in (("prot: 1", "prot"), ("port: many", "many"), ("port", "entries by name")):
        file.write_text(wrong)
        assert main(["serve", "--print-config"]) == 2 and sentence in capsys.readouterr().err
    monkeypatch.setenv("CUTAWAY_SERVE_CONFIG", "no-such.yaml")
    assert main(["serve", "--print-config"]) == 2 and "no-such.yaml" in capsys.readouterr().err
    monkeypatch.delenv("CUTAWAY_SERVE_CONFIG")
    monkeypatch.setenv("CUTAWAY_SERVE_PROT", "1")
    assert main(["serve", "--print-config"]) == 2
    assert "did you mean CUTAWAY_SERVE_PORT?" in capsys.readouterr().err


EARLY = """
import signal, sys
from cutaway import cli

signal.signal(signal.SIGINT, signal.default_int_handler)
handle, times = signal.signal, int(sys.argv[1])

def handled(number, handler):
    global times
    before = handle(number, handler)
    while number == signal.SIGINT and times:
        times -= 1
        signal.raise_signal(signal.SIGINT)
    return before

signal.signal = handled
sys.exit(cli.main(["open", sys.argv[2], "--no-browser"]))
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_before_the_loop_begins_is_no_traceback(times: int, tmp_path: Path) -> None:
    model = small.model_file(tmp_path / "tiny.gguf")
    command = [sys.executable, "-c", EARLY, str(times), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
