"""A host file: one node a line, `[user@]address`; what follows the address (`slots=8`) is ignored."""

from dataclasses import dataclass
from pathlib import Path

from rlcore.errors import fail


@dataclass(frozen=True)
class Host:
    """A node: how ssh reaches it, and the address that other nodes know it by."""

    login: str

    @property
    def address(self) -> str:
        return self.login.rpartition("@")[2]


def read_hostfile(path: Path) -> list[Host]:
    """Return the nodes in their order; the first is the head.

    Raises RlcoreError for a file that is not there, names no node, or names one twice.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise fail(str(path), f"cannot be read: {error.strerror}", "a file with one address a line") from None
    words = [line.partition("#")[0].split() for line in lines]
    hosts = [Host(found[0]) for found in words if found]
    addresses = [host.address for host in hosts]
    if not hosts:
        raise fail(str(path), "names no node", "one address a line")
    if twice := [address for address in dict.fromkeys(addresses) if addresses.count(address) > 1]:
        raise fail(str(path), f"names {', '.join(twice)} more than once", "each node once")
    return hosts
