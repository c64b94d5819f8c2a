"""What sparse attention selected, as one number a token, by which engine and trainer see whether they agree.

Layers add hashes of what each token's query selected; a token's number is their sum over all layers and over
all tokens of its sequence up to it, int64 that wraps around. Equal numbers: nothing was selected otherwise.
"""

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

# The key under what layers share, in the engine (ForwardPlan) and in the trainer (PackedSequences). There it is
# set beforehand where somebody will look, and layers need not hash for nothing.
SELECTIONS = "selections"


def add_selections(shared: MutableMapping[str, Any], hash_t: Tensor) -> None:
    """Add what one layer selected, int64 [t], to that of the layers before it."""
    shared[SELECTIONS] = shared[SELECTIONS] + hash_t if SELECTIONS in shared else hash_t
