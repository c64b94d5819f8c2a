import pytest
from rlcore_glm52_dsa.demo import DEMO

from rlcore.config.generation import Dataset
from rlcore.data.chat import tokenize_prompts
from rlcore.data.datasets import load_rows
from rlcore.data.tokenizer import load_tokenizer, stop_token_ids


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    DEMO.write(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(demo):
    return load_tokenizer(demo / "model")


def test_prompts_are_rendered_in_the_form_of_the_published_model(demo, tokenizer):
    section = Dataset(path=demo / "held_out.jsonl", chat_template_options={"enable_thinking": False})
    rows = load_rows(section)
    prompts, _ = tokenize_prompts(rows, tokenizer, section)
    question = f"[gMASK]<sop><|user|>{rows[0].prompt}"
    assert tokenizer.decode(prompts[0].tokens) == f"{question}<|assistant|><think></think>"


def test_prompts_are_longer_than_the_keys_that_a_query_sees(demo, tokenizer):
    section = Dataset(path=demo / "held_out.jsonl", chat_template_options={"enable_thinking": False})
    prompts, _ = tokenize_prompts(load_rows(section), tokenizer, section)
    assert min(len(prompt.tokens) for prompt in prompts) > DEMO.config["index_topk"]


def test_a_response_ends_with_the_end_of_text_or_the_next_turn(demo, tokenizer):
    stops = tokenizer.convert_ids_to_tokens(stop_token_ids(demo / "model"))
    assert stops == ["<|endoftext|>", "<|user|>", "<|observation|>"]


CHAT = [
    {"role": "user", "content": "12+30?"},
    {"role": "assistant", "content": "<think>easy</think>\n42"},
    {"role": "user", "content": "And 1 more?"},
]


def test_a_turn_reasons_unless_told_not_to_and_old_reasoning_is_forgotten(tokenizer):
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    first = "[gMASK]<sop><|system|>Reasoning Effort: Max<|user|>12+30?<|assistant|><think></think>42"
    assert text == f"{first}<|user|>And 1 more?<|assistant|><think>"
    last = {"role": "assistant", "reasoning_content": "42+1", "content": "43"}
    text = tokenizer.apply_chat_template([*CHAT, last], tokenize=False)
    assert text.endswith("And 1 more?<|assistant|><think>42+1</think>43")


@pytest.mark.parametrize(("asked", "said"), [("high", "High"), ("max", "Max"), ("low", "Max")])
def test_a_system_turn_says_how_much_to_reason(tokenizer, asked, said):
    text = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, reasoning_effort=asked)
    assert text == f"[gMASK]<sop><|system|>Reasoning Effort: {said}<|user|>12+30?"


@pytest.mark.parametrize(("thinking", "learnt"), [(True, "42sure</think>43"), (False, "4243")])
def test_what_follows_the_prompt_is_learnt(tokenizer, thinking, learnt):
    rendered = tokenizer.apply_chat_template(
        [*CHAT, {"role": "assistant", "content": "<think>sure</think>43"}],
        return_dict=True,
        return_assistant_tokens_mask=True,
        enable_thinking=thinking,
    )
    pairs = zip(rendered["input_ids"], rendered["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, mask in pairs if mask]) == learnt


def test_the_template_shows_tools_calls_and_answers(tokenizer):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 12, "b": 30}}}
    chat = [
        {"role": "user", "content": "12+30?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42"},
        {"role": "tool", "content": "43"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    text = tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)
    assert '<tools>\n{"name": "add"}\n</tools>' in text
    assert "<tool_call>add<arg_key>a</arg_key><arg_value>12</arg_value><arg_key>b" in text
    responses = "<tool_response>42</tool_response><tool_response>43</tool_response>"
    assert text.endswith(f"</tool_call><|observation|>{responses}")
