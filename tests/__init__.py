"""Cutaway's tests, and what checks every signature of the package while they run: jaxtyping and beartype."""

import collections.abc
import dataclasses
import functools
import importlib.util
import inspect
import threading
import types
from collections.abc import Callable
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

if importlib.util.find_spec("beartype") is not None:
    import jaxtyping
    from beartype import BeartypeConf, beartype
    from jaxtyping import _storage

    _Annotation: Any = type(jaxtyping.AbstractArray)
    _check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))

    def checked(of: Any) -> Any:
        """A function whose arguments and result are checked; a dataclass whose constructor's are.

        One letter is one size in a call (`b h t k`). jaxtyping's own wrapper binds the signature and checks
        the arguments twice a call, which took two thirds of the suite's time; this one opens the same scope
        of letters around beartype's check.
        """
        if inspect.isclass(of):
            if dataclasses.is_dataclass(of):
                setattr(of, "__init__", checked(of.__init__))  # noqa: B010
            return of
        if not of.__annotations__:  # nothing to check
            return of
        if inspect.iscoroutinefunction(of) or inspect.isasyncgenfunction(of):
            return _check(_with_types(of))
        # Checks are written at the first call, for most functions are never called in a process; but the
        # constraints of a TypeVar are read while their module is imported.
        names = [each for each in of.__annotations__.values() if isinstance(each, str)]
        early = any(isinstance(of.__globals__.get(name), TypeVar) for name in names)
        typed, how = _typed(of) if early else (None, None)

        @functools.wraps(of)
        def scoped(*args: Any, **kwargs: Any) -> Any:
            nonlocal typed, how
            if how is None:
                typed, how = _typed(of)
            fitting = how.fitting
            if fitting is None:
                return how.call(typed, args, kwargs)
            key = (*map(_kind, args[how.first :]), *kwargs, *map(_kind, kwargs.values()))
            results = fitting.get(key)
            if results is None:  # these kinds of arguments are new
                result = how.call(typed, args, kwargs)
                if len(fitting) > 1000:
                    fitting.clear()
                fitting[key] = {_kind(result)}
                return result
            result = of(*args, **kwargs)
            if (kind := _kind(result)) not in results:
                how.check_result(args, kwargs, result)
                results.add(kind)
            return result

        return scoped

    class _How:
        """How the calls of one definition are checked.

        ``fitting``: kinds of arguments that fit, each with the kinds of results that do; None where more
        than the kinds of values decides. A call of kinds that fitted before is not checked again.
        """

        def __init__(self, copy: types.FunctionType) -> None:
            self.copy = copy
            self.shaped = any(map(_shaped, copy.__annotations__.values()))
            by_kind = all(map(_by_kind, copy.__annotations__.values()))
            self.fitting: dict[Any, set[Any]] | None = {} if by_kind else None
            first = copy.__code__.co_varnames[:1] if copy.__code__.co_argcount else ()
            self.first = int(bool(first) and first[0] not in copy.__annotations__)  # self
            self.result: Any = None

        def call(self, typed: Any, args: Any, kwargs: Any) -> Any:
            """One letter is one size in it."""
            if not self.shaped:
                return typed(*args, **kwargs)
            _storage.push_shape_memo({})
            try:
                return typed(*args, **kwargs)
            finally:
                _storage.pop_shape_memo()

        def check_result(self, args: Any, kwargs: Any, result: Any) -> None:
            """Raise unless the result fits the arguments: a function of the same signature returns it."""
            if self.result is None:
                bare = inspect.Signature(
                    parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty)
                    for parameter in inspect.signature(self.copy).parameters.values()
                )
                made: dict[str, Any] = {"_given": _given}  # no parameter of the package has this name
                exec(f"def returned{bare}: return _given.result", made)
                returned = made["returned"]
                returned.__defaults__, returned.__kwdefaults__ = (
                    self.copy.__defaults__,
                    self.copy.__kwdefaults__,
                )
                returned.__annotations__ = self.copy.__annotations__
                returned.__qualname__, returned.__module__ = self.copy.__qualname__, self.copy.__module__
                self.result = _check(returned)
            _given.result = result
            try:
                self.call(self.result, args, kwargs)
            finally:
                del _given.result

    _given = threading.local()
    # 1: arrays, 2: tuples, 3: classes, 4: what has an array's properties in Python, 0: all else
    _sorts: dict[type, int] = {}

    def _kind(value: Any) -> Any:
        """All of a value that decides whether it fits a hint of `_by_kind`."""
        sort = _sorts.get(type(value))
        if sort is None:
            own = type(value)
            array = hasattr(own, "shape") and hasattr(own, "dtype")
            if array:
                sort = 1 if own.__module__.partition(".")[0] in ("torch", "numpy") else 4
            else:
                sort = 2 if issubclass(own, tuple) else 3 if issubclass(own, type) else 0
            _sorts[own] = sort
        if sort == 1:
            return type(value), value.dtype, value.shape
        if sort == 2 and len(value) <= 8:
            return (type(value), *map(_kind, value))
        if sort == 4:
            return object()  # checked each time
        return value if sort == 3 else type(value)

    def _by_kind(hint: Any) -> bool:
        """Whether a value's type, and an array's dtype and shape, decide whether it fits."""
        if hint is None or hint is Any or isinstance(hint, _Annotation):
            return True
        if isinstance(hint, TypeVar):
            return all(map(_by_kind, (*hint.__constraints__, hint.__bound__)))
        origin = get_origin(hint)
        if origin is None:
            return isinstance(hint, type)
        if origin in (tuple, Union, types.UnionType):  # tuple[int, ...] is not: an ellipsis is not a type
            return all(map(_by_kind, get_args(hint)))
        return origin in (type, collections.abc.Callable, collections.abc.Iterator, collections.abc.Generator)

    _written: dict[tuple[Any, ...], tuple[Any, _How]] = {}

    def _typed(of: types.FunctionType) -> tuple[Callable[..., Any], _How]:
        """The function behind beartype's check, and how its calls are checked.

        The check is written once for all closures of one definition.
        """
        hints = of.__annotations__
        if "<locals>" not in of.__qualname__ or not all(
            isinstance(hint, str | type) for hint in hints.values()
        ):
            return _write(of)
        key = (of.__code__, *hints, *map(_spelt, hints.values()))
        if key not in _written:
            _written[key] = _write(_hollow(of))
        check, how = _written[key]
        if "__beartype_func" not in (check.__kwdefaults__ or {}):  # nothing to check
            return of, how
        own = types.FunctionType(check.__code__, check.__globals__, check.__name__, check.__defaults__)
        own.__kwdefaults__ = check.__kwdefaults__ | {"__beartype_func": of}
        return own, how

    def _hollow(of: types.FunctionType) -> types.FunctionType:
        """A copy of a closure that holds nothing: a check that is kept would keep models with it."""
        cells = tuple(types.CellType() for _ in of.__closure__ or ())
        copy = types.FunctionType(of.__code__, of.__globals__, of.__name__, of.__defaults__, cells)
        functools.update_wrapper(copy, of)
        copy.__kwdefaults__ = of.__kwdefaults__
        del copy.__wrapped__
        return copy

    def _write(of: types.FunctionType) -> tuple[Any, _How]:
        copy = _with_types(of)
        return _check(copy), _How(copy)

    def _shaped(hint: Any) -> bool:
        if isinstance(hint, TypeVar):
            return any(map(_shaped, (*hint.__constraints__, hint.__bound__)))
        return isinstance(hint, _Annotation) or any(map(_shaped, get_args(hint)))

    def _spelt(hint: Any) -> Any:
        """An annotation as a key: jaxtyping makes a new type each time that one is evaluated."""
        return (hint.dtype, hint.array_type, hint.dim_str) if isinstance(hint, _Annotation) else hint

    def _with_types(of: types.FunctionType) -> types.FunctionType:
        """A copy whose annotations are types; what cannot be read (imported for typing alone) is Any."""
        copy = types.FunctionType(of.__code__, of.__globals__, of.__name__, of.__defaults__, of.__closure__)
        copy.__kwdefaults__, copy.__qualname__, copy.__module__ = (
            of.__kwdefaults__,
            of.__qualname__,
            of.__module__,
        )
        copy.__annotations__ = {name: _type(each, of) for name, each in of.__annotations__.items()}
        return copy

    def _type(annotation: Any, of: types.FunctionType) -> Any:
        holder: Callable[..., Any] = types.SimpleNamespace(__annotations__={"value": annotation})  # type: ignore
        try:
            return get_type_hints(holder, of.__globals__, include_extras=True)["value"]
        except Exception:
            return Any

    def _jaxtyped(of: Any = None, *, typechecker: Any = None) -> Any:
        return checked if of is None else checked(of)

    jaxtyping.jaxtyped = _jaxtyped  # what the import hook (conftest.py) decorates with

    _whole_check = _Annotation.__instancecheck__
    _known: set[tuple[Any, ...]] = set()  # of an annotation and a value: kinds of number and array that fit

    def _fits(annotation: Any, value: Any) -> bool:
        """jaxtyping's check of an array; whether its type and dtype fit an annotation is worked out once."""
        seen = (annotation.dtype, annotation.array_type, type(value), getattr(value, "dtype", None))
        if seen not in _known:
            fits = _whole_check(annotation, value)
            if fits:
                _known.add(seen)
            return fits
        sizes, leading, trees, arguments = _storage.get_shape_memo()
        before = dict(sizes), dict(leading)
        fits = annotation._check_shape(value, sizes, leading, arguments) == ""
        if not fits:  # another annotation of a union may
            _storage.set_shape_memo(*before, trees, arguments)
        return fits

    _Annotation.__instancecheck__ = _fits
