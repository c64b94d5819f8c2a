"""What must hold between the keys of a recipe; each rule is named as the sentence that it enforces.

A rule yields Violations. `keys` are those that it read: the first gives the place, and a rule is silent
where the schema already refused one of them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlcore.config.schema import Recipe, ServerGroups

_SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)


def is_secret(variable: str) -> bool:
    """Whether an environment variable's name says that its value is nobody's business."""
    return bool(_SECRET.search(variable))


@dataclass(frozen=True)
class Violation:
    """A rule that a recipe breaks, at the first of the keys that it reads."""

    keys: tuple[str, ...]
    message: str
    remedy: str


Violations = Iterator[Violation]


def samples_per_rollout(recipe: Recipe) -> int:
    """Samples that one rollout gives to training."""
    return recipe.rollout.prompts_per_step * recipe.rollout.samples_per_prompt


def batch_size(recipe: Recipe) -> int:
    """Samples of one optimizer step; exact for a recipe that breaks no rule."""
    samples = samples_per_rollout(recipe)
    return recipe.train.global_batch_size or samples // (recipe.train.updates_per_rollout or 1)


def rollout_gpus(recipe: Recipe) -> int:
    """GPUs that generate: all of the trainer's where colocated. On a CPU, servers are counted like GPUs."""
    if recipe.cluster.colocate and recipe.cluster.gpus_per_node:
        return recipe.cluster.nodes * recipe.cluster.gpus_per_node
    return recipe.rollout.num_gpus


def offloads_rollout(recipe: Recipe) -> bool:
    """Whether engines release their memory while the policy trains: never while they generate beside it."""
    cluster = recipe.cluster
    chosen = cluster.colocate if cluster.offload_rollout is None else cluster.offload_rollout
    return chosen and recipe.rollout.mode == "sync"


def offloads_train(recipe: Recipe) -> bool:
    """Whether the trainer leaves its memory to engines that generate: never while it trains beside them."""
    cluster = recipe.cluster
    chosen = cluster.colocate if cluster.offload_train is None else cluster.offload_train
    return chosen and recipe.rollout.mode == "sync"


def divisors_near(number: int, wanted: int, multiple_of: int = 1) -> str:
    """The divisors of `number` next below and above `wanted`, for a remedy."""
    fitting = [d for d in range(1, number + 1) if number % d == 0 and d % multiple_of == 0]
    below = [d for d in fitting if d <= wanted][-1:]
    above = [d for d in fitting if d > wanted][:1]
    return " or ".join(map(str, below + above))


def training_has_a_length(recipe: Recipe) -> Violations:
    train = recipe.train
    if recipe.data and train.steps is None and train.epochs is None:
        yield Violation(("train.steps", "train.epochs"), "nothing says how long to train", "steps: 100")
    if train.steps and train.epochs:
        message = "steps and epochs are both given"
        yield Violation(("train.epochs", "train.steps"), message, "keep one of the two")


def training_has_a_reward(recipe: Recipe) -> Violations:
    if recipe.data and not recipe.rewards:
        yield Violation(
            ("rewards", "data"), "training needs a reward", "rewards: [NAME]; `rlcore list-plugins` shows them"
        )


def a_batch_is_sized_one_way(recipe: Recipe) -> Violations:
    if recipe.train.global_batch_size and recipe.train.updates_per_rollout:
        keys = ("train.updates_per_rollout", "train.global_batch_size")
        yield Violation(
            keys, "global_batch_size already says how many updates a rollout has", "keep one of the two"
        )


def optimizer_steps_divide_the_rollout(recipe: Recipe) -> Violations:
    samples, train = samples_per_rollout(recipe), recipe.train
    rollout = f"{recipe.rollout.prompts_per_step} × {recipe.rollout.samples_per_prompt} = {samples} samples"
    sizes = ("rollout.prompts_per_step", "rollout.samples_per_prompt")
    if train.global_batch_size and samples % train.global_batch_size:
        message = f"{train.global_batch_size} does not divide a rollout of {rollout}"
        yield Violation(
            ("train.global_batch_size", *sizes), message, divisors_near(samples, train.global_batch_size)
        )
    if train.updates_per_rollout and samples % train.updates_per_rollout:
        message = f"{train.updates_per_rollout} updates do not divide a rollout of {rollout}"
        remedy = divisors_near(samples, train.updates_per_rollout)
        yield Violation(("train.updates_per_rollout", *sizes), message, remedy)


