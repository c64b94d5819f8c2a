"""The recipe: every key that a run understands, typed, strict and documented where it stands.

The docstring under a field is its help text. Nothing here knows a model or a reward: those are plugin names.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


def _bare_name(value: object) -> object:
    return {"use": value} if isinstance(value, str) else value


class Use(Section):
    """A plugin chosen by name. `NAME` alone is short for `{use: NAME}`; `dist:NAME` picks among equals."""

    use: str
    """Name of the entry point."""
    options: dict[str, Any] = {}
    """Options of the plugin, checked against its own model."""


class UseReward(Use):
    """One of the rewards whose weighted sum a sample gets."""

    weight: float = 1.0
    """Factor in the sum."""
    timeout: PositiveFloat = 30.0
    """Seconds that one call may take before its process is killed."""
    on_error: Literal["fail", "zero", "drop"] = "fail"
    """What an exception, a time-out or a NaN does: stop the run, count as 0, or drop the sample's group."""
    concurrency: PositiveInt = 2
    """Worker processes that score at the same time."""


class RewardsByMetadata(Section):
    """Chooses the reward of each sample by a key of its metadata."""

    key: str = "rm_type"
    """Metadata key that names the reward."""
    allowed: dict[str, dict[str, Any]] = Field(min_length=1)
    """Reward names that may occur, each with its options; all are loaded and checked before the start."""


PluginUse = Annotated[Use, BeforeValidator(_bare_name)]
RewardUse = Annotated[UseReward, BeforeValidator(_bare_name)]


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
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights and activations in training."""
    load: Path | None = None
    """torch_dist checkpoint to start from instead of the tensors of `checkpoint`."""


class Dataset(Section):
    """Rows of JSON lines (or Parquet), each a prompt with its label and metadata."""

    path: Path
    """File of rows; `file.jsonl@[a:b]` reads a slice."""
    prompt_key: str = "prompt"
    """Key of the prompt: a text, or a list of chat messages."""
    label_key: str = "label"
    """Key of the reference answer."""
    metadata_key: str = "metadata"
    """Key of a mapping that travels with the sample."""
    tools_key: str = "tools"
    """Key of the tool descriptions given to the chat template."""
    chat_template: bool = True
    """Render prompts with the tokenizer's chat template; a text becomes one user message."""
    chat_template_options: dict[str, Any] = {}
    """Extra variables of the chat template, such as enable_thinking."""
    max_prompt_tokens: PositiveInt | None = None
    """Rows with longer prompts are left out, and counted."""


class Data(Dataset):
    """Training prompts."""

    shuffle: bool = True
    """New order in every epoch, from the run's seed."""


class LocalEngine(Section):
    """The embedded engine: the transformers model of the same checkpoint, in this process."""

    concurrency: PositiveInt = 64
    """Sequences decoded together."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Type of its weights; by default the trainer's."""


class SGLang(Section):
    """SGLang servers."""

    python: Path | None = None
    """Interpreter of the environment that holds sglang, if it is not this one."""
    args: dict[str, Any] = {}
    """Any field of ServerArgs, by its own name."""
    config: Path | dict[str, Any] | None = None
    """Server groups (`sglang: [{name, server_groups: …}]`), inline or as a file."""
    urls: list[str] = []
    """Running servers to attach to instead of launching any."""
    router: bool = True
    """Put sglang-router in front when it is installed."""


class Sampling(Section):
    """How responses are drawn."""

    max_response_tokens: PositiveInt = 1024
    """Longest response; a longer one is cut and counted as truncated."""
    temperature: NonNegativeFloat = 1.0
    """Divides the logits; 0 is greedy (evaluation only)."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keeps the smallest set of tokens with this much probability."""
    top_k: int = Field(-1, ge=-1)
    """Keeps this many tokens; -1 keeps all."""
    stop: list[str] = []
    """Strings that end a response."""
    stop_token_ids: list[NonNegativeInt] = []
    """Token ids that end a response, besides the model's own."""


