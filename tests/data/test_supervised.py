import pytest

from rlcore.config.generation import Dataset
from rlcore.config.training import SFT
from rlcore.data.chat import tokenize_prompts
from rlcore.data.datasets import load_rows
from rlcore.data.supervised import batch_at, supervised_samples
from rlcore.errors import RlcoreError

CHAT = [
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]


@pytest.fixture
def supervise(write_rows, tokenizer):
    def run(*rows, answer_key="answer", **settings):
        section = Dataset(path=write_rows(*rows), **settings)
        sft = SFT(data=section, answer_key=answer_key)
        stop_ids = tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>"])
        return supervised_samples(load_rows(section), tokenizer, sft, stop_ids)

    return run


@pytest.fixture(params=["generation tags", "prefix differences"])
def template(request, tokenizer, monkeypatch):
    if request.param == "prefix differences":
        monkeypatch.setattr(tokenizer, "chat_template", without_tags(tokenizer))


def without_tags(tokenizer):
    return tokenizer.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def learnt(sample):
    return [token for token, mask in zip(sample.tokens, sample.loss_mask, strict=True) if mask]


@pytest.mark.usefixtures("template")
def test_the_answer_and_its_end_are_learnt_and_the_prompt_is_not(supervise, tokenizer):
    [sample], _ = supervise({"prompt": "1+1", "answer": "2"})
    assert tokenizer.decode(sample.prompt_tokens) == "<|user|>1+1<|assistant|>"
    assert tokenizer.decode(learnt(sample)) == "2<|end|>"


@pytest.mark.usefixtures("template")
def test_a_supervised_prompt_has_the_tokens_that_generation_will_see(supervise, tokenizer, write_rows):
    [sample], _ = supervise({"prompt": "1+1", "answer": "2"})
    section = Dataset(path=write_rows({"prompt": "1+1"}))
    [prompt], _ = tokenize_prompts(load_rows(section), tokenizer, section)
    assert sample.prompt_tokens == prompt.tokens


@pytest.mark.usefixtures("template")
def test_every_assistant_turn_of_a_whole_chat_is_learnt_with_the_stop_after_it(supervise, tokenizer):
    [sample], _ = supervise({"prompt": CHAT})
    assert tokenizer.decode(sample.tokens) == "2<|user|>2+2<|assistant|>4<|end|>"
    assert tokenizer.decode(learnt(sample)) == "2<|user|>4<|end|>"


def test_a_template_that_rewrites_earlier_turns_needs_generation_tags(supervise, tokenizer, monkeypatch):
    forgetful = without_tags(tokenizer).replace("for m in messages", "for m in messages[-2:]")
    monkeypatch.setattr(tokenizer, "chat_template", forgetful)
    with pytest.raises(RlcoreError, match=r"rows\.jsonl:1: the chat template rewrites earlier turns"):
        supervise({"prompt": CHAT})


def test_text_without_a_template_is_learnt_after_the_prompt(supervise, tokenizer):
    [sample], _ = supervise({"prompt": "1+1=", "answer": "2"}, chat_template=False)
    assert tokenizer.decode(sample.prompt_tokens) == "1+1="
    assert tokenizer.decode(learnt(sample)) == "2<|end|>"


def test_the_answer_may_stand_in_the_metadata(supervise, tokenizer):
    [sample], _ = supervise({"prompt": "1+1", "metadata": {"solution": "two"}}, answer_key="solution")
    assert tokenizer.decode(learnt(sample)) == "two<|end|>"


def test_rows_without_an_answer_are_named_with_the_keys_they_have(supervise):
    with pytest.raises(RlcoreError) as caught:
        supervise({"prompt": "1+1", "answr": "2"}, {"prompt": "1+1", "answer": 3})
    assert [problem.place.rpartition(":")[2] for problem in caught.value.problems] == ["1", "2"]
    assert "one of prompt, answr" in caught.value.problems[0].remedy


def test_rows_with_long_prompts_are_left_out_and_counted(supervise):
    rows = [{"prompt": "a" * 30, "answer": "b"}, {"prompt": "a", "answer": "b"}]
    samples, left_out = supervise(*rows, max_prompt_tokens=8)
    assert (len(samples), left_out) == (1, 1)


def test_batches_walk_through_every_sample_once_an_epoch(supervise):
    samples, _ = supervise(*({"prompt": str(number), "answer": "x"} for number in range(6)))
    batches = [batch_at(samples, step, batch_size=4, seed=1) for step in range(3)]
    seen = [sample.prompt for batch in batches for sample in batch]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list("012345")
    assert batch_at(samples, 1, batch_size=4, seed=1) == batches[1]
    assert batch_at(samples, 1, batch_size=4, seed=2) != batches[1]
