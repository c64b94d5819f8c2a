"""Checks a plugin's options against its pydantic model and reports every problem at once."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from rlcore.errors import Problem, raise_if_any


class NoOptions(BaseModel):
    """The options of a plugin that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse(model: type[BaseModel], options: Mapping[str, Any], place: str) -> BaseModel:
    """Make the options object; raises RlcoreError with each problem at `place.KEY`.

    Unknown keys are errors unless the model allows extra ones on purpose: pydantic's default, which drops
    them in silence, would hide a typing mistake.
    """
    raise_if_any(_problems(model, options, place))
    return model.model_validate(options)


def _problems(model: type[BaseModel], options: Mapping[str, Any], place: str) -> list[Problem]:
    if model.model_config.get("extra") == "allow":
        checked = model
    else:
        checked = create_model(model.__name__, __base__=model, __cls_kwargs__={"extra": "forbid"})
    try:
        checked.model_validate(options)
    except ValidationError as error:
        return [_problem(model, dict(found), place) for found in error.errors(include_url=False)]
    return []


def _problem(model: type[BaseModel], found: dict[str, Any], place: str) -> Problem:
    """One of pydantic's findings, said in rlcore's way."""
    where = ".".join([place, *map(str, found["loc"])])
    known = sorted(model.model_fields)
    if found["type"] == "extra_forbidden":
        close = get_close_matches(str(found["loc"][-1]), known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"options are: {', '.join(known) or 'none'}"
        return Problem(where, "there is no such option", remedy)
    if found["type"] == "missing":
        return Problem(where, "this option must be given")
    return Problem(where, f"{found['msg']}, not {found['input']!r}")
