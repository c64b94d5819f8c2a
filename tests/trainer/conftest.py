"""A tiny model with random weights, in a checkpoint made by transformers, and trainers that load it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rlcore_glm4.plugin import glm4_bridge, glm4_spec

from rlcore.config.schema import Model, Parallel
from rlcore.data.train_sample import TrainSample
from rlcore.testing.tiny import tiny_checkpoint
from rlcore.trainer.setup import process_groups
from rlcore.trainer.trainer import Trainer

CONFIG = {
    "model_type": "glm4",
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}


# Of each module, for tests of another folder may leave the groups in between.
@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    torch.set_num_threads(1)
    with process_groups(Parallel(), seed=0):
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint(folder, CONFIG, jitter=0.05)
    return folder


@pytest.fixture
def make_trainer(checkpoint: Path):
    """Gives a trainer of the tiny checkpoint; keywords go to Trainer, `dtype` and `load` to its model."""

    def make(dtype: str = "float32", load: Path | None = None, **keywords) -> Trainer:
        spec = glm4_spec(CONFIG)
        model = Model(checkpoint=str(checkpoint), dtype=dtype, load=load)
        return Trainer(spec, glm4_bridge(spec), checkpoint, model=model, **keywords)

    return make


@pytest.fixture
def make_samples():
    """Gives samples with random tokens, advantages and log-probs; `lengths` are (prompt, response) pairs."""

    def make(lengths, seed=0, **fields) -> list[TrainSample]:
        generator = torch.Generator().manual_seed(seed)
        samples = []
        for number, (prompt, response) in enumerate(lengths):
            tokens = torch.randint(1, CONFIG["vocab_size"], (prompt + response,), generator=generator)
            mask = (torch.rand(response, generator=generator) < 0.8).float()
            per_token = {
                "loss_mask": mask.tolist(),
                "advantages": torch.randn(1, generator=generator).expand(response).tolist(),
                "old_log_probs": (-5 + torch.randn(response, generator=generator) / 4).tolist(),
            }
            samples.append(
                TrainSample(
                    name=f"sample {number}",
                    tokens=tokens.tolist(),
                    prompt_length=prompt,
                    **{**per_token, **fields},
                )
            )
        return samples

    return make
