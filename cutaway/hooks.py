"""Looking inside: ``tap`` gives a value a name, ``tracing`` listens. The only file that knows hooks.

    with tracing(model, "blocks.3.attention.pattern") as seen:
        model(ids, pos)
    seen["blocks.3.attention.pattern"]            # [b h t s]

A value's name is the path of the module it appears in and the word it was tapped under; the output of every
module without children is named by its path (``blocks.3.attention.out``). An unwatched forward pass
pays for one test of a global a tap, and nothing else.

A listener may change what it hears: ``edit={"blocks.3.mlp.hidden": lambda value: value * 0}``. Ablation,
patching and steering are that and nothing more.

A listener hears its own thread alone. Threads may run one model at the same time, traced or not, and none of
them sees or changes a value of another.
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
TAPS = "<taps>"  # given as a name: every tapped value, and attention outputs (``*.attention.out``)
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
        raise UserError(f"the edit of {name!r} must return the shape {was}, it returned {now}")
    return changed


_watchers: dict[int, _Watcher] = {}  # by thread: each has one trace open at most
_numbering = threading.Lock()  # torch numbers hooks without a lock: two threads could get the same number


def tap(name: str, value: Value) -> Value:
    """The value itself, or what a listener made of it."""
    if not _watchers or (watcher := _here()) is None:
        return value
    return watcher.hear(_full(watcher.path[-1], name), value)


def tell(name: str, fact: Callable[[], Any]) -> None:
    """Record a fact about the computation that is no value of it, computed only where ``FACTS`` are kept."""
    if _watchers and (watcher := _here()) is not None and watcher.keep_facts:
        watcher.seen[_full(watcher.path[-1], name)] = fact()


def watched(*names: str) -> bool:
    """Whether a listener wants one of these taps of the module that now runs."""
    if not _watchers or (watcher := _here()) is None:
        return False
    return any(watcher.wants(_full(watcher.path[-1], name)) for name in names)


def _here() -> _Watcher | None:
    """This thread's watcher, if a module that it follows now runs."""
    watcher = _watchers.get(threading.get_ident())
    return watcher if watcher is not None and watcher.path else None


def _full(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


Before = Callable[["nn.Module", tuple[Any, ...]], None]
After = Callable[["nn.Module", tuple[Any, ...], Any], Any]


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Before | None, After | None]]) -> Iterator[None]:
    """Calls ``before(module, inputs)`` and ``after(module, inputs, output)`` in this thread's passes."""
    thread, handles = threading.get_ident(), []

    def own(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: hook(*arguments) if threading.get_ident() == thread else None

    try:
        for module, before, after in hooks:
            with _numbering:
                if before is not None:
                    handles.append(module.register_forward_pre_hook(own(before)))
                if after is not None:
                    handles.append(module.register_forward_hook(own(after)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def tracing(
    model: nn.Module, *names: str, edit: Mapping[str, Listener] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Listens to a model's values by name while the block runs. A name may hold wildcards (``*.pattern``).

    Without names ``TAPS`` are kept, unless there is an ``edit``, in which case only the edits act; ``*`` also
    keeps every other layer's output. Yields the dictionary that fills as the model runs; a value that
    appears twice keeps its last appearance. Raises UserError if this thread has a trace open already, or if a
    name or an edit never appeared.
    """
    thread = threading.get_ident()
    if thread in _watchers:
        raise UserError("a trace is already open: close it first, or give this one's names and edits to it")
    watcher = _Watcher(names or (() if edit else (TAPS,)), edit or {})
    with hooked(_hooks(watcher, model)):
        _watchers[thread] = watcher
        try:
            yield watcher.seen
        finally:
            del _watchers[thread]
    unheard = watcher.unheard()
    if unheard:
        raise UserError(f"nothing named {unheard[0]!r} appeared in the run; `list(seen)` shows what did")


def _hooks(watcher: _Watcher, model: nn.Module) -> Iterator[tuple[nn.Module, Before | None, After | None]]:
    for path, module in model.named_modules():
        before, after = _hook(watcher, path, module)
        if before is not None or after is not None:
            yield module, before, after


def _hook(watcher: _Watcher, path: str, module: nn.Module) -> tuple[Before | None, After | None]:
    """Hooks where something can be heard: on modules that may tap, and on wanted leaves.

    torch's own leaves never tap, so an unwanted one runs untouched.
    """
    leaf = next(module.children(), None) is None
    heard = leaf and (
        path.endswith(".out") or watcher.edits_any(path) if watcher.keep_taps else watcher.wants(path)
    )
    taps = not (leaf and type(module).__module__.startswith("torch."))

    def enter(_module: nn.Module, _inputs: Any) -> None:
        if not path:
            # A forward pass that failed halfway never left its modules: a new one starts from the root.
            watcher.path.clear()
        watcher.path.append(path)

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if taps:
            watcher.path.pop()
        return watcher.hear(path, output) if heard else None

    return enter if taps else None, leave if taps or heard else None
