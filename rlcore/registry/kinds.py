"""The kinds of plugin: for each its entry-point group and what its factory returns.

The hook of a kind has the kind's name (`rlcore.hookspecs`). Result types are named, not imported, so that
listing stays light and the registry needs nothing above it.
"""

from typing import NamedTuple


class Kind(NamedTuple):
    """One kind of plugin; `result` is empty for resources, which are read by path and have no hook."""

    name: str
    group: str
    result: str = ""

    @property
    def result_name(self) -> str:
        """The bare name of the result type, as messages and annotations write it."""
        return self.result.partition(":")[2]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("model_spec", "rlcore.model_specs", "rlcore.models.spec:ModelSpec"),
        Kind("weight_bridge", "rlcore.weight_bridges", "rlcore.bridge.table:WeightBridge"),
        Kind("layout_validator", "rlcore.layout_validators", "rlcore.protocols:LayoutValidator"),
        Kind("reward", "rlcore.rewards", "rlcore.protocols:Reward"),
        Kind("sampling_filter", "rlcore.sampling_filters", "rlcore.protocols:SamplingFilter"),
        Kind("advantage_estimator", "rlcore.advantage_estimators", "rlcore.protocols:AdvantageEstimator"),
        Kind("policy_loss", "rlcore.losses", "rlcore.protocols:PolicyLoss"),
        Kind("resource", "rlcore.resources"),
    )
}
BY_GROUP = {kind.group: kind for kind in KINDS.values()}