def samples_of_one_prompt_stay_in_one_step(recipe: Recipe) -> Violations:
    samples, group = samples_per_rollout(recipe), recipe.rollout.samples_per_prompt
    batch = batch_size(recipe)
    key = "train.global_batch_size" if recipe.train.global_batch_size else "train.updates_per_rollout"
    if samples % batch == 0 and batch % group:
        message = f"batches of {batch} samples cut groups of {group} apart"
        whole = divisors_near(samples, batch, multiple_of=group)
        remedy = f"a batch of {whole} samples"
        yield Violation((key, "rollout.samples_per_prompt", "rollout.prompts_per_step"), message, remedy)


def over_sampling_asks_for_a_whole_rollout(recipe: Recipe) -> Violations:
    rollout = recipe.rollout
    if rollout.over_sampling_prompts and rollout.over_sampling_prompts < rollout.prompts_per_step:
        message = f"{rollout.over_sampling_prompts} is fewer than the {rollout.prompts_per_step} of one rollout"
        keys = ("rollout.over_sampling_prompts", "rollout.prompts_per_step")
        yield Violation(keys, message, f"at least {rollout.prompts_per_step}")


def training_explores(recipe: Recipe) -> Violations:
    if recipe.data and recipe.rollout.temperature == 0:
        message = "greedy samples of one prompt are all the same: there is nothing to learn from"
        yield Violation(
            ("rollout.temperature",), message, "1.0; evaluation sets have a temperature of their own"
        )


def responses_fit_the_context(recipe: Recipe) -> Violations:
    rollout = recipe.rollout
    if rollout.max_context_tokens and rollout.max_context_tokens <= rollout.max_response_tokens:
        message = f"no prompt fits beside {rollout.max_response_tokens} response tokens"
        keys = ("rollout.max_context_tokens", "rollout.max_response_tokens")
        yield Violation(keys, message, f"more than {rollout.max_response_tokens}")


def old_tokens_exist_where_they_are_masked(recipe: Recipe) -> Violations:
    rollout = recipe.rollout
    if rollout.mask_offpolicy and not rollout.partial and rollout.mode != "async":
        message = "no token is made by older weights here"
        yield Violation(("rollout.mask_offpolicy", "rollout.partial", "rollout.mode"), message, "partial: true")


def an_endless_rollout_is_never_cut_short(recipe: Recipe) -> Violations:
    rollout = recipe.rollout
    if rollout.mode == "async" and (rollout.partial or rollout.over_sampling_prompts):
        key = "rollout.partial" if rollout.partial else "rollout.over_sampling_prompts"
        message = "in mode async no response is cut short, and prompts are asked for ahead as it is"
        yield Violation((key, "rollout.mode"), message, "leave it out; max_staleness says how far ahead")


def bounds_are_in_order(recipe: Recipe) -> Violations:
    weights = recipe.algorithm.importance_sampling
    if weights.low > weights.high:
        keys = ("algorithm.importance_sampling.low", "algorithm.importance_sampling.high")
        yield Violation(keys, f"{weights.low} is above high = {weights.high}", f"at most {weights.high}")
    if recipe.optimizer.min_lr > recipe.optimizer.lr:
        message = f"{recipe.optimizer.min_lr} is above lr = {recipe.optimizer.lr}"
        yield Violation(("optimizer.min_lr", "optimizer.lr"), message, f"at most {recipe.optimizer.lr}")
    warmup, decay = recipe.optimizer.warmup_steps, recipe.optimizer.decay_steps
    if decay is not None and warmup >= decay:
        keys = ("optimizer.warmup_steps", "optimizer.decay_steps")
        yield Violation(
            keys, f"the warm-up of {warmup} steps leaves none of {decay} to decay", f"less than {decay}"
        )


