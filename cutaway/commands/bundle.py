"""`cutaway bundle`: one file with a model or its digests, an adapter, a template, tools, and documents."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cutaway import bundle as bundles
from cutaway.commands import console, info
from cutaway.commands.chat import DEFAULTS
from cutaway.commands.generate import NOTHING_GIVEN, Sampling
from cutaway.commands.options import Adapter, Flag, Force, Json
from cutaway.errors import UserError
from cutaway.generate.sampling_params import SamplingParams
from cutaway.store.files import check_file
from cutaway.weights import load
from cutaway.weights.checkpoint import Checkpoint


def bundle(
    model: str = "smollm2",
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    adapter: Adapter = None,
    whole: Flag = False,
    chat_template: Path | None = None,
    system: str | None = None,
    tools: str | None = None,
    documents: Path | None = None,
    evaluation: Path | None = None,
    sign: Path | None = None,
    force: Force = False,
    as_json: Json = False,
    sampling: Sampling = NOTHING_GIVEN,
) -> None:
    """Write one file that `cutaway run` opens as you set it up.

    The model is named with the SHA-256 of its files, and fetched where the bundle is run; --whole puts it in.
    The card (README.md in the file) has what was read off the files, and what --evaluation measured.

    **Examples:**

    cutaway bundle smollm2 --adapter runs/talk --system "You are brief." --output talk.cutaway

    cutaway bundle smollm2 --tools search,read --documents ~/notes --output notes.cutaway

    cutaway bundle talk.gguf --whole --evaluation figures.json --sign key.pem --output talk.cutaway

    :param model: A name that others can fetch; with --whole also a file or a folder.
    :param output: The bundle's file.
    :param whole: Put the model's files in.
    :param chat_template: A file with a chat template, in place of the model's own.
    :param system: The system message.
    :param tools: Built-in tools that the model may call, separated by commas.
    :param documents: A folder for the tools search and read, put in with its index.
    :param evaluation: A file with the output of `cutaway eval --json`, for the card.
    :param sign: A private elliptic curve key (PEM): the signature is written beside the bundle.
    """
    check_file(output, force)
    wanted, given = _tools(tools), _sampling(sampling)
    for path in (chat_template, evaluation, sign):
        if path is not None and not path.is_file():
            raise UserError(f"{path}: there is no such file")
    if documents is not None and not documents.is_dir():
        raise UserError(f"{documents}: there is no such folder")
    measured = None if evaluation is None else _read(evaluation)
    path = console.model_path(model)
    if (path / load.ADAPTER).is_file():
        raise UserError(f"{model} is an adapter: name its base, and it by --adapter {model}")
    checkpoint = load.read_checkpoint(path)
    if adapter is not None:
        _check_fits(adapter, checkpoint)
    facts = {name: value for name, value in info.card(model, path, checkpoint).items() if name != "path"}
    about = {
        "adapter": adapter and adapter.name,
        "system message": system,
        "sampling": given or None,
        "tools": ", ".join(wanted),
        "documents": documents and f"the folder {documents.name}",
    }
    made = bundles.write_bundle(
        output,
        model,
        path,
        bundles.card(facts, about, measured),
        whole=whole,
        adapter=adapter,
        template=chat_template,
        documents=documents,
        system=system,
        sampling=given,
        tools=wanted,
        force=force,
    )
    signature = None if sign is None else bundles.sign(output, sign, force)
    size = output.stat().st_size
    if as_json:
        document = {"bundle": output, "bytes": size, "files": made.files, "model_files": made.model_files}
        console.print_json(document | {"signature": signature})
        return
    console.say(f"{output}: {console.size(size)}, {len(made.files)} files. `cutaway run {output}` opens it.")


def _check_fits(adapter: Path, checkpoint: Checkpoint) -> None:
    """UserError for an adapter of another model."""
    from cutaway.weights import adapters

    base = adapters.extended(checkpoint, adapter)
    adapters.joined(base, adapters.read_adapter(adapter, base))


def _tools(names: str | None) -> list[str]:
    """The built-in tools of these names; UserError for one that there is not."""
    from cutaway.agent import built_in_tools

    wanted = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in wanted:
        if name not in built_in_tools.names():
            raise UserError(
                f"a bundle has built-in tools alone, not {name!r}: use {', '.join(built_in_tools.names())}"
            )
    return wanted


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """The options of sampling that are given; UserError for one out of its bounds."""
    SamplingParams(**DEFAULTS | sampling.given())
    given = {each.name: getattr(sampling, each.name) for each in fields(sampling)}
    return {
        name: value for name, value in given.items() if not any(value is none for none in (None, False, ()))
    }


def _read(file: Path) -> dict:
    try:
        return json.loads(console.read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None
