import pytest
from rlcore_glm45.demo import DEMO

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
    section = Dataset(path=demo / "held_out.jsonl", chat_template_options={"enable_thinking": False})
    rows = load_rows(section)
    prompts, _ = tokenize_prompts(rows, tokenizer, section)
    question = f"[gMASK]<sop><|user|>\n{rows[0].prompt}/nothink"
    assert tokenizer.decode(prompts[0].tokens) == f"{question}<|assistant|>\n<think></think>"


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


CHAT = [
    {"role": "user", "content": "12+30?"},
    {"role": "assistant", "content": "<think>easy</think>\n42"},
    {"role": "user", "content": "And 1 more?"},
]


def test_a_turn_reasons_unless_told_not_to_and_old_reasoning_is_forgotten(demo):
    tokenizer = load_tokenizer(demo / "model")
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    first = "[gMASK]<sop><|user|>\n12+30?<|assistant|>\n<think></think>\n42"
    assert text == f"{first}<|user|>\nAnd 1 more?<|assistant|>"
    last = {"role": "assistant", "reasoning_content": "42+1", "content": "43"}
    text = tokenizer.apply_chat_template([*CHAT, last], tokenize=False)
    assert text.endswith("And 1 more?<|assistant|>\n<think>42+1</think>\n43")


def test_only_what_the_model_says_is_learnt(demo):
    tokenizer = load_tokenizer(demo / "model")
    chat = [*CHAT, {"role": "assistant", "content": "43"}]

    def learnt(**options):
        rendered = tokenizer.apply_chat_template(
            chat, return_dict=True, return_assistant_tokens_mask=True, **options
        )
        pairs = zip(rendered["input_ids"], rendered["assistant_masks"], strict=True)
        return tokenizer.decode([token for token, mask in pairs if mask])

    assert learnt() == "\n<think></think>\n42\n<think></think>\n43"
    assert learnt(enable_thinking=False) == "\n42\n43"


def test_the_template_shows_tools_calls_and_answers(demo):
    tokenizer = load_tokenizer(demo / "model")
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
    assert "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>12</arg_value>\n" in text
    responses = "".join(f"\n<tool_response>\n{number}\n</tool_response>" for number in (42, 43))
    assert text.endswith(f"</tool_call><|observation|>{responses}")