def settings_have_what_they_modify(recipe: Recipe) -> Violations:
    optimizer, recompute, mtp, cluster = recipe.optimizer, recipe.recompute, recipe.mtp, recipe.cluster
    if optimizer.overlap_offload and not optimizer.cpu_offload:
        keys = ("optimizer.overlap_offload", "optimizer.cpu_offload")
        yield Violation(keys, "nothing is offloaded", "cpu_offload: true")
    if recompute.modules and recompute.granularity != "selective":
        keys = ("recompute.modules", "recompute.granularity")
        yield Violation(keys, f"granularity is {recompute.granularity}", "granularity: selective")
    if mtp.train and not mtp.num_layers:
        yield Violation(("mtp.train", "mtp.num_layers"), "no layer is loaded that could learn", "num_layers: 1")
    if (cluster.offload_train or cluster.offload_rollout) and not cluster.colocate:
        key = "cluster.offload_train" if cluster.offload_train else "cluster.offload_rollout"
        yield Violation((key, "cluster.colocate"), "trainer and engines share no GPU", "colocate: true")


def offloaded_states_are_those_of_bf16_weights(recipe: Recipe) -> Violations:
    """Megatron's hybrid optimizer fails when it reads the states of weights that are fp32 themselves."""
    sections = {"optimizer": recipe.optimizer, "sft.optimizer": recipe.sft and recipe.sft.optimizer}
    for name, optimizer in sections.items():
        if optimizer and optimizer.cpu_offload and recipe.model.dtype == "float32":
            keys = (f"{name}.cpu_offload", "model.dtype")
            yield Violation(
                keys, "a run in float32 could not be resumed", "cpu_offload: false, or dtype: bfloat16"
            )


def generation_gpus_make_whole_engines(recipe: Recipe) -> Violations:
    gpus, each = rollout_gpus(recipe), recipe.rollout.gpus_per_engine
    keys = ("rollout.gpus_per_engine", "rollout.num_gpus", "cluster.colocate", "cluster.gpus_per_node")
    if recipe.rollout.engine == "sglang" and gpus % each:
        yield Violation(
            keys, f"engines of {each} GPUs do not divide the {gpus} that generate", divisors_near(gpus, each)
        )


def servers_that_start_on_gpus_have_some(recipe: Recipe) -> Violations:
    rollout, cluster = recipe.rollout, recipe.cluster
    starts = rollout.engine == "sglang" and not rollout.sglang.urls
    if starts and cluster.gpus_per_node and not rollout_gpus(recipe):
        keys = ("rollout.num_gpus", "rollout.engine", "cluster.colocate", "cluster.gpus_per_node")
        yield Violation(keys, "no GPU is left for SGLang servers", "num_gpus: 8, or cluster: {colocate: true}")


def colocated_engines_use_the_trainers_gpus(recipe: Recipe) -> Violations:
    cluster, own = recipe.cluster, recipe.rollout.num_gpus
    if cluster.colocate and cluster.gpus_per_node and own not in (0, rollout_gpus(recipe)):
        message = f"{own} GPUs, but colocated engines share the trainer's {rollout_gpus(recipe)}"
        keys = ("rollout.num_gpus", "cluster.colocate", "cluster.nodes", "cluster.gpus_per_node")
        yield Violation(keys, message, "leave num_gpus out")


def memory_changes_hands_in_turn(recipe: Recipe) -> Violations:
    cluster, mode = recipe.cluster, recipe.rollout.mode
    asked = {"offload_train": cluster.offload_train, "offload_rollout": cluster.offload_rollout}
    for name in (name for name, value in asked.items() if value and mode != "sync"):
        message = f"in mode {mode} engines generate while the policy trains: both need their memory"
        remedy = f"{name}: false, and a mem_fraction_static that leaves room for both; or mode: sync"
        yield Violation((f"cluster.{name}", "rollout.mode"), message, remedy)


def server_groups_use_every_generation_gpu(recipe: Recipe) -> Violations:
    if isinstance(recipe.rollout.sglang.config, ServerGroups):
        yield from unfitting_groups(recipe, recipe.rollout.sglang.config)


