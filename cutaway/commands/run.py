"""`cutaway run`: a bundle, opened in chat or behind the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutaway import bundle
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

        adapter = () if opened.adapter is None else (f"{file.stem}={opened.adapter}",)
        loading = Loading(adapter=adapter, chat_template=template, threads=threads)
        serve_model((str(model),), listening=Listening(port=port), loading=loading)
        return
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


def _sampling(file: Path, given: dict[str, Any]) -> Sampling:
    """The options of sampling that a bundle has. UserError for what are none."""
    try:
        options: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        made = Sampling(**options)
        SamplingParams(**DEFAULTS | made.given())
    except (TypeError, AttributeError, ValueError):
        raise UserError(f"{file}: its options of sampling are not known") from None
    return made
