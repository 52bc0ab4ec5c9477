"""Looking inside: ``tap`` gives a value a name, ``tracing`` listens to the names. The only file that knows hooks.

    with tracing(model, "blocks.3.attention.pattern") as seen:
        model(ids, pos)
    seen["blocks.3.attention.pattern"]            # [b h t s]

A value's name is the path of the module it appears in and the word it was tapped under; the output of every module
without children is named by its path (``blocks.3.attention.out``). A forward pass that nobody watches pays for one test
of a global a tap, and nothing else.

A listener may change what it hears: ``edit={"blocks.3.mlp.hidden": lambda value: value * 0}``. Ablation, patching and
steering are that and nothing more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

from cutaway.errors import Refused

if TYPE_CHECKING:
    from torch import Tensor, nn

Value = TypeVar("Value")
Edit = Callable[["Tensor"], "Tensor | None"]


class _Watcher:
    """Which names are wanted, which are edited, and in which module the forward pass now is."""

    def __init__(self, names: tuple[str, ...], edit: Mapping[str, Edit]) -> None:
        self.names = names
        self.edit = dict(edit)
        self.path: list[str] = []
        self.seen: dict[str, Any] = {}
        self.edited: set[str] = set()
        self.thread = threading.get_ident()

    def wants(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in (*self.names, *self.edit))

    def hear(self, name: str, value: Any) -> Any:
        for pattern, change in self.edit.items():
            if fnmatchcase(name, pattern):
                self.edited.add(pattern)
                changed = change(value)
                value = value if changed is None else changed
        if any(fnmatchcase(name, pattern) for pattern in self.names):
            self.seen[name] = value
        return value


_watcher: _Watcher | None = None


def tap(name: str, value: Value) -> Value:
    """The value itself, or what a listener made of it."""
    if _watcher is None or not _watcher.path or _watcher.thread != threading.get_ident():
        return value
    return _watcher.hear(".".join(filter(None, (_watcher.path[-1], name))), value)


def watched(*names: str) -> bool:
    """Whether anyone listens to one of these taps of the module that now runs."""
    if _watcher is None or not _watcher.path or _watcher.thread != threading.get_ident():
        return False
    return any(_watcher.wants(f"{_watcher.path[-1]}.{name}") for name in names)


@contextmanager
def tracing(
    model: nn.Module, *names: str, edit: Mapping[str, Edit] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Listens to a model's values by name while the block runs. A name may hold wildcards (``*.pattern``).

    Without names every value is kept, unless there is an ``edit``, in which case only the edits act. Yields the
    dictionary that fills as the model runs; a value that appears twice keeps its last appearance.
    Raises Refused if a trace is already open, or if an edit's name never appeared.
    """
    global _watcher
    if _watcher is not None:
        raise Refused("a trace is already open: close it first, or give this one's names and edits to it")
    watcher = _Watcher(names or (() if edit else ("*",)), edit or {})
    handles = [handle for path, module in model.named_modules() for handle in _hook(watcher, path, module)]
    _watcher = watcher
    try:
        yield watcher.seen
    finally:
        _watcher = None
        for handle in handles:
            handle.remove()
    silent = sorted(set(watcher.edit) - watcher.edited)
    if silent:
        raise Refused(f"nothing named {silent[0]!r} appeared while the model ran: `list(seen)` shows the names")


def _hook(watcher: _Watcher, path: str, module: nn.Module) -> Iterator[Any]:
    leaf = not any(True for _ in module.children()) and type(module).__name__ != "Identity"

    def enter(_module: nn.Module, _inputs: Any) -> None:
        watcher.path.append(path)

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        watcher.path.pop()
        return watcher.hear(path, output) if leaf else None

    yield module.register_forward_pre_hook(enter)
    yield module.register_forward_hook(leave)
