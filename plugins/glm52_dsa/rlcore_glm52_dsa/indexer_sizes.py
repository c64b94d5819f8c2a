"""The sizes of an indexer, as config.json gives them, and what follows from them: parameters and FLOPs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlcore.errors import fail, raise_if_any
from rlcore.models.arithmetic import linear_flops
from rlcore.models.hf_config import number_problems
from rlcore.models.latent import LatentAttention

_KEYS = ("index_n_heads", "index_head_dim", "index_topk")


@dataclass(frozen=True)
class IndexerSizes:
    """What chooses `topk` keys: heads, and the width of each."""

    heads: int
    width: int
    topk: int

    @classmethod
    def of(cls, hf_config: Mapping[str, Any]) -> "IndexerSizes":
        """Read the keys; raises RlcoreError for all that cannot be."""
        raise_if_any(number_problems(hf_config, _KEYS))
        sizes = cls(*(hf_config[key] for key in _KEYS))
        if sizes.width < hf_config["qk_rope_head_dim"]:
            message = f"index_head_dim {sizes.width} is less than qk_rope_head_dim"
            raise fail("config.json", f"{message} {hf_config['qk_rope_head_dim']}, which is rotated of it")
        if not hf_config.get("indexer_rope_interleave", True):
            raise fail("config.json", "indexer_rope_interleave false is not supported, only true")
        return sizes

    def matrices(self, attention: LatentAttention) -> int:
        """Elements of its projections: queries from their latent, a key and heads' weights from the token."""
        query = attention.query_latent * self.heads * self.width
        return query + attention.hidden * (self.width + self.heads)

    def parameters(self, attention: LatentAttention) -> int:
        """Elements of it all, the key's LayerNorm included."""
        return self.matrices(attention) + 2 * self.width

    def flops(self, length: int, attention: LatentAttention) -> float:
        """Forward FLOPs of a sequence: each query is scored against every key up to its own."""
        pairs = length * (length + 1) / 2
        return linear_flops(length, self.matrices(attention)) + 2.0 * pairs * self.heads * (self.width + 1)
