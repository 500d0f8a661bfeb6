"""Configured objects as plain data and back: `{"class_path": ..., "init_args": {...}}`, as in a recipe.

Everything a recipe selects (modalities, heads, distributions, backbones) is a frozen dataclass, so one function serves
them all. Fields declared with `repr=False` hold what was learned from data; a bundle keeps those as files.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from inspect import isabstract
from typing import Any, TypeVar

from armm.errors import InputError, nearest

T = TypeVar("T")


def to_spec(value: Any) -> Any:
    """A configured object, and what it is made of, as JSON-able data."""
    if is_dataclass(value) and not isinstance(value, type):
        arguments = {f.name: to_spec(getattr(value, f.name)) for f in fields(value) if f.init and f.repr}
        return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": arguments}
    if isinstance(value, list | tuple):
        return [to_spec(item) for item in value]
    if isinstance(value, dict):
        return {key: to_spec(item) for key, item in value.items()}
    assert value is None or isinstance(value, bool | int | float | str), f"{value!r} cannot stand in a recipe"
    return value


def import_class(path: str, kind: type[T]) -> type[T]:
    """The class at `package.module.Class`.

    Raises InputError: there is no such module or class, or it is not a `kind`.
    """
    module_name, _, name = path.rpartition(".")
    if not all(path.split(".")) or not module_name:
        raise InputError(f"{path!r} is not a class path; write it as package.module.Class")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise InputError(f"class path {path!r}: {error}; install the package or mend the path") from error
    found = getattr(module, name, None)
    if found is None:
        raise InputError(f"class path {path!r}: {module_name} has no {name!r}{nearest(name, vars(module))}")
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise InputError(f"class path {path!r}: {name} is not a {kind.__name__}")
    return found


def from_spec(spec: Any, kind: type[T]) -> T:
    """The object that `to_spec` described.

    Raises InputError: it is not a spec of a `kind`, or an argument is unknown.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise InputError(f"expected a class_path and init_args for a {kind.__name__}, found {str(spec)[:80]!r}")
    found = import_class(spec["class_path"], kind)
    if isabstract(found):
        raise InputError(f"{spec['class_path']} is abstract; name a class that derives from it")
    given = spec.get("init_args") or {}
    if not is_dataclass(found) or not isinstance(given, dict):
        raise InputError(
            f"{spec['class_path']} with {str(given)[:80]!r}: expected a dataclass and its init_args by name"
        )
    arguments = {}
    known = {f.name for f in fields(found) if f.init}
    for key, value in given.items():
        if key not in known:
            raise InputError(f"{spec['class_path']} takes no {key!r}{nearest(key, known)}")
        arguments[key] = _from_plain(value)
    needed = {f.name for f in fields(found) if f.init and f.default is MISSING and f.default_factory is MISSING}
    if needed - arguments.keys():
        missing = ", ".join(sorted(needed - arguments.keys()))
        raise InputError(f"{spec['class_path']} cannot be made: it needs {missing} in its init_args")
    try:
        return found(**arguments)
    except TypeError as error:  # an argument is missing, or of another kind
        raise InputError(f"{spec['class_path']} cannot be made from {str(given)[:80]}: {error}") from error


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict) and "class_path" in value:
        return from_spec(value, object)
    if isinstance(value, dict):
        return {key: _from_plain(item) for key, item in value.items()}
    return tuple(_from_plain(item) for item in value) if isinstance(value, list) else value
