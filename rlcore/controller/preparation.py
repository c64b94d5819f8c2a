"""Everything about a run that can be wrong is found out here, before a folder is made or a process started."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.bridge.check import missing_mtp_weights
from rlcore.bridge.safetensors_io import SafetensorsFolder
from rlcore.config.checks import check
from rlcore.config.load import LoadedRecipe
from rlcore.config.schema import Dataset, Recipe
from rlcore.config.support import unbuilt
from rlcore.controller.evaluation import EvaluationSet
from rlcore.controller.selection import ModelPlugins, select_model
from rlcore.data.chat import Prompt, tokenize_prompts
from rlcore.data.datasets import load_rows
from rlcore.data.tokenizer import load_tokenizer, stop_token_ids
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any
from rlcore.layout.model import place_loaded
from rlcore.layout.plan import Layout
from rlcore.layout.seats import check_seats
from rlcore.layout.server_rules import check_servers
from rlcore.registry import Catalog

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """A recipe whose plugins, checkpoint and tokenizer are known to be sound.

    `context_tokens` is the most that a prompt and its response may have together.
    """

    loaded: LoadedRecipe
    catalog: Catalog
    checkpoint: Path
    model: ModelPlugins
    layout: Layout
    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: tuple[int, ...]
    context_tokens: int

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe


def prepare(loaded: LoadedRecipe, command: str) -> Prepared:
    """Check a recipe for `command` ("train", "sft" or "eval"); raises RlcoreError with every problem found."""
    recipe = loaded.recipe
    catalog = Catalog.installed(recipe.plugins.deny, recipe.plugins.require)
    placed, misplaced = place_loaded(loaded, catalog)
    problems = [*check(loaded, catalog), *misplaced, *check_servers(loaded, placed.spec if placed else None)]
    problems += [*check_seats(loaded), *unbuilt(loaded), *_missing_section(recipe, command)]
    raise_if_any(dict.fromkeys(problems))
    assert placed is not None, "only a recipe with problems has no layout"
    checkpoint = _checkpoint_folder(recipe)
    model = select_model(catalog, recipe, placed.spec)
    raise_if_any(_damaged_weights(recipe, checkpoint, command))
    raise_if_any(_missing_mtp_weights(loaded, model, checkpoint))
    return Prepared(
        loaded,
        catalog,
        checkpoint,
        model,
        placed.layout,
        load_tokenizer(checkpoint),
        stop_token_ids(checkpoint),
        recipe.rollout.max_context_tokens or int(placed.spec.hf_config["max_position_embeddings"]),
    )


def load_prompts(prepared: Prepared, section: Dataset) -> list[Prompt]:
    """Read and tokenize a dataset of the recipe, saying how many prompts were too long.

    Raises RlcoreError for bad rows, and if the model has no room for a response to the longest prompt.
    """
    prompts, dropped = tokenize_prompts(load_rows(section), prepared.tokenizer, section)
    if dropped:
        print(f"{section.path}: left out {dropped} prompts longer than {section.max_prompt_tokens} tokens")
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    if len(longest.tokens) >= prepared.context_tokens:
        message = f"the prompt has {len(longest.tokens)} tokens, the context only {prepared.context_tokens}"
        remedy = f"max_prompt_tokens: {prepared.context_tokens // 2} leaves longer prompts out"
        raise fail(longest.row.place, message, remedy)
    return prompts


def evaluation_sets(prepared: Prepared) -> list[EvaluationSet]:
    """Read every evaluation set of the recipe; raises RlcoreError with the problems of all of them."""
    sets: list[EvaluationSet] = []
    problems: list[Problem] = []
    for settings in prepared.recipe.eval.datasets:
        try:
            sets.append(EvaluationSet(settings, load_prompts(prepared, settings)[: settings.limit]))
        except RlcoreError as error:
            problems.extend(error.problems)
    raise_if_any(problems)
    return sets


def _missing_section(recipe: Recipe, command: str) -> list[Problem]:
    """The section that this command works on, if the recipe lacks it."""
    needs = {
        "train": ("data", recipe.data, "data: {path: prompts.jsonl}"),
        "sft": ("sft", recipe.sft, "sft: {data: {path: answers.jsonl}}"),
        "eval": ("eval.datasets", recipe.eval.datasets, "datasets: [{name: NAME, path: problems.jsonl}]"),
    }
    key, section, remedy = needs[command]
    return [] if section else [Problem(key, f"rlcore {command} needs this section", remedy)]


def _damaged_weights(recipe: Recipe, checkpoint: Path, command: str) -> Iterator[Problem]:
    """Files, of any checkpoint that the command reads, that are missing or torn."""
    load, reference = recipe.model.load, recipe.algorithm.kl.reference
    read = {"train": (checkpoint, load, reference), "sft": (checkpoint, load), "eval": (checkpoint,)}[command]
    for folder in (Path(each).expanduser() for each in read if each):
        if (folder / "metadata.json").is_file():
            # A run that reads no torch_dist checkpoint need not wait for Megatron here.
            from rlcore.trainer.contents import damage

            yield from damage(folder)
        # Servers that run already have weights of their own.
        if not any(folder.glob("*.safetensors*")):
            continue
        try:
            with SafetensorsFolder(folder):
                pass
        except RlcoreError as error:
            yield from error.problems


def _missing_mtp_weights(loaded: LoadedRecipe, model: ModelPlugins, checkpoint: Path) -> Iterator[Problem]:
    """Files, of the policy or its reference, that lack MTP layers which config.json has and a recipe wants."""
    recipe, layers = loaded.recipe, loaded.recipe.mtp.num_layers
    folders = {"mtp.num_layers": recipe.model.load or checkpoint}
    if recipe.algorithm.kl.reference:
        folders["algorithm.kl.reference"] = Path(recipe.algorithm.kl.reference)
    for key, folder in folders.items():
        # A torch_dist checkpoint says by itself what it lacks.
        if not layers or not any(folder.expanduser().glob("*.safetensors")):
            continue
        with SafetensorsFolder(folder.expanduser()) as source:
            missing = missing_mtp_weights(model.bridge, source, layers)
        if missing:
            message = f"{folder} lacks {len(missing)} tensors of its MTP layers, such as {missing[0]}"
            remedy = (
                "mtp.num_layers: 0, or a checkpoint that has them: transformers drops them when it saves one"
            )
            yield Problem(loaded.place(key), message, remedy)


def _checkpoint_folder(recipe: Recipe) -> Path:
    folder = Path(recipe.model.checkpoint).expanduser()
    if not folder.is_dir():
        remedy = f"hf download {recipe.model.checkpoint} --local-dir FOLDER, then --set model.checkpoint=FOLDER"
        raise fail(
            "model.checkpoint", f"there is no folder {recipe.model.checkpoint!r} on this machine", remedy
        )
    return folder
