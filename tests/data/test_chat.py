import pytest

from rlcore.config.generation import Dataset
from rlcore.data.chat import tokenize_prompts
from rlcore.data.datasets import load_rows
from rlcore.errors import RlcoreError


@pytest.fixture
def tokenize(write_rows, tokenizer):
    def run(*prompts, **settings):
        section = Dataset(path=write_rows(*({"prompt": prompt} for prompt in prompts)), **settings)
        return tokenize_prompts(load_rows(section), tokenizer, section)

    return run


def test_a_text_becomes_one_user_message_and_the_assistants_turn_begins(tokenize, tokenizer):
    [prompt], _ = tokenize("1 + 1?")
    assert tokenizer.decode(prompt.tokens) == "<|user|>1 + 1?<|assistant|>"


def test_a_chat_is_rendered_whole(tokenize, tokenizer):
    [prompt], _ = tokenize([{"role": "system", "content": "Add."}, {"role": "user", "content": "1 1"}])
    assert tokenizer.decode(prompt.tokens) == "<|system|>Add.<|user|>1 1<|assistant|>"


def test_without_a_template_a_text_is_taken_as_it_stands(tokenize, tokenizer):
    [prompt], _ = tokenize("1 + 1 =", chat_template=False)
    assert tokenizer.decode(prompt.tokens) == "1 + 1 ="


def test_options_reach_the_template(tokenize, tokenizer):
    [prompt], _ = tokenize("hi", chat_template_options={"brief": True})
    assert tokenizer.decode(prompt.tokens).startswith("<|system|>Be brief.")


def test_an_option_that_the_template_never_reads_is_an_error(tokenize):
    with pytest.raises(RlcoreError, match=r"chat_template_options\.breif: the chat template never reads"):
        tokenize("hi", chat_template_options={"breif": True})


def test_long_prompts_are_left_out_and_counted(tokenize):
    prompts, left_out = tokenize("a" * 50, "bb", max_prompt_tokens=10)
    assert [prompt.row.prompt for prompt in prompts] == ["bb"]
    assert left_out == 1


def test_a_limit_that_leaves_no_prompt_says_what_would(tokenize):
    with pytest.raises(RlcoreError, match="at least 12"):
        tokenize("a" * 10, "a" * 20, max_prompt_tokens=5)


def test_a_chat_that_the_template_rejects_is_named_by_line(tokenize, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RlcoreError, match=r"rows\.jsonl:2: the chat template rejects this chat: roles must"):
        tokenize("a", "b")


def test_a_tokenizer_without_a_template_names_the_way_out(tokenize, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(RlcoreError, match="chat_template: false"):
        tokenize("a")
