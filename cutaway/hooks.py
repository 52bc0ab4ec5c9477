"""Looking inside: ``tap`` gives a value a name, ``tracing`` listens to the names. The only file that knows
hooks.

    with tracing(model, "blocks.3.attention.pattern") as seen:
        model(ids, pos)
    seen["blocks.3.attention.pattern"]            # [b h t s]

A value's name is the path of the module it appears in and the word it was tapped under; the output of every
module without children is named by its path (``blocks.3.attention.out``). A forward pass that nobody watches
pays for one test of a global a tap, and nothing else.

A listener may change what it hears: ``edit={"blocks.3.mlp.hidden": lambda value: value * 0}``. Ablation,
patching and steering are that and nothing more.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import translate
from typing import TYPE_CHECKING, Any, TypeVar

from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

Value = TypeVar("Value")
Listener = Callable[["Tensor"], "Tensor | None"]
TAPS = "<taps>"  # given as a name: every tapped value, and what attention said (``*.attention.out``)
FACTS = "<facts>"  # given as a name: what modules tell about how they compute (``*.attention.path``)


class _Watcher:
    """Which names are kept, which are edited, and in which module the forward pass now is."""

    def __init__(self, names: tuple[str, ...], edit: Mapping[str, Listener]) -> None:
        self.names = names
        self.keep_taps, self.keep_facts = TAPS in names, FACTS in names
        self.kept = _any_of(names)
        self.edits = [(pattern, _any_of([pattern]), change) for pattern, change in edit.items()]
        self.path: list[str] = []
        self.seen: dict[str, Any] = {}
        self.edited: set[str] = set()
        self.thread = threading.get_ident()

    @property
    def here(self) -> bool:
        """Whether this is the thread that watches: another may run the same model meanwhile, unseen."""
        return self.thread == threading.get_ident()

    def keeps(self, name: str) -> bool:
        return self.keep_taps or self.kept(name)

    def edits_any(self, name: str) -> bool:
        return any(matches(name) for _, matches, _ in self.edits)

    def wants(self, name: str) -> bool:
        return self.keeps(name) or self.edits_any(name)

    def hear(self, name: str, value: Any) -> Any:
        for pattern, matches, change in self.edits:
            if matches(name):
                self.edited.add(pattern)
                value = _changed(name, value, change)
        if self.keeps(name):
            self.seen[name] = value
        return value

    def unheard(self) -> list[str]:
        """The names and edits that matched nothing."""
        asked = [name for name in self.names if name not in (TAPS, FACTS)]
        names = [name for name in asked if not any(map(_any_of([name]), self.seen))]
        return names + [pattern for pattern, _, _ in self.edits if pattern not in self.edited]


def _any_of(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name fits one of these patterns, as one compiled expression."""
    match = re.compile("|".join(map(translate, patterns)) or r"(?!)").match
    return lambda name: match(name) is not None


def _changed(name: str, value: Any, change: Listener) -> Any:
    changed = change(value)
    if changed is None:
        return value
    if changed.shape != value.shape:
        was, now = list(value.shape), list(changed.shape)
        raise UserError(
            f"the edit of {name!r} must return the shape {was} that it was given, it returned {now}"
        )
    return changed


_watcher: _Watcher | None = None
_turn = threading.Lock()  # one trace at a time: held from its beginning to its end


def tap(name: str, value: Value) -> Value:
    """The value itself, or what a listener made of it."""
    if _watcher is None or not _watcher.path or not _watcher.here:
        return value
    return _watcher.hear(_full(_watcher.path[-1], name), value)


def tell(name: str, fact: Callable[[], Any]) -> None:
    """Something about the computation that is no value of it: found out for who asks for ``FACTS`` alone."""
    if _watcher is None or not _watcher.path or not _watcher.here or not _watcher.keep_facts:
        return
    _watcher.seen[_full(_watcher.path[-1], name)] = fact()


def watched(*names: str) -> bool:
    """Whether anyone listens to one of these taps of the module that now runs."""
    if _watcher is None or not _watcher.path or not _watcher.here:
        return False
    return any(_watcher.wants(_full(_watcher.path[-1], name)) for name in names)


def _full(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@contextmanager
def tracing(
    model: nn.Module, *names: str, edit: Mapping[str, Listener] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Listens to a model's values by name while the block runs. A name may hold wildcards (``*.pattern``).

    Without names ``TAPS`` are kept, unless there is an ``edit``, in which case only the edits act; ``*`` also
    keeps what every other layer said. Yields the dictionary that fills as the model runs; a value that
    appears twice keeps its last appearance. Traces of several threads wait for one another. Raises
    UserError if this thread has one open already, or if a name or an edit never appeared.
    """
    global _watcher
    if (open := _watcher) is not None and open.here:
        raise UserError("a trace is already open: close it first, or give this one's names and edits to it")
    with _turn:
        watcher = _Watcher(names or (() if edit else (TAPS,)), edit or {})
        handles = [hook for path, module in model.named_modules() for hook in _hook(watcher, path, module)]
        _watcher = watcher
        try:
            yield watcher.seen
        finally:
            _watcher = None
            for handle in handles:
                handle.remove()
    unheard = watcher.unheard()
    if unheard:
        raise UserError(
            f"nothing named {unheard[0]!r} appeared while the model ran; `list(seen)` shows what did"
        )


def _hook(watcher: _Watcher, path: str, module: nn.Module) -> Iterator[Any]:
    """Hooks where something can be heard: a module that may tap says where it is, a wanted leaf says what it
    made.

    torch's own leaves never tap, so an unwanted one runs untouched.
    """
    leaf = next(module.children(), None) is None
    heard = leaf and (
        path.endswith(".out") or watcher.edits_any(path) if watcher.keep_taps else watcher.wants(path)
    )
    taps = not (leaf and type(module).__module__.startswith("torch."))

    def enter(_module: nn.Module, _inputs: Any) -> None:
        if not watcher.here:
            return
        if not path:
            # A forward pass that failed halfway never left its modules: a new one starts from the root.
            watcher.path.clear()
        watcher.path.append(path)

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not watcher.here:
            return None
        if taps:
            watcher.path.pop()
        return watcher.hear(path, output) if heard else None

    if taps:
        yield module.register_forward_pre_hook(enter)
    if taps or heard:
        yield module.register_forward_hook(leave)
