"""What layers measure of a micro-batch's tokens beside what they compute; a step reports means.

They leave sums in what layers share (PackedSequences), each layer and each rank of its own tokens.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

_MEASURES = "measures"
# Ends the names of counts, which stand beside those of sums.
COUNT = ", count"


def add_measure(shared: MutableMapping[str, Any], name: str, total: Tensor, count: Tensor) -> None:
    """Add one layer's sum over `count` of its tokens, both scalars; the metric `name` is the mean."""
    found = shared.setdefault(_MEASURES, {})
    for key, value in ((name, total), (f"{name}{COUNT}", count)):
        found[key] = found[key] + value if key in found else value


def measures(shared: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Sums and counts that were added so far."""
    return shared.get(_MEASURES, {})
