"""The command line: what it prints where, its exit codes, and that it is quick to say what it is."""

import ast
import hashlib
import importlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cutaway
from cutaway import cli, memory, store
from cutaway.commands import console, progress
from cutaway.errors import OperationalError, UserError, quoted, visible
from cutaway.store.files import Bytes
from cutaway.tokenizer.bpe import BYTES, spell
from tests.small import TEMPLATE, model_file

VERBS = [verb for verbs in cli.VERBS.values() for verb in verbs]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit code, standard output and standard error of one command line."""
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_overview(capsys, arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 0 and err == ""
    assert all(f"\n  {verb} " in out for verb in VERBS) and max(map(len, out.splitlines())) <= 80


def test_version(capsys) -> None:
    code, out, err = run(capsys, "--version")
    assert (code, err, out.count("\n")) == (0, "", 1) and out.startswith(f"cutaway {cutaway.__version__} (")


@pytest.mark.parametrize("program", ["import cutaway", "from cutaway.cli import main; main(['--help'])"])
def test_nothing_heavy_is_imported_to_say_what_it_is(program: str) -> None:
    program += "; import sys; print([m for m in ('torch', 'numpy', 'rich', 'cyclopts') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_give_their_processor_away(given: dict[str, str], spins: str | None) -> None:
    """A verb's threads spin for a short time, unless the user decided how they wait."""
    program = "import os, cutaway.cli as c; c.main(['--version']); print(os.getenv('GOMP_SPINCOUNT'))"
    named = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in named} | given
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == str(spins)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_file_with_examples(capsys, verb: str) -> None:
    commands = Path(cli.__file__).with_name("commands")
    module = next(
        file for file in (commands / f"{verb}.py", commands / verb / "__init__.py") if file.is_file()
    )
    body = ast.parse(module.read_text()).body
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    apps = [ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)]
    assert verb in functions + apps
    code, out, err = run(capsys, verb, "--help")
    assert code == 0 and err == ""
    assert f"cutaway {verb}" in out.partition("Examples:")[2]
    assert not set(out) & set("╭╮╰╯│─\x1b")  # it was piped, so it is plain


def test_a_verb_that_says_nothing_for_a_second_says_what_it_does(capsys, monkeypatch) -> None:
    """In a pipe, on standard error; on a terminal it is drawn (test_terminal.py)."""
    shown = list[str]()

    def silent() -> None:
        """Fetch a model: one that
        takes long.
        """
        ends = time.monotonic() + 60
        while not shown and time.monotonic() < ends:
            shown.extend(capsys.readouterr().err.splitlines())
            time.sleep(0.01)

    def waits() -> None:
        """Fetch a model. It takes longer than silence lasts."""
        time.sleep(0.4)

    def answers() -> None:
        """Fetch a model. It is quick."""
        task = progress._starting.task
        assert task is not None
        print("answer", file=sys.stdout)
        progress._starting._show(task)

    monkeypatch.setattr("cutaway.commands.pull.pull", silent)
    with monkeypatch.context() as changed:
        changed.setattr(progress, "SILENCE", 0.0)
        changed.delenv("CUTAWAY_QUIET")
        assert run(capsys, "pull") == (0, "", "")
    assert shown == ["cutaway pull is at work: fetch a model"]
    with monkeypatch.context() as changed:
        changed.setattr(progress, "SILENCE", 0.0)
        changed.setattr("cutaway.commands.pull.pull", waits)
        assert run(capsys, "pull") == (0, "", "")
    monkeypatch.setattr("cutaway.commands.pull.pull", answers)
    assert run(capsys, "pull") == (0, "answer\n", "")


