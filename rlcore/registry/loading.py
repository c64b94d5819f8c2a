"""Loads one plugin: imports its entry point, lets pluggy verify it, and checks what pluggy does not.

Each plugin gets a PluginManager of its own, so that one that is broken spoils no other.
"""

import importlib.metadata
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy
from pydantic import BaseModel

from rlcore import hookspecs
from rlcore.errors import RlcoreError, fail
from rlcore.registry import options, signatures
from rlcore.registry.kinds import KINDS, Kind
from rlcore.registry.requirements import install_command

if TYPE_CHECKING:
    from rlcore.registry.candidate import Candidate


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin: its options model, and the factory behind its hook."""

    candidate: "Candidate"
    options_model: type[BaseModel]
    hook: pluggy.HookCaller

    def parse_options(self, mapping: Mapping[str, Any], place: str) -> BaseModel:
        """Check options; raises RlcoreError with all problems, each at `place.KEY`."""
        return options.parse(self.options_model, mapping, place)

    def create(self, argument: object) -> Any:
        """Call the factory with its one argument and return what it made.

        The argument is the options object, the model's spec, or for `model_spec` the checkpoint's config.
        Raises RlcoreError if the factory raises or what it returns cannot do the work.
        """
        kind = KINDS[self.candidate.kind]
        (parameter,) = inspect.signature(getattr(hookspecs, kind.name)).parameters
        try:
            made = self.hook(**{parameter: argument})
        except RlcoreError:
            raise
        except Exception as error:
            raise fail(
                self.candidate.place, f"its factory failed: {describe(error)}", _remedy(error)
            ) from error
        if defects := signatures.object_defects(made, _result(kind)):
            message = f"its factory returned {made!r}, which is no {kind.result_name}: {'; '.join(defects)}"
            raise fail(self.candidate.place, message)
        return made


def load(candidate: "Candidate") -> Plugin:
    """Import a plugin and verify its hook; raises RlcoreError naming distribution, entry point and cause."""
    kind = KINDS[candidate.kind]
    if not kind.result:
        raise fail(candidate.place, "resources are read by path, not loaded", "Catalog.resources()")
    implementation = _import(candidate)
    manager = pluggy.PluginManager("rlcore")
    manager.add_hookspecs(hookspecs)
    factory = _factory(manager, implementation, kind.name)
    if factory is None:
        message = f"is broken: it holds no implementation of the hook {kind.name}"
        remedy = f"mark its factory with @hookimpl, or a plain function with @{kind.name}, from rlcore.plugin"
        raise fail(candidate.place, message, remedy)
    _check(candidate, kind, factory)
    try:
        manager.register(implementation, name=f"{candidate.dist}:{candidate.name}")
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise fail(candidate.place, f"is broken: {' '.join(str(error).split())}") from error
    return Plugin(candidate, _options_model(candidate, factory), getattr(manager.hook, kind.name))


def describe(error: BaseException) -> str:
    """An exception in one line: type, message and the plugin's own line that raised it."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _import(candidate: "Candidate") -> Any:
    """Import what the entry point names. A plugin may raise anything at all, or call sys.exit."""
    group = KINDS[candidate.kind].group
    try:
        return importlib.metadata.EntryPoint(candidate.name, candidate.value, group).load()
    except (Exception, SystemExit) as error:
        remedy = _remedy(error) or f"mend it, or pip uninstall {candidate.dist}"
        raise fail(candidate.place, f"is broken: {describe(error)}", remedy) from error


def _remedy(error: BaseException) -> str:
    """The pip command for a module that is missing."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return install_command(error.name)
    return ""


def _factory(manager: pluggy.PluginManager, implementation: Any, hook: str) -> Callable[..., Any] | None:
    """The function or method that implements the hook."""
    for name in dir(implementation):
        marker = manager.parse_hookimpl_opts(implementation, name)
        if marker is not None and (marker.get("specname") or name) == hook:
            factory: Callable[..., Any] = getattr(implementation, name)
            return factory
    return None


def _check(candidate: "Candidate", kind: Kind, factory: Callable[..., Any]) -> None:
    """Check a hook's definition beyond pluggy."""
    if defects := signatures.hook_defects(factory, getattr(hookspecs, kind.name), _result(kind)):
        where = signatures.location(factory)
        raise fail(candidate.place, f"is broken: {kind.name} at {where}: {'; '.join(defects)}")


def _result(kind: Kind) -> type:
    result: type = pkgutil.resolve_name(kind.result)
    return result


def _options_model(candidate: "Candidate", factory: Callable[..., Any]) -> type[BaseModel]:
    """The pydantic model that the factory's `options` argument is annotated with."""
    noted = signatures.annotation(factory, "options")
    if noted in (signatures.ABSENT, BaseModel):
        return options.NoOptions
    if isinstance(noted, type) and issubclass(noted, BaseModel):
        return noted
    where = signatures.location(factory)
    raise fail(
        candidate.place, f"is broken: options at {where} is annotated {noted!r}, which is no pydantic model"
    )
