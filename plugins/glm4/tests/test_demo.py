import json

import pytest
from rlcore_glm4.demo import DEMO

from rlcore.config.generation import Dataset
from rlcore.data.chat import tokenize_prompts
from rlcore.data.datasets import load_rows
from rlcore.data.tokenizer import load_tokenizer, stop_token_ids


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    DEMO.write(folder)
    return folder


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
    assert DEMO.config["num_attention_heads"] // DEMO.config["num_key_value_heads"] >= 4
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
