"""What a worker group asks of the Ray it lives in: private to the run (local_ray), or joined (cluster_ray)."""

from pathlib import Path
from typing import Any, Protocol


class RayHome(Protocol):
    """Has a place for each rank. `folder` is for files that live as long as it does, on every node.

    The end of a process may not be known for `silence_seconds`, in which it just does not answer.
    """

    folder: Path
    silence_seconds: float

    def actor_options(self, rank: int) -> dict[str, Any]:
        """Options of the actor of a rank: what it takes, and where."""
        ...

    def node(self, rank: int) -> str:
        """Name the node of a rank; empty where there is one only."""
        ...

    def has_left(self, rank: int) -> bool:
        """Whether the node of a rank, which has ended, has left."""
        ...

    def stop(self) -> None:
        """End what runs for the group."""
        ...
