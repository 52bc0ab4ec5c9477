"""Fuzzes the Python parsers of untrusted input under atheris, which is guided by coverage.

    python3 -m venv fuzz && fuzz/bin/pip install -e '.[serve]' atheris
    fuzz/bin/python -m scripts.fuzz.parsers gguf --minutes 60

Targets: gguf and safetensors (files); tokenizer, spm and ranks (tokenizer.json, SentencePiece's .model,
OpenAI's rank files); template (chat templates); http (bodies of every POST); calls (answers with tool calls);
yaml (training configs); vectors (files of word vectors); bundle (.cutaway files). An input must be read or be
refused in one sentence: another exception, over SECONDS or over MEMORY MiB is a failure, and the input is
kept in ``fuzz-TARGET-*``. ``--corpus`` keeps what reached new code from one run to the next; every target
starts from small whole inputs, made here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["cutaway"]):
    from cutaway import bundle, gguf
    from cutaway.errors import OperationalError, UserError
    from cutaway.generate.tool_calls import parser as tool_calls
    from cutaway.generate.tool_calls.tool_format import ToolFormat
    from cutaway.quantization import formats
    from cutaway.serve import app
    from cutaway.serve.api_error import APIError
    from cutaway.serve.validation import parse_body
    from cutaway.tokenizer import Tokenizer
    from cutaway.tokenizer.chat import provenance, template
    from cutaway.tokenizer.chat.control_tokens import conversations
    from cutaway.tokenizer.formats import spm_model
    from cutaway.train import config
    from cutaway.weights import safetensors, vectors

from scripts.fuzz import tokenizer_files as tokenizers

SECONDS, MEMORY = 10, 2048
LONGEST = 1000  # characters of a refusal
RENDERING = 0.4  # seconds of computing after which a template is stopped, as in the helper process
Target = Callable[[bytes], None]


def refusable(work: Callable[[], Any]) -> None:
    """Run what may be refused in one short line."""
    try:
        work()
    except (UserError, OperationalError) as error:
        if "\n" in str(error) or len(str(error)) > LONGEST:
            raise AssertionError(f"a refusal of {len(str(error))} characters: {error!s:.200}") from None


def of_file(name: str, read: Callable[[Path], Any]) -> Target:
    """A parser of files, on one file that is written again for each input."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / name

    def target(data: bytes) -> None:
        path.unlink(missing_ok=True)  # what is mapped keeps its own bytes
        path.write_bytes(data)
        refusable(lambda: read(path))

    return target


def read_gguf(path: Path) -> None:
    """All metadata and every tensor's bytes."""
    file = gguf.read(path)
    for value in file.metadata.values():
        str(value)
    for tensor in file.tensors.values():
        tensor.data.sum()


def read_safetensors(path: Path) -> None:
    """Both halves of the header, and every tensor's bytes."""
    safetensors.metadata(path)
    for tensor in safetensors.read_safetensors(path).values():
        tensor.data.sum()


def read_tokenizer(path: Path) -> None:
    """A tokenizer that is read encodes, and gives ids that it has."""
    tokenizer = Tokenizer.load(path, **({"pattern": "gpt2"} if path.suffix == ".tiktoken" else {}))
    ids = tokenizer.encode("the cat, Tüür 12\n ▁a")
    assert all(0 <= id < len(tokenizer) for id in ids)
    tokenizer.decode(ids)


def read_vectors(path: Path) -> None:
    """Vectors that are read are finite, a row a word."""
    found = vectors.read_vectors(path)
    assert len(found.words) == len(found.table)
    assert np.isfinite(found.table).all()


def read_bundle(path: Path) -> None:
    """What a bundle unpacks is in its own folder, as long as the file at most."""
    opened = bundle.open(path)
    inside = [each for each in opened.folder.rglob("*") if each.is_file()]
    assert sum(each.stat().st_size for each in inside) <= path.stat().st_size
    shutil.rmtree(opened.folder)


def read_calls(data: bytes) -> None:
    """An answer in every format: its calls are the same however it is cut; without calls no text is lost."""
    if not data:
        return
    text = data[1:].decode("utf-8", errors="ignore")
    for form in FORMATS:
        content, calls = tool_calls.parse(form, text, TOOLS)
        reader, events = tool_calls.StreamingParser(form, TOOLS), []
        size = 1 + data[0] % 7
        for start in range(0, len(text), size):
            events += reader.push(text[start : start + size])
        assert tool_calls.collect([*events, *reader.finish()]) == (content, calls), "cuts change the calls"
        assert calls or content == text, "text is lost"
        for call in calls:
            assert isinstance(call.object, dict)


def render(data: bytes) -> None:
    """The template, rendered in this process under a timer: each character has an origin."""
    source = data.decode("utf-8", errors="ignore")

    def late(*_: object) -> None:
        raise TimeoutError

    why: Exception | None = None
    signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, RENDERING)
    try:
        program = template.Program(source, {"bos_token": "<s>"})
        for context in CONVERSATIONS:
            text = program.render(context)
            assert len(provenance.origins(text)) == len(text), "a character without an origin"
    except MemoryError:
        pass
    except AssertionError:
        raise
    except Exception as error:
        why = error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if why is not None:
        template.reason(why)


CONVERSATIONS: list[Any] = conversations()[:3]
BODIES = [route.body for route in app.ROUTES if route.body is not None]


def read_body(data: bytes) -> None:
    """The first byte chooses the endpoint."""
    if data:
        with contextlib.suppress(APIError):
            parse_body(BODIES[data[0] % len(BODIES)], data[1:], lenient=bool(data[0] & 128))


