"""The sections about prompts and responses: datasets, sampling, engines, evaluation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Tag

from rlcore.config.section import RewardUse, Section


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


class ServerGroup(Section):
    """Servers of one kind."""

    worker_type: Literal["regular", "prefill", "decode", "encoder", "placeholder"] = "regular"
    """What they do; prefill and decode servers work in pairs."""
    num_gpus: PositiveInt
    """GPUs of all servers of this group."""
    num_gpus_per_engine: PositiveInt | None = None
    """GPUs that one server spans; by default that of the model, then rollout.gpus_per_engine."""
    overrides: dict[str, Any] = {}
    """Fields of ServerArgs that differ in this group."""


class ServedModel(Section):
    """One model that SGLang serves."""

    name: str = "default"
    """What plan, logs and the line with its address call it."""
    model_path: str | None = None
    """Checkpoint; by default the policy's."""
    num_gpus_per_engine: PositiveInt | None = None
    """GPUs that one server spans, unless a group says otherwise."""
    update_weights: bool | None = None
    """Whether it is the policy, which gets new weights; by default where it serves the policy's checkpoint."""
    server_groups: list[ServerGroup] = Field(min_length=1)
    """Its servers."""


class ServerGroups(Section):
    """Models and servers of the rollout, in the form of `--sglang-config`."""

    sglang: list[ServedModel] = Field(min_length=1)
    """The models, of which one is the policy."""


def _server_groups_form(value: object) -> str:
    return "<file>" if isinstance(value, str | Path) else "<inline>"


class SGLang(Section):
    """SGLang servers."""

    python: Path | None = None
    """Interpreter of the environment that holds sglang, if it is not this one."""
    args: dict[str, Any] = {}
    """Any field of ServerArgs, by its own name."""
    config: (
        Annotated[
            Annotated[Path, Tag("<file>")] | Annotated[ServerGroups, Tag("<inline>")],
            Discriminator(_server_groups_form),
        ]
        | None
    ) = None
    """Server groups (`sglang: [{name, server_groups: …}]`), inline or as a file."""
    lost_after: PositiveFloat = 60.0
    """Seconds that a server may take to say how it is; then it is started anew, and others get its requests."""
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
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keeps the smallest set of tokens with this much probability."""
    top_k: int = Field(default=-1, ge=-1)
    """Keeps this many tokens; -1 keeps all."""
    stop: list[str] = []
    """Strings that end a response."""
    stop_token_ids: list[NonNegativeInt] = []
    """Token ids that end a response, besides the model's own."""


class Rollout(Sampling):
    """How each step's samples are made. What top_p or top_k cut off shows in the log-prob gap."""

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
    """Generate and train in turn, train while the next step's samples are made, or generate all the time."""
    max_staleness: NonNegativeInt = 1
    """In mode async: by how many versions the weights that made a token may be behind those that it trains."""
    request_timeout: PositiveFloat | None = None
    """Seconds without a new token, in an engine's queue or out of it, after which a request counts as lost."""
    request_retries: NonNegativeInt = 2
    """How often a lost request is asked again, after the tokens that it has; then its group is left out."""
    num_gpus: NonNegativeInt = 0
    """GPUs for generation when it has its own; on a CPU the SGLang servers to start, at least one."""
    gpus_per_engine: PositiveInt = 1
    """GPUs that one engine spans."""
    local: LocalEngine = LocalEngine()
    """Settings of the embedded engine."""
    sglang: SGLang = SGLang()
    """Settings of SGLang servers."""


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
    """Steps between evaluations; one always follows the last step."""
    before_train: bool = True
    """Also evaluate before the first step."""
    datasets: list[EvalDataset] = []
    """What to evaluate on."""
    rewards: list[RewardUse] | None = None
    """Rewards that judge; by default those of training. A problem counts as passed at a value above 0."""
