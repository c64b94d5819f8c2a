import json

import pytest
from rlcore_glm4.demo import CONFIG, additions, write_demo

from rlcore.config.generation import Dataset
from rlcore.data.chat import tokenize_prompts
from rlcore.data.datasets import load_rows
from rlcore.data.tokenizer import load_tokenizer, stop_token_ids


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return folder


def test_held_out_numbers_stand_in_no_training_problem():
    sets = additions()
    numbers = {name: {number for pair in pairs for number in pair} for name, pairs in sets.items()}
    assert not numbers["held_out"] & (numbers["warm_start"] | numbers["train"])
    assert len(set(sets["held_out"])) >= 500


def test_the_demo_is_the_same_every_time_but_for_the_weights_seed(demo, tmp_path):
    write_demo(tmp_path, seed=1)
    for name in ("warm_start", "train", "held_out"):
        assert (demo / f"{name}.jsonl").read_bytes() == (tmp_path / f"{name}.jsonl").read_bytes()
    weights = "model/model.safetensors"
    assert (demo / weights).read_bytes() != (tmp_path / weights).read_bytes()
    write_demo(tmp_path, seed=0)
    assert (demo / weights).read_bytes() == (tmp_path / weights).read_bytes()


def test_prompts_are_rendered_in_the_form_of_the_published_models(demo):
    tokenizer = load_tokenizer(demo / "model")
    section = Dataset(path=demo / "held_out.jsonl")
    rows = load_rows(section)
    prompts, _ = tokenize_prompts(rows, tokenizer, section)
    assert tokenizer.decode(prompts[0].tokens) == f"[gMASK]<sop><|user|>\n{rows[0].prompt}<|assistant|>"


def test_engine_and_trainer_round_alike_because_attention_never_takes_the_kernels_for_few_rows(demo):
    tokenizer = load_tokenizer(demo / "model")
    section = Dataset(path=demo / "train.jsonl")
    prompts, _ = tokenize_prompts(load_rows(section), tokenizer, section)
    assert CONFIG["num_attention_heads"] // CONFIG["num_key_value_heads"] >= 4
    assert min(len(prompt.tokens) for prompt in prompts) > 16


def test_a_response_ends_with_the_end_of_text_or_the_next_turn(demo):
    tokenizer = load_tokenizer(demo / "model")
    stops = tokenizer.convert_ids_to_tokens(stop_token_ids(demo / "model"))
    assert stops == ["<|endoftext|>", "<|user|>", "<|observation|>"]


def test_the_template_shows_tools_and_what_they_answer_and_forgets_old_reasoning(demo):
    tokenizer = load_tokenizer(demo / "model")
    chat = [
        {"role": "user", "content": "12+30?"},
        {"role": "assistant", "content": "<think>easy</think>\n42"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "<think>sure</think>\n42"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    text = tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)
    assert json.dumps({"name": "add"}, indent=4) in text
    assert text.endswith("<|assistant|>\n42<|observation|>\n42<|assistant|>\n<think>sure</think>\n42")
