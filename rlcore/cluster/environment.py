"""The environment of workers: the recipe's, and exceptions from proxies, which know nothing of nodes nearby."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_HERE = ("localhost", "127.0.0.1")


def worker_environment(
    asked: Mapping[str, str], hosts: Sequence[str], shell: Mapping[str, str]
) -> dict[str, str]:
    """The recipe's variables; where workers are on several hosts, also no_proxy with all of them added."""
    if len(hosts) < 2:
        return dict(asked)
    given = asked.get("no_proxy") or shell.get("no_proxy") or shell.get("NO_PROXY") or ""
    names = dict.fromkeys([*filter(None, given.split(",")), *_HERE, *hosts])
    exceptions = ",".join(names)
    return {**asked, "no_proxy": exceptions, "NO_PROXY": exceptions}


@contextmanager
def exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Have variables in this process, and in all that it starts, for as long as the body runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def proxies(shell: Mapping[str, str]) -> list[str]:
    """The names of variables that send requests to a proxy."""
    return sorted(name for name, value in shell.items() if name.lower() in PROXIES and value)