def unfitting_groups(recipe: Recipe, servers: ServerGroups) -> Violations:
    """Yield where server groups, of the recipe or of its file, do not use the GPUs that generate."""
    key = "rollout.sglang.config"
    total = sum(group.num_gpus for model in servers.sglang for group in model.server_groups)
    if total != rollout_gpus(recipe):
        keys = (key, "rollout.num_gpus", "cluster.colocate", "cluster.nodes", "cluster.gpus_per_node")
        remedy = f"groups that add up to {rollout_gpus(recipe)}"
        yield Violation(keys, f"its groups have {total} GPUs, the rollout {rollout_gpus(recipe)}", remedy)
    for m, model in enumerate(servers.sglang):
        for g, group in enumerate(model.server_groups):
            each = group.num_gpus_per_engine or model.num_gpus_per_engine or recipe.rollout.gpus_per_engine
            if group.num_gpus % each:
                place = f"{key}.sglang.{m}.server_groups.{g}.num_gpus"
                message = f"{group.num_gpus} GPUs do not make whole engines of {each}"
                yield Violation((place, key), message, f"a multiple of {each}")


def evaluation_has_problems_to_solve(recipe: Recipe) -> Violations:
    if recipe.eval.every and not recipe.eval.datasets:
        yield Violation(
            ("eval.datasets", "eval.every"), "there is no set to evaluate on", "datasets: [{name: …, path: …}]"
        )
    for name, count in Counter(dataset.name for dataset in recipe.eval.datasets).items():
        if count > 1:
            yield Violation(
                ("eval.datasets",), f"{count} sets are called {name!r}", "a name of its own for each"
            )


def kept_checkpoints_are_written(recipe: Recipe) -> Violations:
    every, keep = recipe.checkpoints.every, recipe.checkpoints.keep_every
    if keep and (not every or keep % every):
        written = f"every {every} steps" if every else "only at the end"
        remedy = f"a multiple of {every}" if every else f"every: {keep}"
        keys = ("checkpoints.keep_every", "checkpoints.every")
        yield Violation(keys, f"checkpoints are written {written}", remedy)


def a_stalled_run_warns_before_it_ends(recipe: Recipe) -> Violations:
    warn, end = recipe.telemetry.stall_after, recipe.telemetry.end_stalled_after
    if end <= warn:
        message = f"{end:g} s is not after the warning, at {warn:g} s"
        yield Violation(("telemetry.end_stalled_after", "telemetry.stall_after"), message, f"{2 * warn:g}")


def secrets_stay_out_of_recipes(recipe: Recipe) -> Violations:
    for name in recipe.cluster.env:
        if is_secret(name):
            message = "a recipe is copied into every run folder and report; it must hold no secret"
            yield Violation(
                (f"cluster.env.{name}",), message, f"export {name} in the shell that starts the workers"
            )


RULES: tuple[Callable[[Recipe], Violations], ...] = (
    training_has_a_length,
    training_has_a_reward,
    a_batch_is_sized_one_way,
    optimizer_steps_divide_the_rollout,
    samples_of_one_prompt_stay_in_one_step,
    over_sampling_asks_for_a_whole_rollout,
    training_explores,
    responses_fit_the_context,
    old_tokens_exist_where_they_are_masked,
    an_endless_rollout_is_never_cut_short,
    bounds_are_in_order,
    settings_have_what_they_modify,
    offloaded_states_are_those_of_bf16_weights,
    generation_gpus_make_whole_engines,
    servers_that_start_on_gpus_have_some,
    colocated_engines_use_the_trainers_gpus,
    memory_changes_hands_in_turn,
    server_groups_use_every_generation_gpu,
    evaluation_has_problems_to_solve,
    kept_checkpoints_are_written,
    a_stalled_run_warns_before_it_ends,
    secrets_stay_out_of_recipes,
)


def violations(recipe: Recipe) -> Violations:
    """Yield every broken rule."""
    for rule in RULES:
        yield from rule(recipe)