class Rollout(Sampling):
    """How each step's samples are made."""

    engine: Literal["local", "sglang"] = "local"
    """Which engine generates."""
    checkpoint: str | None = None
    """Checkpoint that the engine starts from, if not the model's own (an FP8 one, say)."""
    prompts_per_step: PositiveInt = 32
    """Prompts whose groups make one rollout (rollout batch size)."""
    samples_per_prompt: PositiveInt = 8
    """Responses per prompt: the group that is normalised together."""
    max_context_tokens: PositiveInt | None = None
    """Longest prompt and response together."""
    over_sampling_prompts: PositiveInt | None = None
    """Prompts asked for at a time while filters drop some; at least prompts_per_step."""
    partial: bool = False
    """Keep responses cut short by the end of a rollout and go on with them in the next."""
    mask_offpolicy: bool = False
    """Give tokens made by older weights no loss."""
    mode: Literal["sync", "one_step", "async"] = "sync"
    """Whether generation runs ahead of training."""
    max_staleness: NonNegativeInt = 1
    """In mode async: how many weight versions a sample may be behind."""
    num_gpus: NonNegativeInt = 0
    """GPUs for generation when it has its own."""
    gpus_per_engine: PositiveInt = 1
    """GPUs that one engine spans."""
    local: LocalEngine = LocalEngine()
    """Settings of the embedded engine."""
    sglang: SGLang = SGLang()
    """Settings of SGLang servers."""


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
    """Checkpoint of the reference; by default the model's own at the start."""


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
    balance: bool = True
    """Pack and order so that ranks that wait for each other work equally long."""
    threads: PositiveInt | None = None
    """CPU threads for torch; by default all cores."""


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
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 does not clip."""
    cpu_offload: bool = False
    """Keep optimizer states in host memory."""
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
    """Modules under selective recomputation."""


class MTP(Section):
    """Multi-token prediction layers."""

    num_layers: NonNegativeInt = 0
    """Layers loaded from the checkpoint; 0 passes them through every export untouched."""
    train: bool = False
    """Whether they learn."""
    loss_scaling_factor: NonNegativeFloat = 0.2
    """Weight of their loss."""


class Cluster(Section):
    """Machines and what they share."""

    nodes: PositiveInt = 1
    """Nodes for training."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs of one node used for training; 0 trains on the CPU."""
    colocate: bool = False
    """Train and generate on the same GPUs, in turn."""
    offload_train: bool | None = None
    """Move the trainer to host memory while generating; by default where colocated."""
    offload_rollout: bool | None = None
    """Release the engines' memory while training; by default where colocated."""
    hostfile: Path | None = None
    """One worker address a line."""
    env: dict[str, str] = {}
    """Environment variables of every worker."""


class Checkpoints(Section):
    """What is saved, and how much of it is kept."""

    every: PositiveInt | None = None
    """Steps between checkpoints; one is always saved at the end."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_every: PositiveInt | None = None
    """Checkpoints of these steps are kept for good."""
    asynchronous: bool = False
    """Write in the background."""
    hf: bool = True
    """Also write the weights in Hugging Face format at the end."""


class EvalDataset(Dataset, Sampling):
    """One evaluation set."""

    name: str
    """Name in metrics and report."""
    samples_per_prompt: PositiveInt = 1
    """Responses per problem: pass@1 is their mean, pass@k whether any is right."""
    temperature: NonNegativeFloat = 1.0
    """Divides the logits; 0 is greedy."""
    limit: PositiveInt | None = None
    """Only the first rows."""


class Eval(Section):
    """Evaluation during training."""

    every: PositiveInt | None = None
    """Steps between evaluations; none by default."""
    before_train: bool = True
    """Also evaluate before the first step."""
    datasets: list[EvalDataset] = []
    """What to evaluate on."""
    rewards: list[RewardUse] | None = None
    """Rewards that judge; by default those of training. A problem counts as passed at a value above 0."""


class SFT(Section):
    """The supervised warm start, run by `rlcore sft`."""

    data: Dataset
    """Rows whose answer the model imitates."""
    answer_key: str = "answer"
    """Key of the text to imitate, looked up in the row and then in its metadata; rows of whole chats need none."""
    steps: PositiveInt = 100
    """Optimizer steps."""
    batch_size: PositiveInt = 64
    """Samples per optimizer step."""
    optimizer: Optimizer = Optimizer()
    """Its own optimizer settings."""


class Sync(Section):
    """How new weights reach the engines."""

    verify: Literal["always", "first", "never"] = "first"
    """When log-probs of engine and trainer are compared on a probe."""
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
    rewards: list[RewardUse] | RewardsByMetadata = []
    """What a response is worth: a weighted list, or one chosen by each sample's metadata."""
    filters: list[PluginUse] = []
    """Sampling filters, in order."""
    advantage: PluginUse = Use(use="grpo")
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
