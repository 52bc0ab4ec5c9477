"""`cutaway open`: a model behind its own page, and the page in the browser."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path

from cutaway.commands import console, serve
from cutaway.commands.options import Flag
from cutaway.commands.serve_options import Access, Bounds, Listening, Loading, Operation, Several
from cutaway.errors import UserError


def open(
    model: str = "smollm2",
    /,
    *,
    port: int = 0,
    no_browser: Flag = False,
    loading: Loading = Loading(),
) -> None:
    """Open a model's page in the browser: chat whose every token opens, and what happens inside.

    It is served to this machine alone, on a free port, until Ctrl-C. `cutaway serve` has the same page at the
    root of its address.

    **Examples:**

    cutaway open

    cutaway open my-model.gguf

    cutaway open runs/talk

    cutaway open smollm2 --adapter runs/talk --port 8000

    :param model: A model's name, a .gguf file or a folder; of a folder with training runs the newest model,
        and all of them in the page's Training.
    :param port: The port to listen on; 0 takes a free one.
    :param no_browser: Print the address, and open no browser.
    """
    quiet = Operation(log_level="warning")
    model, runs = _with_runs(model)
    groups = (Listening(port=port), Access(), loading, Several(runs=runs), Bounds(), quiet)
    serve.run((model,), *groups, ready=_print_address if no_browser else _show, plain=True)


def _with_runs(model: str) -> tuple[str, Path | None]:
    """The model to open and the folder of its runs: a run's own folder, or one with runs below it."""
    folder = Path(model)
    if not folder.is_dir():
        return model, None
    from cutaway.weights.load import ADAPTER, CONFIG, RUN

    if (folder / RUN).is_file():
        return model, folder
    if any((folder / name).is_file() for name in (ADAPTER, CONFIG, "config.json")) or [
        *folder.glob("*.gguf")
    ]:
        return model, None
    from cutaway.serve.runs.folder import Runs

    found = Runs(folder).listed()
    with_model = [one["id"] for one in found if one["has_model"]]
    if found and not with_model:
        raise UserError(
            f"{folder}: none of its runs has saved a model yet: open it once a checkpoint is there"
        )
    return (str(folder / with_model[0]), folder) if with_model else (model, None)


def _print_address(address: str) -> None:
    console.note(f"The page is at {address}/ (Ctrl-C stops it)")


def _show(address: str) -> None:
    """Open the browser beside the server, which a browser in the terminal must not hold up."""
    _print_address(address)
    threading.Thread(target=webbrowser.open, args=(f"{address}/",), daemon=True).start()
