"""Cutaway's tests, and what checks every signature of the package while they run: jaxtyping and beartype."""

import dataclasses
import functools
import importlib.util
import inspect
import types
from collections.abc import Callable
from typing import Any, get_type_hints

if importlib.util.find_spec("beartype") is not None:
    import jaxtyping
    from beartype import BeartypeConf, beartype
    from jaxtyping import _storage

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
        typed = _check(_with_types(of))
        if not hasattr(typed, "__wrapped__"):  # nothing to check
            return of
        if inspect.iscoroutinefunction(of) or inspect.isasyncgenfunction(of):
            return typed

        @functools.wraps(of)
        def scoped(*args: Any, **kwargs: Any) -> Any:
            _storage.push_shape_memo({})
            try:
                return typed(*args, **kwargs)
            finally:
                _storage.pop_shape_memo()

        return scoped

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
