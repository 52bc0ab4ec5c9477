"""Cutaway's tests, and what checks every signature of the package while they run: jaxtyping and beartype."""

import dataclasses
import functools
import importlib.util
import inspect
import types
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_type_hints

if importlib.util.find_spec("beartype") is not None:
    import jaxtyping
    from beartype import BeartypeConf, beartype
    from jaxtyping import _storage

    _Annotation: Any = type(jaxtyping.AbstractArray)
    _check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))

    def checked(of: Any) -> Any:
        """A function whose arguments and result are checked at each call; a dataclass whose constructor is.

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
        typed, shaped = _typed(of) if early else (None, True)

        @functools.wraps(of)
        def scoped(*args: Any, **kwargs: Any) -> Any:
            nonlocal typed, shaped
            if typed is None:
                typed, shaped = _typed(of)
            if not shaped:
                return typed(*args, **kwargs)
            _storage.push_shape_memo({})
            try:
                return typed(*args, **kwargs)
            finally:
                _storage.pop_shape_memo()

        return scoped

    _written: dict[tuple[Any, ...], tuple[Any, bool]] = {}

    def _typed(of: types.FunctionType) -> tuple[Callable[..., Any], bool]:
        """The function behind beartype's check, and whether a shape is in its signature.

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
        check, shaped = _written[key]
        if "__beartype_func" not in (check.__kwdefaults__ or {}):  # nothing to check
            return of, False
        own = types.FunctionType(check.__code__, check.__globals__, check.__name__, check.__defaults__)
        own.__kwdefaults__ = check.__kwdefaults__ | {"__beartype_func": of}
        return own, shaped

    def _hollow(of: types.FunctionType) -> types.FunctionType:
        """A copy of a closure that holds nothing: a check that is kept would keep models with it."""
        cells = tuple(types.CellType() for _ in of.__closure__ or ())
        copy = types.FunctionType(of.__code__, of.__globals__, of.__name__, of.__defaults__, cells)
        functools.update_wrapper(copy, of)
        copy.__kwdefaults__ = of.__kwdefaults__
        del copy.__wrapped__
        return copy

    def _write(of: types.FunctionType) -> tuple[Any, bool]:
        copy = _with_types(of)
        return _check(copy), any(map(_shaped, copy.__annotations__.values()))

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
