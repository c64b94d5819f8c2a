"""The sections about learning: what is optimised, in which batches, by which optimizer, spread how."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rlcore.config.generation import Dataset
from rlcore.config.section import Section


class KL(Section):
    """Distance to a frozen reference policy. Both coefficients at 0 never load the reference."""

    loss_coefficient: NonNegativeFloat = 0.0
    """Weight of the KL term in the loss."""
    reward_coefficient: NonNegativeFloat = 0.0
    """Weight of the per-token KL taken from the reward."""
    estimator: Literal["k1", "k2", "k3", "low_var_kl"] = "low_var_kl"
    """Estimator of the divergence; low_var_kl is k3 clamped to ±10 (http://joschu.net/blog/kl-approx.html)."""
    unbiased: bool = False
    """Weight each token's estimate by its importance ratio."""
    reference: str | None = None
    """Checkpoint of the reference (Hugging Face or torch_dist); by default the model's own at the start."""


class ImportanceSampling(Section):
    """Truncated importance sampling between the engine's log-probs and the trainer's."""

    enabled: bool = False
    """Weight each token's loss by the clamped ratio."""
    low: NonNegativeFloat = 0.0
    """Smallest weight."""
    high: PositiveFloat = 2.0
    """Largest weight."""


class Algorithm(Section):
    """What is optimised, beyond estimator and surrogate."""

    reduction: Literal["sample", "token"] = "sample"
    """Mean over samples of each sample's token mean, or mean over all tokens."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    normalize_advantages: bool = False
    """Whiten advantages over the whole batch."""
    kl: KL = KL()
    """Distance to the reference policy."""
    importance_sampling: ImportanceSampling = ImportanceSampling()
    """Correction for the gap between engine and trainer."""


class BadSteps(Section):
    """Optimizer steps that would spoil the weights are left out and counted; several in a row end the run."""

    on_nonfinite: Literal["skip", "fail"] = "skip"
    """A loss or gradient that is not finite: leave the step out, or end the run at once."""
    spike_factor: float | None = Field(default=None, gt=1)
    """Leave out a step whose gradient norm exceeds this many times the recent median; by default none."""
    max_in_a_row: NonNegativeInt = 3
    """Steps left out one after the other before the run ends."""


class Train(Section):
    """Steps and batches."""

    steps: PositiveInt | None = None
    """Rollouts to train on."""
    epochs: PositiveInt | None = None
    """Passes over the prompts, where `steps` is not given."""
    global_batch_size: PositiveInt | None = None
    """Samples per optimizer step; by default the whole rollout."""
    updates_per_rollout: PositiveInt | None = None
    """Optimizer steps per rollout, instead of a global batch size."""
    max_tokens_per_gpu: PositiveInt = 4096
    """Packed tokens of one micro-batch per GPU; a longer sample goes alone, never cut."""
    pad_multiple: PositiveInt = 1
    """Micro-batches are padded to a multiple of this many tokens per tensor-parallel rank."""
    log_probs_chunk: PositiveInt | None = None
    """Tokens whose logits are held in fp32 at a time; by default the trainer's choice."""
    threads: PositiveInt | None = None
    """CPU threads for torch; by default all cores."""
    bad_steps: BadSteps = BadSteps()
    """What happens to steps that would spoil the weights."""


class Optimizer(Section):
    """Adam and its schedule; defaults are those of the published recipes."""

    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 0.0
    """Floor of the decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up."""
    decay_steps: PositiveInt | None = None
    """Optimizer steps until `min_lr`; by default the whole run."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.98, ge=0, lt=1)
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 does not clip."""
    cpu_offload: bool = False
    """Keep states in host memory and update weights there (bf16 only); without a GPU they are there already."""
    overlap_offload: bool = False
    """Overlap the copies of offloaded states."""
    precision_aware: bool = False
    """Keep states in lower precision (TransformerEngine)."""


class Parallel(Section):
    """How the model is spread over GPUs."""

    tp: PositiveInt = 1
    """Tensor parallel size; above 1, sequence parallelism is on."""
    pp: PositiveInt = 1
    """Pipeline parallel size."""
    cp: PositiveInt = 1
    """Context parallel size."""
    dp: PositiveInt | None = None
    """Data parallel size; by default what the other sizes leave of the GPUs, or on a CPU the smallest."""
    ep: PositiveInt = 1
    """Expert parallel size."""
    etp: PositiveInt | None = None
    """Tensor parallel size inside an expert; by default tp where ep is 1, else 1."""
    vpp: PositiveInt | None = None
    """Virtual pipeline stages per rank."""
    first_stage_layers: PositiveInt | None = None
    """Layers of the first pipeline stage, where they are uneven."""
    last_stage_layers: PositiveInt | None = None
    """Layers of the last pipeline stage, where they are uneven."""
    pipeline_layout: str | None = None
    """Megatron's free-form pipeline layout."""


class Recompute(Section):
    """Activations that are computed again in the backward pass instead of kept."""

    granularity: Literal["none", "selective", "full"] = "none"
    """Nothing, chosen modules, or whole layers."""
    method: Literal["uniform", "block"] = "uniform"
    """How layers are grouped under full recomputation."""
    num_layers: PositiveInt = 1
    """Layers per group, or layers recomputed per stage."""
    modules: list[str] = []
    """Modules under selective recomputation (core_attn, moe, mlp, …)."""


class MTP(Section):
    """Multi-token prediction layers."""

    num_layers: NonNegativeInt = 0
    """Layers loaded from the checkpoint; 0 passes them through every export untouched."""
    train: bool = False
    """Whether they learn."""
    loss_scaling_factor: NonNegativeFloat = 0.2
    """Weight of their loss."""


class SFT(Section):
    """The supervised warm start, run by `rlcore sft`."""

    data: Dataset
    """Rows whose answer the model imitates."""
    answer_key: str = "answer"
    """Key of the text to imitate, looked up in the row, then in its metadata; rows of whole chats need none."""
    steps: PositiveInt = 100
    """Optimizer steps."""
    batch_size: PositiveInt = 64
    """Samples per optimizer step."""
    stop_at_loss: PositiveFloat | None = None
    """End before `steps`, after the first batch whose loss per token is this low."""
    optimizer: Optimizer = Optimizer()
    """Its own optimizer settings."""
