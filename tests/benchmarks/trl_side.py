"""The TRL half of bench_grpo_iteration.py: runs in an environment that holds trl, prints JSON.

Usage: python trl_side.py SPEC.json, with checkpoint folder, prompts, and response lengths in SPEC.json.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class FixedLengths(LogitsProcessor):
    """Ends row i of a batch after exactly lengths[i] new tokens, so that both sides make the same tokens."""

    def __init__(self, lengths: list[int], prompt_tokens: int, eos: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.prompt_tokens = prompt_tokens
        self.eos = eos

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        made = input_ids.shape[1] - self.prompt_tokens
        last = made == self.lengths - 1
        scores[:, self.eos] = -torch.inf
        scores[last] = -torch.inf
        scores[last, self.eos] = 0.0
        return scores


class Clock(TrainerCallback):
    """Wall seconds from one optimizer step's end to the next: rollout, rewards, training and all between."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.ends.append(time.perf_counter())


def count_reward(completions: list[str], **kwargs: object) -> list[float]:
    return [float(text.count("1")) for text in completions]


def main(spec: dict) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(spec["checkpoint"])
    model = AutoModelForCausalLM.from_pretrained(spec["checkpoint"], dtype=torch.float32)
    lengths = spec["lengths"]
    generate = model.generate
    limits = FixedLengths(lengths, spec["prompt_tokens"], tokenizer.eos_token_id)
    model.generate = lambda *args, **kwargs: generate(*args, **kwargs, logits_processor=[limits])
    clock = Clock()
    config = GRPOConfig(
        output_dir="trl-out",
        per_device_train_batch_size=len(lengths),
        num_generations=spec["samples_per_prompt"],
        steps_per_generation=1,
        max_completion_length=max(lengths),
        max_steps=spec["iterations"] + 1,
        learning_rate=1e-6,
        beta=0.0,
        temperature=1.0,
        top_k=0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=count_reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": spec["prompts"] * (spec["iterations"] + 1)}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    seconds = [later - earlier for earlier, later in zip(clock.ends, clock.ends[1:], strict=False)]
    return {"seconds": seconds, "tokens": sum(lengths)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
