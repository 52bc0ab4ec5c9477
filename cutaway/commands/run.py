"""`cutaway run`: a bundle, opened in chat or behind the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutaway import bundle, store
from cutaway.commands import console
from cutaway.commands.chat import DEFAULTS, chat
from cutaway.commands.chat_tools import ToolOptions
from cutaway.commands.generate import Sampling
from cutaway.commands.options import Flag, Threads
from cutaway.errors import UserError
from cutaway.generate.sampling_params import SamplingParams


def run(
    file: Path,
    /,
    *,
    key: Path | None = None,
    serve: Flag = False,
    port: int = 8000,
    root: Path | None = None,
    yes: Flag = False,
    threads: Threads = None,
) -> None:
    """Talk with the model of a bundle, set up as it says.

    Every file of the bundle is checked against its manifest, and the model against the digests in it. Tools
    ask before each call. With --serve it answers programs: then its adapter and template hold, and clients
    bring system message, sampling and tools.

    **Examples:**

    cutaway run talk.cutaway

    cutaway run talk.cutaway --key public.pem

    cutaway run talk.cutaway --serve --port 8080

    :param file: What `cutaway bundle` wrote.
    :param key: A public key (PEM): the bundle must be signed by its owner.
    :param serve: Serve it instead (`cutaway serve`).
    :param port: The port to serve on.
    :param root: The folder that the tools search and read may see, where the bundle has no documents.
    :param yes: Run calls of tools without asking.
    """
    _check_is_bundle(file)
    if key is not None:
        bundle.verify(file, key)
    elif file.with_name(file.name + bundle.SIGNATURE).is_file():
        console.note(f"{file} has a signature, which was not verified: give its owner's public key by --key.")
    opened = bundle.open(file)
    about = opened.manifest
    model = opened.model or console.model_path(about.model)
    bundle.check_model(about, model)
    template: Any = opened.template
    sampling = _sampling(file, about.sampling)
    if serve:
        from cutaway.commands.serve import serve as serve_model
        from cutaway.commands.serve_options import Listening, Loading

        loading = Loading(
            name=file.stem,
            alias=(about.model,) if about.model not in ("", file.stem) else (),
            adapter=() if opened.adapter is None else (str(opened.adapter),),
            chat_template=template,
            threads=threads,
        )
        serve_model((str(model),), listening=Listening(port=port), loading=loading)
        return
    if console.interactive():
        console.note(f"{file}: {_described(about)}")
    folder = opened.documents or root
    if folder is None and set(about.tools) & set(bundle.OF_DOCUMENTS):
        raise UserError(f"{file} searches a folder of yours: say which by --root")
    tools = ToolOptions(tools=",".join(about.tools) or None, root=folder or Path(), yes=yes)
    chat(
        str(model),
        system=about.system,
        adapter=opened.adapter,
        chat_template=template,
        threads=threads,
        sampling=sampling,
        tools=tools,
    )


def _check_is_bundle(file: Path) -> None:
    """UserError that says what runs a model, where one is named and no bundle."""
    name = str(file)
    is_name = not file.exists() and store.is_name(name)
    if not file.exists() and not is_name and not file.suffix and file.name == name:
        raise UserError(
            f"{file}: there is no such bundle, and no model that is called so: `cutaway chat NAME` talks "
            f"with one ({', '.join(store.NAMES)}; `cutaway models` lists what is in the cache)"
        )
    if is_name or file.is_dir() or file.suffix in store.SUFFIXES:
        raise UserError(
            f"{file} is a model's name or file, and no bundle: `cutaway chat {file}` talks with it, "
            f"`cutaway bundle {file} --output NAME.cutaway` makes a bundle of it"
        )


def _described(about: bundle.Manifest) -> str:
    """What a bundle holds: its model, then what is set up around it."""
    parts = {"an adapter": about.adapter, "a template": about.template, "documents": about.documents}
    parts |= {
        "a system message": about.system is not None,
        f"tools ({', '.join(about.tools)})": bool(about.tools),
    }
    return ", ".join([about.model or "a model of its own", *(part for part, there in parts.items() if there)])


def _sampling(file: Path, given: dict[str, Any]) -> Sampling:
    """The options of sampling that a bundle has. UserError for what are none."""
    try:
        options: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        made = Sampling(**options)
        SamplingParams(**DEFAULTS | made.given())
    except (TypeError, AttributeError, ValueError):
        raise UserError(f"{file}: its options of sampling are not known") from None
    return made
