"""`cutaway open`: a model behind its own page, and the page in the browser."""

from __future__ import annotations

import threading
import webbrowser

from cutaway.commands import console, serve
from cutaway.commands.options import Flag
from cutaway.commands.serve_options import Access, Bounds, Listening, Loading, Operation, Several


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

    cutaway open smollm2 --adapter runs/talk --port 8000

    :param model: A model's name, a .gguf file or a folder.
    :param port: The port to listen on; 0 takes a free one.
    :param no_browser: Print the address, and open no browser.
    """
    quiet = Operation(log_level="warning")
    groups = (Listening(port=port), Access(), loading, Several(), Bounds(), quiet)
    serve.run((model,), *groups, ready=_print_address if no_browser else _show)


def _print_address(address: str) -> None:
    console.note(f"The page is at {address}/ (Ctrl-C stops it)")


def _show(address: str) -> None:
    """Open the browser beside the server, which a browser in the terminal must not hold up."""
    _print_address(address)
    threading.Thread(target=webbrowser.open, args=(f"{address}/",), daemon=True).start()
