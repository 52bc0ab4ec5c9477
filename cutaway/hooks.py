"""Looking inside: ``tap`` gives a value a name, ``tracing`` listens. The only file that knows hooks.

    with tracing(model, "blocks.3.attention.pattern") as seen:
        model(ids, pos)
    seen["blocks.3.attention.pattern"]            # [b h t s]

A value's name is the path of the module it appears in and the word it was tapped under; the output of every
module without children is named by its path (``blocks.3.attention.out``). An unwatched forward pass
pays for one test of a global a tap, and nothing else.

A listener may change what it hears: ``edit={"blocks.3.mlp.hidden": lambda value: value * 0}``. Ablation,
patching and steering are that and nothing more.

Traces nest: outer edits come first, inner ones see what they made, and every trace keeps what the model went
on with. A listener hears its own thread alone. Threads may run one model at the same time, traced or not, and
none of them sees or changes a value of another; `lm.edited(edit)` is for edits that any thread may use.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from fnmatch import translate
from typing import TYPE_CHECKING, Any, TypeVar

from cutaway.errors import UserError, quoted

if TYPE_CHECKING:
    from torch import Tensor, nn

Value = TypeVar("Value")
Listener = Callable[["Tensor"], "Tensor | None"]
TAPS = "<taps>"  # given as a name: every tapped value, and attention outputs (``*.attention.out``)
FACTS = "<facts>"  # given as a name: what modules tell about how they compute (``*.attention.path``)


class _Watcher:
    """Names that are kept, names that are edited, and the module in which the forward pass now is."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], edit: Mapping[str, Listener]) -> None:
        self.model, self.names = model, names
        self.keep_taps, self.keep_facts = TAPS in names, FACTS in names
        self.kept = _any_of(names)
        self.edits = [(pattern, _any_of([pattern]), change) for pattern, change in edit.items()]
        self.path: list[str] = []
        self.leaves: dict[nn.Module, str] = {}  # modules whose outputs are kept, and their names
        self.seen: dict[str, Any] = {}
        self.edited: set[str] = set()

    def keeps(self, name: str) -> bool:
        return self.keep_taps or self.kept(name)

    def edits_any(self, name: str) -> bool:
        return any(matches(name) for _, matches, _ in self.edits)

    def wants(self, name: str) -> bool:
        return self.keeps(name) or self.edits_any(name)

    def full(self, name: str) -> str:
        """The name of a value of the module that now runs."""
        return f"{self.path[-1]}.{name}" if self.path[-1] else name

    def changed(self, name: str, value: Any) -> Any:
        for pattern, matches, change in self.edits:
            if matches(name):
                self.edited.add(pattern)
                value = _changed(name, value, change)
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
    changed: Any = change(value)
    if changed is None:
        return value
    was, now = list(value.shape), list(getattr(changed, "shape", ()))
    if was != now:
        what = f"the shape {now}" if hasattr(changed, "shape") else f"a {type(changed).__name__}"
        raise UserError(f"the edit of {name!r} must return the shape {was}, it returned {what}")
    if isinstance(changed, type(value)) and (changed.dtype, changed.device) == (value.dtype, value.device):
        return changed
    import torch

    return torch.as_tensor(changed).to(value)  # float64 and numpy are taken, in the value's type


_watchers: dict[int, tuple[_Watcher, ...]] = {}  # by thread: its open traces, the outermost first
_numbering = threading.Lock()  # torch numbers hooks without a lock: two threads could get the same number


def tap(name: str, value: Value) -> Value:
    """The value itself, or what a listener made of it."""
    if not _watchers or not (here := _here()):
        return value
    for watcher in here:
        value = watcher.changed(watcher.full(name), value)
    for watcher in here:
        if watcher.keeps(full := watcher.full(name)):
            watcher.seen[full] = value
    return value


def tell(name: str, fact: Callable[[], Any]) -> None:
    """Record a fact about the computation that is no value of it, computed only where ``FACTS`` are kept."""
    for watcher in _here() if _watchers else ():
        if watcher.keep_facts:
            watcher.seen[watcher.full(name)] = fact()


def watched(*names: str) -> bool:
    """Whether a listener wants one of these taps of the module that now runs."""
    if not _watchers:
        return False
    return any(watcher.wants(watcher.full(name)) for watcher in _here() for name in names)


def _open() -> tuple[_Watcher, ...]:
    return _watchers.get(threading.get_ident(), ())


def _here() -> list[_Watcher]:
    """This thread's watchers that follow the module that now runs."""
    return [watcher for watcher in _open() if watcher.path]


def listening(model: nn.Module) -> bool:
    """Whether this thread has a trace of the model open."""
    return any(watcher.model is model for watcher in _open())


@contextmanager
def _with(watchers: tuple[_Watcher, ...]) -> Iterator[None]:
    thread, before = threading.get_ident(), _open()
    _watchers[thread] = watchers
    try:
        yield
    finally:
        if before:
            _watchers[thread] = before
        else:
            _watchers.pop(thread, None)


def unheard() -> AbstractContextManager[None]:
    """Forward passes inside are heard and changed by no trace that is open now."""
    return _with(())


class _Stopped(Exception):
    pass


@contextmanager
def stopping(after: nn.Module) -> Iterator[None]:
    """The forward pass inside ends when a module has run, unless an outer trace may want what follows."""

    def stop(*_: Any) -> None:
        raise _Stopped

    try:
        with hooked([] if len(_open()) > 1 else [(after, None, stop)]):
            yield
    except _Stopped:
        for watcher in _open():
            watcher.path.clear()


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
    appears twice keeps its last appearance. Raises UserError if a name or an edit never appeared.
    """
    watcher = _Watcher(model, names or (() if edit else (TAPS,)), edit or {})
    with hooked(_hooks(watcher, model)), _with((*_open(), watcher)):
        yield watcher.seen
    missing = watcher.unheard()
    if missing:
        raise UserError(
            f"nothing named {quoted(missing[0])} appeared in the run; `list(seen)` shows what did"
        )


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
    if leaf and (watcher.kept(path) or (watcher.keep_taps and path.endswith(".out"))):
        watcher.leaves[module] = path
    heard = module in watcher.leaves or (leaf and watcher.edits_any(path))
    taps = not (leaf and type(module).__module__.startswith("torch."))

    def enter(_module: nn.Module, _inputs: Any) -> None:
        if not path:
            # A forward pass that failed halfway never left its modules: a new one starts from the root.
            watcher.path.clear()
        watcher.path.append(path)

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if taps:
            watcher.path.pop()
        if not heard or watcher not in (here := _open()):
            return None
        output = watcher.changed(path, output)
        for one in here:
            if module in one.leaves:
                one.seen[one.leaves[module]] = output
        return output

    return enter if taps else None, leave if taps or heard else None
