"""The recipe: every key that a run understands, typed, strict and documented where it stands.

The docstring under a field is its help text. Nothing here knows a model or a reward: those are plugin names.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from rlcore.config.generation import (
    Data,
    Dataset,
    Eval,
    EvalDataset,
    LocalEngine,
    Rollout,
    Sampling,
    ServedModel,
    ServerGroup,
    ServerGroups,
    SGLang,
)
from rlcore.config.section import (
    EstimatorUse,
    PluginUse,
    Rewards,
    RewardsByMetadata,
    RewardUse,
    Section,
    Use,
    UseEstimator,
    UseReward,
)
from rlcore.config.training import (
    KL,
    MTP,
    SFT,
    Algorithm,
    BadSteps,
    ImportanceSampling,
    Optimizer,
    Parallel,
    Recompute,
    Train,
)

__all__ = [
    "KL",
    "MTP",
    "SFT",
    "Algorithm",
    "BadSteps",
    "Checkpoints",
    "Cluster",
    "Data",
    "Dataset",
    "Eval",
    "EvalDataset",
    "ImportanceSampling",
    "LocalEngine",
    "Model",
    "Optimizer",
    "Parallel",
    "PluginUse",
    "Plugins",
    "Recipe",
    "Recompute",
    "RewardUse",
    "Rewards",
    "RewardsByMetadata",
    "Rollout",
    "SGLang",
    "Sampling",
    "Section",
    "ServedModel",
    "ServerGroup",
    "ServerGroups",
    "Sync",
    "Telemetry",
    "Train",
    "Use",
    "UseEstimator",
    "UseReward",
]


class Plugins(Section):
    """Which installed plugins this run may see."""

    deny: list[str] = []
    """Names (`NAME`, `dist:NAME` or `kind:NAME`) that are treated as not installed."""
    require: list[str] = []
    """Names that must be installed and sound even if nothing below selects them."""


class Model(Section):
    """The policy that is trained."""

    checkpoint: str
    """Folder in Hugging Face format, or a hub id. Its config.json is the truth for the architecture."""
    plugin: str | None = None
    """Model plugin (`NAME` or `dist:NAME`); by default the model_type of config.json."""
    overrides: dict[str, Any] = {}
    """Values of config.json changed on purpose."""
    options: dict[str, Any] = {}
    """Options of the model plugin: choices that no config.json makes."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights and activations in training."""
    load: Path | None = None
    """torch_dist checkpoint to start from instead of the tensors of `checkpoint`."""


class Cluster(Section):
    """Machines and what they share."""

    nodes: PositiveInt = 1
    """Nodes for training."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs of one node used for training; 0 trains on the CPU."""
    colocate: bool = False
    """Train and generate on the same GPUs; in turn, unless `rollout.mode` says otherwise."""
    offload_train: bool | None = None
    """Move the trainer to host memory while generating; by default where colocated, in mode `sync`."""
    offload_rollout: bool | None = None
    """Release the engines' memory while training; by default where colocated, in mode `sync`."""
    hostfile: Path | None = None
    """File of worker addresses, one a line; what follows the address (`slots=8`) is ignored."""
    address: str | None = None
    """Ray cluster to join (`host:6379`, or `auto`: that of this machine, if any); by default one is started."""
    env: dict[str, str] = {}
    """Environment variables of every worker (NCCL_SOCKET_IFNAME, …); secrets stay in the shell."""


class Checkpoints(Section):
    """What is saved, and how much of it is kept."""

    every: PositiveInt | None = None
    """Steps between checkpoints; one is always saved at the end."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_every: PositiveInt | None = None
    """Checkpoints of these steps are kept for good."""
    asynchronous: bool = False
    """Copy the state to host memory and write it in the background, while training goes on."""
    hf: bool = True
    """Also write the weights in Hugging Face format when `rlcore train` ends; `rlcore sft` always does."""
    hf_every: PositiveInt | None = None
    """Steps between further ones, to hf-STEP/ in the run folder; none of them is removed."""


class Sync(Section):
    """How new weights reach the engines."""

    verify: Literal["always", "first", "never"] = "first"
    """When separate processes compare log-probs on a probe; in one process, every step's own samples are."""
    bucket_mib: PositiveInt = 512
    """Largest bundle of tensors in flight, MiB."""
    transport: Literal["auto", "tensor", "broadcast", "disk", "delta"] = "auto"
    """Way of the tensors."""


class Telemetry(Section):
    """What is recorded while a run goes on."""

    save_rollouts: bool = True
    """Write every step's samples to rollouts/."""
    stall_after: PositiveFloat = 300.0
    """Seconds without progress after which a warning names what is waited for."""
    end_stalled_after: PositiveFloat = 1800.0
    """Seconds without progress of any trainer rank after which the run ends; its checkpoints stay."""


class Recipe(Section):
    """A whole run."""

    name: str = "run"
    """Names the run folder when none is given."""
    seed: NonNegativeInt = 42
    """Everything random follows from it."""
    plugins: Plugins = Plugins()
    """Which installed plugins this run may see."""
    model: Model
    """The policy."""
    data: Data | None = None
    """Training prompts; `rlcore train` needs them."""
    rollout: Rollout = Rollout()
    """Generation."""
    rewards: Rewards = []
    """What a response is worth: a weighted list, or one chosen by each sample's metadata."""
    filters: list[PluginUse] = []
    """Sampling filters, in order."""
    advantage: EstimatorUse = UseEstimator()
    """Advantage estimator."""
    loss: PluginUse | None = None
    """Policy loss; by default the estimator's own."""
    layout_validators: list[str] = []
    """Layout rules besides the model's own."""
    algorithm: Algorithm = Algorithm()
    """KL, entropy and reduction."""
    train: Train = Train()
    """Steps and batches."""
    optimizer: Optimizer = Optimizer()
    """Optimizer of `rlcore train`."""
    parallel: Parallel = Parallel()
    """Layout over GPUs."""
    recompute: Recompute = Recompute()
    """Activation recomputation."""
    mtp: MTP = MTP()
    """Multi-token prediction."""
    megatron: dict[str, Any] = {}
    """Any other field of Megatron's TransformerConfig, DDP or optimizer configuration, by its own name."""
    cluster: Cluster = Cluster()
    """Machines."""
    checkpoints: Checkpoints = Checkpoints()
    """Saving."""
    eval: Eval = Eval()
    """Evaluation during training."""
    sft: SFT | None = None
    """Supervised warm start; `rlcore sft` needs it."""
    sync: Sync = Sync()
    """Weight transport."""
    telemetry: Telemetry = Telemetry()
    """Records."""
