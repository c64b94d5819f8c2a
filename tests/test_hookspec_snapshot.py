"""The contract with plugin authors is frozen: what changes here breaks installed plugins.

Records may gain optional fields at their end; hooks and methods may not change at all.
"""

import dataclasses
import inspect

from rlcore import hookspecs, protocols
from rlcore.registry.kinds import KINDS

HOOKS = {
    "model_spec": "(hf_config: collections.abc.Mapping[str, typing.Any]) -> 'ModelSpec'",
    "weight_bridge": "(spec: 'ModelSpec') -> 'WeightBridge'",
    "layout_validator": "(spec: 'ModelSpec') -> 'LayoutValidator'",
    "reward": "(options: 'BaseModel') -> 'Reward'",
    "sampling_filter": "(options: 'BaseModel') -> 'SamplingFilter'",
    "advantage_estimator": "(options: 'BaseModel') -> 'AdvantageEstimator'",
    "policy_loss": "(options: 'BaseModel') -> 'PolicyLoss'",
}
METHODS = {
    "LayoutValidator.validate": "(self, layout: 'Layout') -> collections.abc.Sequence[rlcore.errors.Problem]",
    "Reward.score": (
        "async (self, samples: 'Sequence[Sample]') -> collections.abc.Sequence[rlcore.protocols.RewardResult]"
    ),
    "SamplingFilter.decide": (
        "(self, group: 'Sequence[Sample]', context: rlcore.protocols.FilterContext)"
        " -> rlcore.protocols.Keep | rlcore.protocols.Drop"
    ),
    "AdvantageEstimator.estimate": (
        "(self, batch: rlcore.protocols.AdvantageBatch) -> rlcore.protocols.Advantages"
    ),
    "PolicyLoss.terms": "(self, batch: rlcore.protocols.LossBatch) -> rlcore.protocols.LossTerms",
}
FIELDS = {
    "RewardResult": ["value", "parts"],
    "FilterContext": ["step", "wanted", "kept", "in_flight", "version"],
    "Keep": ["mask_out"],
    "Drop": ["reason", "keep_if_short"],
    "AdvantageBatch": [
        "rewards_n",
        "group_n",
        "lengths_n",
        "loss_mask_t",
        "log_probs_t",
        "ref_log_probs_t",
        "values_t",
        "teacher_log_probs_t",
        "greedy_rewards_n",
    ],
    "Advantages": ["advantages_t", "returns_t", "metrics"],
    "LossBatch": [
        "log_probs_t",
        "old_log_probs_t",
        "advantages_t",
        "loss_mask_t",
        "sample_t",
        "rollout_log_probs_t",
    ],
    "LossTerms": ["loss_t", "metrics_t"],
}
GROUPS = {
    "model_spec": "rlcore.model_specs",
    "weight_bridge": "rlcore.weight_bridges",
    "layout_validator": "rlcore.layout_validators",
    "reward": "rlcore.rewards",
    "sampling_filter": "rlcore.sampling_filters",
    "advantage_estimator": "rlcore.advantage_estimators",
    "policy_loss": "rlcore.losses",
    "resource": "rlcore.resources",
}


def signature(function):
    return ("async " if inspect.iscoroutinefunction(function) else "") + str(inspect.signature(function))


def test_hooks_are_frozen():
    hooks = {name: value for name, value in vars(hookspecs).items() if hasattr(value, "rlcore_spec")}
    assert {name: signature(hook) for name, hook in hooks.items()} == HOOKS


def test_methods_of_protocols_are_frozen():
    classes = [value for value in vars(protocols).values() if getattr(value, "_is_protocol", False)]
    own = [one for one in classes if one.__module__ == "rlcore.protocols"]
    methods = {
        f"{one.__name__}.{name}": signature(method)
        for one in own
        for name, method in vars(one).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    assert methods == METHODS


def test_records_lose_no_field_and_new_ones_are_optional():
    for name, expected in FIELDS.items():
        fields = dataclasses.fields(getattr(protocols, name))
        assert [field.name for field in fields[: len(expected)]] == expected
        for field in fields[len(expected) :]:
            assert (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)


def test_entry_point_groups_are_frozen():
    assert {kind.name: kind.group for kind in KINDS.values()} == GROUPS