def test_only_a_verb_that_begins_says_what_it_does(home: Path, capsys, monkeypatch) -> None:
    begun = list[str]()
    monkeypatch.setattr(progress._starting, "begin", lambda what, since: begun.append(what))
    for words in ("models --help", "models --bogus", "models a b", "pull -x", "embed"):
        cli.main(words.split())
    assert begun == []
    assert run(capsys, "models", "--json")[0] == 0
    assert begun == ["cutaway models is at work: list the models in the cache"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["genrate"], "did you mean `cutaway generate`?"),
        (["xyzzy"], "there is no verb xyzzy"),
        (["--json", "models"], "the verb comes first"),
        (["list"], "`cutaway models` lists"),
        (["rm", "smollm2"], "`cutaway models --remove NAME`"),
        (["ps"], "`cutaway serve`"),
        (["-m", "smollm2"], "`cutaway chat MODEL`"),
        (["generate", "-m", "smollm2", "hi"], "write --model"),
        (["chat", "-n", "5"], "write --max-tokens"),
        (["run", "smollm2"], "`cutaway chat smollm2`"),
        (["run", "model.gguf"], "`cutaway chat model.gguf`"),
        (["models", "--bogus"], "--bogus"),
        (["models", "--remove"], "--remove"),
        (["pull", "smollm2", "gpt2"], "gpt2"),
        (["pull", "smolm2"], "Did you mean smollm2"),
        (["models", "--remove", "smollm2"], "nothing to remove"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_two(
    home: Path, capsys, arguments: list[str], sentence: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("cutaway: ") and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("problem", "code", "captured"),
    [
        (UserError("no"), 2, "cutaway: no\n"),
        (OperationalError("broken"), 1, "cutaway: broken\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(capsys, monkeypatch, problem: BaseException, code: int, captured: str) -> None:
    def fails(name: str) -> Path:
        raise problem

    monkeypatch.setattr(console, "pull", fails)
    monkeypatch.delenv("CUTAWAY_DEBUG", raising=False)
    assert run(capsys, "pull") == (code, "", captured)
    monkeypatch.setenv("CUTAWAY_DEBUG", "1")
    assert ("Traceback" in run(capsys, "pull")[2]) == bool(captured)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "cutaway"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_models_tells_what_is_there(home: Path, capsys, monkeypatch) -> None:
    code, out, _ = run(capsys, "models")
    assert code == 0 and "`cutaway pull smollm2` fetches it" in out
    model = store.NAMES["smollm2"]
    path = home / "models" / "smollm2" / model.file
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(model.bytes))
    assert "`cutaway pull smollm2` fetches it" in run(capsys, "models")[1], "other bytes of the same size"
    pinned = replace(model, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(store.NAMES, "smollm2", pinned)
    code, out, _ = run(capsys, "models")
    assert code == 0 and out.startswith("smollm2  98 MB  Apache-2.0") and str(path) in out
    document = json.loads(run(capsys, "models", "--json")[1])
    assert [(row["name"], row["bytes"], row["path"]) for row in document["cached"]] == [
        ("smollm2", model.bytes, str(path))
    ]
    assert json.loads(run(capsys, "pull", "smollm2", "--json")[1]) == {
        "name": "smollm2",
        "path": str(path),
        "revision": None,
    }
    assert json.loads(run(capsys, "models", "--remove", "smollm2", "--json")[1])["freed"] == model.bytes
    assert not path.exists()


def test_models_lists_what_has_a_short_name(home: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 3 << 30)
    code, out, _ = run(capsys, "models", "--known")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and {"smollm2", "qwen3-0.6b", "gpt2"} <= rows.keys()
    assert "needs 7.3 GB of memory" in rows["qwen3-8b"] and "needs" not in rows["qwen3-0.6b"]
    assert all(
        name.startswith("qwen") for name in run(capsys, "models", "--known", "Qwen")[1].split("\n") if name
    )
    document = json.loads(run(capsys, "models", "gpt2", "--json")[1])
    assert [(row["name"], row["licence"], row["fits"]) for row in document["catalogue"]] == [
        ("gpt2", "MIT", True)
    ]
    assert run(capsys, "models", "--known", "no such model")[0] == 2
    assert run(capsys, "models", "--known", "--remove", "gpt2")[0] == 2


def test_models_prunes_what_can_go(home: Path, capsys, monkeypatch) -> None:
    blobs = Path(os.environ["HF_HUB_CACHE"], "models--org--name", "blobs")
    made = [home / "vocabularies" / "x" / "y", home / "prefixes" / "model" / "page"]
    for path in (blobs / f"{'a' * 64}.incomplete", blobs / ("b" * 64), *made):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    assert "`cutaway models --prune` frees 3.0 kB" in run(capsys, "models")[1]
    assert run(capsys, "models", "--prune")[1] == "Removed what can be made again: 3.0 kB freed\n"
    assert [path.name for path in blobs.iterdir()] == ["b" * 64] and not any(path.exists() for path in made)
    assert json.loads(run(capsys, "models", "--prune", "--json")[1])["freed"] == 0
    assert run(capsys, "models", "--prune", "--remove", "smollm2")[0] == 2


def test_model_path_pulls_a_name_of_the_catalogue(home: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(store, "pull", lambda name, progress: Path("pulled") / name)
    monkeypatch.setattr(memory, "available", lambda: 1 << 30)
    assert console.model_path("qwen3-4b") == Path("pulled/qwen3-4b")
    shown = capsys.readouterr().err
    assert "2.5 GB, Apache-2.0) from Qwen/Qwen3-4B-GGUF:Q4_K_M" in shown and "3.8 GB of memory" in shown


def test_model_path_pulls_a_known_name(home: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(store, "pull", lambda name, progress: Path("pulled") / name)
    assert console.model_path("smollm2") == Path("pulled/smollm2")
    captured = capsys.readouterr()
    assert captured.out == "" and "98 MB" in captured.err and "Apache-2.0" in captured.err


def test_model_path_asks_before_it_pulls_a_repository(home: Path, monkeypatch, capsys) -> None:
    from cutaway.store import hub

    monkeypatch.setattr(store, "pull", lambda name, progress: Path("pulled") / name)
    monkeypatch.setattr(hub, "size", lambda source: 1_500_000_000)
    with pytest.raises(UserError, match="`cutaway pull org/name`"):  # no terminal to ask on
        console.model_path("org/name")
    monkeypatch.setattr(console, "interactive", lambda: True)
    for answer, pulled in {"\n": True, "y\n": True, "n\n": False, "": False}.items():
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        if pulled:
            assert console.model_path("org/name") == Path("pulled/org/name")
            continue
        with pytest.raises(UserError, match="was not fetched"):
            console.model_path("org/name")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("Fetch 1.5 GB from Hugging Face? [Y/n] ") == 4


def test_model_path_leaves_paths_alone(home: Path, tmp_path: Path) -> None:
    assert console.model_path(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="no such file"):
        console.model_path("nowhere.gguf")


@pytest.mark.parametrize(
    ("count", "captured"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (98_362_432, "98 MB"), (2e12, "2000 GB")],
)
def test_sizes(count: float, captured: str) -> None:
    assert console.size(count) == captured


def test_progress_without_a_terminal_says_each_step_once(capsys) -> None:
    with console.watched() as progress:
        for done in range(5):
            progress("downloading", Bytes(done), Bytes(5_000_000))
        progress("unpacking", 0, None)
    assert capsys.readouterr().err == "downloading 5.0 MB\nunpacking\n"


def test_every_verb_imports_without_torch() -> None:
    for verb in VERBS:
        importlib.import_module(f"cutaway.commands.{verb}")
    program = (
        f"import sys, importlib\nfor verb in {VERBS}: importlib.import_module('cutaway.commands.' + verb)\n"
    )
    program += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


OWNED = "\x1b]0;owned\x07\x9d0;owned\x07\u202e"
EVERY_VERB = """
import json, sys
from cutaway.cli import main
for words in json.loads(sys.argv[1]):
    print("code", main(words), flush=True)
"""


def on_terminal(verbs: list[list[str]], typed: str) -> str:
    """What verbs, one after another, write to a pseudo-terminal; `typed` is their standard input."""
    reading, writing = pty.openpty()
    command = [sys.executable, "-c", EVERY_VERB, json.dumps(verbs)]
    environment = os.environ | {"TERM": "xterm"}
    with subprocess.Popen(command, stdin=-1, stdout=writing, stderr=writing, env=environment) as process:
        os.close(writing)
        assert process.stdin is not None
        process.stdin.write(typed.encode())
        process.stdin.close()
        shown = b""
        try:
            while data := os.read(reading, 1 << 16):
                shown += data
        except OSError:  # the other end was closed
            os.close(reading)
    return shown.decode()


def test_no_text_of_a_model_or_a_user_acts_on_the_terminal(tmp_path: Path) -> None:
    metadata = {"general.license": f"mit{OWNED}\nfamily", "tokenizer.chat_template": TEMPLATE + OWNED}
    control = ("<|im_start|>", f"<{OWNED}>", "<|im_end|>")
    model = str(model_file(tmp_path / f"h{OWNED}.gguf", control, **metadata))
    escapes = ["--logit-bias", f"{BYTES.index(spell(bytes([27])))}=100", "--max-tokens", "3"]
    verbs = [
        ["info", model],
        ["info", model, "--json"],
        ["tokenizer", "show", f"a {OWNED}", "--tokenizer", model],
        ["tokenizer", "report", model],
        ["tokenizer", "decode", "27", "259", "219", "--tokenizer", model],
        ["generate", f"a{OWNED}", "--model", model, *escapes],
        ["generate", "a", "--model", model, *escapes, "--logprobs", "3"],
        ["explain", f"a{OWNED}", "--chat", "--model", model],
        ["chat", model, *escapes],
        ["convert", model, model],
        ["generate", "a", "--model", model + OWNED],
        ["models", "--remove", OWNED],
        [OWNED],
    ]
    shown = on_terminal(verbs, f"hi{OWNED}\n/system {OWNED}\n/bad{OWNED}\n/undo\n")
    assert re.findall(r"code (\d+)", shown) == ["0"] * 9 + ["2"] * 4, shown
    assert shown.count("owned") > 20
    own = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)  # colours and the cursor, which rich moves
    assert not re.findall("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", own)


def test_what_errors_quote_is_one_short_line() -> None:
    for value in ("x" * 10**6, ["y" * 1000] * 1000, {"z" * 1000: [[["w"]]]}, np.arange(10**5), "\x1b\n\x9b"):
        assert len(quoted(value)) <= 80 and quoted(value).isprintable()
    assert (
        quoted("é\x1b") == "'é\\x1b'"
        and visible("a\n\té🦜\x1b[0m\x9b\ud800") == "a\n\té🦜\\x1b[0m\\x9b\\ud800"
    )


def test_a_library_that_cannot_be_loaded_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(arguments: list[str]) -> int:
        try:
            raise ImportError("libstdc++.so.6: cannot open shared object file: No such file or directory")
        except ImportError as error:
            raise ImportError("\nIMPORTANT: pages of advice") from error

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["explain", "text"]) == cli.FAILURE
    printed = capsys.readouterr().err
    assert "libstdc++.so.6: cannot open" in printed and "libstdc++6" in printed and "IMPORTANT" not in printed
    monkeypatch.setattr(cli, "_run", lambda arguments: exec("raise ImportError('cannot import name x')"))
    with pytest.raises(ImportError, match="name x"):  # an error of ours is not hidden
        cli.main(["explain", "text"])
