"""Checks definitions of plugin authors against what rlcore calls, and names the file and line that is off.

pluggy checks the argument names of a hook; here also whether it is async, what it says that it returns, and
whether the object that a factory made can do the work of its Protocol.
"""

import inspect
from collections.abc import Callable
from typing import Any

ABSENT = inspect.Signature.empty


def location(function: Callable[..., Any]) -> str:
    """FILE:LINE of a function's definition."""
    code = getattr(_definition(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def annotation(function: Callable[..., Any], name: str) -> Any:
    """A parameter's annotation (or that of "return"), with a text evaluated where the function was defined.

    Returns ABSENT where there is none, and the text itself where a name in it exists for type checkers only.
    """
    noted = getattr(function, "__annotations__", {}).get(name, ABSENT)
    if not isinstance(noted, str):
        return noted
    try:
        return eval(noted, _definition(function).__globals__)
    except Exception:
        return noted


def hook_defects(function: Callable[..., Any], spec: Callable[..., Any], result: type) -> list[str]:
    """What keeps a hook implementation from being called as its specification says."""
    defects = []
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        defects.append(
            f"it must be a plain function that returns the {result.__name__}, not async or a generator"
        )
    wanted = list(inspect.signature(spec).parameters)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            defects.append(f"it must name its argument ({', '.join(wanted)}) instead of *{parameter.name}")
        elif parameter.name not in wanted:
            defects.append(f"it takes {parameter.name!r}; the hook gives {', '.join(wanted)}")
    promised = annotation(function, "return")
    promised = type(None) if promised is None else promised
    if isinstance(promised, type) and promised is not ABSENT:
        broken = type_defects(promised, result)
        defects += [f"its return annotation is {promised.__name__}: {defect}" for defect in broken]
    return defects


def type_defects(found: type, wanted: type) -> list[str]:
    """Why instances of `found` cannot be `wanted`: a class to derive from, or a Protocol's methods."""
    if not getattr(wanted, "_is_protocol", False):
        return [] if issubclass(found, wanted) else [f"not a {wanted.__name__}"]
    return [
        defect
        for name, method in vars(wanted).items()
        if inspect.isfunction(method) and not name.startswith("_")
        for defect in _method_defects(getattr(found, name, None), method, wanted)
    ]


def object_defects(found: object, wanted: type) -> list[str]:
    """Why an object that a factory returned cannot do the work of `wanted`."""
    defects = type_defects(type(found), wanted)
    if getattr(wanted, "_is_protocol", False):
        fields = getattr(wanted, "__annotations__", {})
        defects += [f"it has no attribute {name!r}" for name in fields if not hasattr(found, name)]
    return defects


def _method_defects(method: Any, wanted: Callable[..., Any], protocol: type) -> list[str]:
    parameters = ", ".join(list(inspect.signature(wanted).parameters)[1:])
    if method is None:
        return [f"a {protocol.__name__} needs a method {wanted.__name__}({parameters})"]
    if inspect.iscoroutinefunction(method) != inspect.iscoroutinefunction(wanted):
        must = "must" if inspect.iscoroutinefunction(wanted) else "must not"
        return [f"{wanted.__name__} {must} be async ({location(method)})"]
    try:
        inspect.signature(method).bind(*inspect.signature(wanted).parameters)
    except TypeError:
        return [f"{wanted.__name__} must take ({parameters}) ({location(method)})"]
    return []


def _definition(function: Callable[..., Any]) -> Any:
    """What the author wrote: the function behind a decorator's factory (`rlcore.plugin`) or a wrapper."""
    return inspect.unwrap(getattr(function, "rlcore_definition", function))