def seeds(target: str) -> list[bytes]:
    """Small whole inputs."""
    if target == "gguf":
        made = []
        for model in ("gpt2", "llama", "t5"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "seed.gguf"
                weight = formats.pack(np.ones((4, 8), np.float32), "F32")
                gguf.write(path, tokenizers.metadata(model), {"token_embd.weight": weight})
                made.append(path.read_bytes())
        return made
    if target == "safetensors":
        header = {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
        }
        text = json.dumps(header).encode()
        return [len(text).to_bytes(8, "little") + text + bytes(24)]
    if target == "tokenizer":
        makers = (tokenizers.bpe_json, tokenizers.wordpiece_json, tokenizers.unigram_json)
        return [json.dumps(make()).encode() for make in makers]
    if target == "spm":
        return [spm_model.write_file(tokenizers.scored(kind)) for kind in ("BPE", "Unigram")]
    if target == "ranks":
        return [tokenizers.rank_file()]
    if target == "vectors":
        text, row = b"the 0.5 -1.25\na 0.5 -1.25\n", np.array([0.5, -1.25], "<f4").tobytes()
        return [text, b"2 2\n" + text, b"2 2\nthe " + row + b"a " + row]
    if target == "bundle":
        with tempfile.TemporaryDirectory() as folder:
            model, made = Path(folder) / "model.gguf", Path(folder) / "seed.cutaway"
            model.write_bytes(b"GGUF")
            bundle.write_bundle(made, "smollm2", model, "# A card", system="x", tools=["calculator"])
            return [made.read_bytes()]
    if target == "calls":
        return [bytes([n]) + text.encode() for n, text in enumerate(ANSWERS)]
    if target == "template":
        return [each.encode() for each in TEMPLATES]
    if target == "yaml":
        return [path.read_bytes() for path in sorted(config.PRESETS.glob("*.yaml"))]
    return [bytes([n]) + json.dumps(body).encode() for n in range(len(BODIES)) for body in HTTP_BODIES]


TOOLS: dict[str, Any] = {"f": {"type": "object", "properties": {"a": {"type": "integer"}}}, "g": None}
FORMATS = [
    ToolFormat("", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n", "", True),
    ToolFormat("[TOOL_CALLS]", '[{"name": "', '", "arguments": ', "}", ", ", "]", True),
    ToolFormat("", '{"name": "', '", "parameters": ', "}", None, "", True),
]
ANSWERS = (
    'Yes. <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "g"',
    '[TOOL_CALLS][{"name": "f", "arguments": {"a": "\\u0041"}}, {"name": "g", "arguments": {}}]',
    '{"name": "g", "parameters": {"b": [1, {"c": null}]}} and more',
)
TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}",
    """{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'tool' %}
{%- set ns.n = ns.n + 1 %}{{ '%s: %s' % (m['role'], m['content'][:5]) ~ ns.n }}
{%- else %}{{ raise_exception('none') }}{% endfor %}""",
    """{% macro call(x) %}{{ x | tojson(indent=2) }}{% endmacro %}{% if tools %}{{ call(tools) }}{% endif %}
{{- messages[-1].content.split('x') | join(',') | upper }}{{ strftime_now('%Y') }}""",
    """{% generation %}{{ messages | map(attribute='content') | list | length }}{% endgeneration %}
{{- 'a'.format() }}{{ '{0:>5}'.format(messages[0].role) }}{{ messages[0].content.replace('a', 'b') }}""",
)
USER = {"role": "user", "content": "x"}
HTTP_BODIES: tuple[Any, ...] = (
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "stop": ["a"]},
    {"prompt": ["a", "b"], "logprobs": 2, "seed": 1, "response_format": {"type": "regex", "regex": "a"}},
    {"input": "a", "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}]},
    {"model": "m", "messages": [USER], "tools": [], "tool_choice": "auto", "stream": True, "max_tokens": 3},
    {"text": "a", "values": ["out"], "positions": [-1], "edits": [{"layer": 0, "kind": "ablate"}]},
)
TARGETS: dict[str, Callable[[], Target]] = {
    "gguf": lambda: of_file("input.gguf", read_gguf),
    "safetensors": lambda: of_file("input.safetensors", read_safetensors),
    "tokenizer": lambda: of_file("tokenizer.json", read_tokenizer),
    "spm": lambda: of_file("input.model", read_tokenizer),
    "ranks": lambda: of_file("input.tiktoken", read_tokenizer),
    "vectors": lambda: of_file("input.vec", read_vectors),
    "bundle": lambda: of_file("input.cutaway", read_bundle),
    "calls": lambda: read_calls,
    "template": lambda: render,
    "http": lambda: read_body,
    "yaml": lambda: of_file("config.yaml", lambda path: config.read_run_config(str(path))),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="that an input may take")
    parser.add_argument("--corpus", type=Path, help="a folder that is kept")
    asked = parser.parse_args()
    os.environ["CUTAWAY_HOME"] = tempfile.mkdtemp()  # where bundles are unpacked
    corpus = asked.corpus or Path(tempfile.mkdtemp())
    corpus.mkdir(parents=True, exist_ok=True)
    for n, data in enumerate(seeds(asked.target)):
        (corpus / f"seed-{n}").write_bytes(data)
    options = [
        f"-max_total_time={round(asked.minutes * 60)}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEMORY}",
    ]
    options += [
        "-max_len=16384",
        "-print_final_stats=1",
        f"-artifact_prefix=fuzz-{asked.target}-",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], TARGETS[asked.target]())
    atheris.Fuzz()


if __name__ == "__main__":
    main()
