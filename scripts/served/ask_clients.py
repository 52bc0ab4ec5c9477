"""Clients that people use against `cutaway serve`, unchanged, each in an environment of its own.

    pip install uv && python -m scripts.served.ask_clients                 # all; needs node 22.22 and npm too
    python -m scripts.served.ask_clients openai-python claude-code --again  # some, asked again

Each file of clients/ is one client: its head names its packages with their versions (PEP 723 for
Python, `// dependencies:` for JavaScript), which uv or npm install into --folder, and the rest asks the
server for what the client has. The server has two models: SmolLM2, and `long`, its first two layers with a
context of 131,072, for clients whose own prompts are longer than what SmolLM2 reads; nothing depends on the
client.

A check fails where the client raises, or its answer is empty. Where an answer depends on what a model
chooses the call is forced. Results are kept in --folder, and a client that passed is not asked again until
its file changes, or with --again. At the end the table of docs/serving.md is printed: client, version, what
works, what does not and why. The exit code is 1 if anything failed. Some 3 GB and 20 minutes the first time
(--skip open-webui: half).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from scripts.lib.serving import served

CLIENTS = Path(__file__).parent / "clients"
LONG = 131_072
SECONDS = 900  # that one client may take, without what its installation takes
SHARED = CLIENTS / "shared"
Result = list[tuple[str, str | None]]  # of each check its name, and why it failed


def pins(file: Path) -> list[str]:
    """The packages of a client's head, the client itself first."""
    text = file.read_text()
    if file.suffix == ".py":
        listed = re.search(r"^# dependencies = (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
        assert listed is not None, f"{file} names no dependencies"
        return json.loads(listed[1].replace("\n# ", "\n").replace(",\n]", "\n]"))
    listed = re.search(r"^// dependencies: (.*)$", text, re.MULTILINE)
    assert listed is not None, f"{file} names no dependencies"
    return listed[1].split()


def version(file: Path) -> str:
    """The version of a client, which its first package has."""
    return re.split("==|(?<=.)@", pins(file)[0])[-1]


def command(file: Path, folder: Path) -> list[str]:
    """What runs a client's file; its packages are installed."""
    if file.suffix == ".py":
        return [
            shutil.which("uv") or "uv",
            "run",
            "--quiet",
            "--python",
            sys.executable,
            "--script",
            str(file),
        ]
    home = folder / "node" / file.stem
    home.mkdir(parents=True, exist_ok=True)
    listed = home / "installed"
    if not listed.exists() or listed.read_text() != " ".join(pins(file)):
        install = ["npm", "install", "--prefix", str(home), "--no-audit", "--no-fund", "--save-exact"]
        subprocess.run([*install, *pins(file)], check=True, stdout=sys.stderr)
        listed.write_text(" ".join(pins(file)))
    for one in (file, SHARED / "checks.mjs"):
        shutil.copy(one, home)
    return ["node", str(home / file.name)]


def asked(file: Path, folder: Path, url: str) -> Result:
    """The checks of a client against the server."""
    # Keys and addresses of the caller's own services stay out of it, and so does the network.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC", "OPENAI"))}
    home = folder / "home" / file.stem
    home.mkdir(parents=True, exist_ok=True)
    environment = kept | {"CLIENT_HOME": str(home), "PYTHONSAFEPATH": "1", "PYTHONPATH": str(SHARED)}
    try:
        done = subprocess.run(
            [*command(file, folder), url],
            capture_output=True, text=True, timeout=SECONDS, check=False, env=environment, cwd=home,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [("all", f"not finished in {SECONDS} s")]
    (home / "log").write_text(done.stdout + done.stderr)
    lines = [line.removeprefix("check ") for line in done.stdout.splitlines() if line.startswith("check ")]
    results = [tuple(json.loads(line)) for line in lines]
    if done.returncode or not results:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        results.append(("start", f"exit code {done.returncode}: {last[:200]}"))
    return results


def long_model(folder: Path) -> Path:
    """SmolLM2's first two layers with a long context, made where they are missing. What they write makes no
    sense; their end token is as likely as a comma, so that it ends.
    """
    target = folder / "long"
    if not target.exists():
        import torch

        import cutaway
        from cutaway.lm import LanguageModel
        from cutaway.weights.named_tensors import Tensors

        lm = cutaway.load("smollm2")
        config = replace(lm.config, blocks=lm.config.blocks[:2], context=LONG)
        kept = Tensors({name: lm.checkpoint.tensors.later(name) for name in config.weights()})
        lm = LanguageModel(replace(lm.checkpoint, config=config, tensors=kept))
        (comma,), (end, *_) = lm.tokenizer.encode(","), lm.tokenizer.eos_ids
        with torch.no_grad():
            weight = lm.model.embedding.weight
            weight[end] = weight[comma]
        lm.save(target)
    return target


def row(file: Path, results: Result) -> str:
    """A line of the table."""
    works = "; ".join(name for name, why in results if why is None)
    wrong = "; ".join(f"{name}: {why}" for name, why in results if why is not None)
    return f"| {file.stem} | {version(file)} | {works} | {wrong.replace('|', '/')} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clients", nargs="*", help="names of files of scripts/served/clients; all by default")
    parser.add_argument("--skip", action="append", default=[], help="a client to leave out; again for more")
    parser.add_argument("--again", action="store_true", help="ask those too that passed")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cutaway-clients"))
    parser.add_argument("--url", help="a server that runs already, with both models, in place of a new one")
    options = parser.parse_args()
    files = {file.stem: file for file in sorted(CLIENTS.iterdir()) if file.is_file()}
    files = {name: file for name, file in files.items() if name not in options.skip}
    if unknown := set(options.clients) - files.keys():
        parser.error(f"there is no client {', '.join(unknown)}: there are {', '.join(files)}")
    chosen = {name: files[name] for name in options.clients or files}
    kept = options.folder / "results"
    kept.mkdir(parents=True, exist_ok=True)
    failed = False
    new = (
        served(str(long_model(options.folder)), "--pooling", "mean")
        if options.url is None
        else nullcontext(options.url)
    )
    with new as url:
        for n, (name, file) in enumerate(chosen.items(), 1):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            result = kept / f"{name}.json"
            before = json.loads(result.read_text()) if result.exists() else {}
            again = options.again or before.get("digest") != digest
            if again or any(why for _, why in before["results"]):
                print(f"{n}/{len(chosen)} {name}", file=sys.stderr, flush=True)
                before = {"digest": digest, "results": asked(file, options.folder, url)}
                result.write_text(json.dumps(before))
            failed = failed or any(why for _, why in before["results"])
    print("| client | version | works | does not |\n|---|---|---|---|")
    for name, file in chosen.items():
        print(row(file, json.loads((kept / f"{name}.json").read_text())["results"]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
