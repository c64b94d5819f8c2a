"""Answers of SGLang servers are put together from the parts in which they come."""

import pytest

from rlcore.errors import RlcoreError
from rlcore.rollout.sglang.answer import Answer


def part(total, tokens, version="0", **more):
    """A part that says `tokens`, after which the request has `total`."""
    listed = [[-0.5 * token, token, None] for token in tokens]
    return {
        "id": "r",
        "completion_tokens": total,
        "output_token_logprobs": listed,
        "weight_version": version,
        **more,
    }


def taken(*parts):
    answer = Answer()
    for one in parts:
        answer.take(one)
    return answer


LENGTH, ABORT = {"type": "length"}, {"type": "abort", "message": "Abort in waiting queue"}


@pytest.mark.parametrize(
    "parts",
    [
        [part(2, [1, 2]), part(3, [3]), part(4, [4], finish_reason=LENGTH)],
        [part(2, [1, 2]), part(3, [1, 2, 3]), part(4, [1, 2, 3, 4], finish_reason=LENGTH)],
        [part(4, [1, 2, 3, 4], finish_reason=LENGTH)],
    ],
    ids=["new tokens only", "all tokens each time", "one part"],
)
def test_however_it_comes_the_answer_is_the_same(parts):
    assert taken(*parts) == Answer([1, 2, 3, 4], [-0.5, -1.0, -1.5, -2.0], [0] * 4, "length")


def test_what_is_cut_short_in_the_queue_comes_once_more_and_counts_once():
    answer = taken(part(3, [1, 2, 3]), part(3, [1, 2, 3], finish_reason=ABORT))
    assert (answer.tokens, answer.finish) == ([1, 2, 3], "abort")


def test_what_is_aborted_before_it_began_is_empty():
    answer = taken({"id": "r", "completion_tokens": 0, "weight_version": "0", "finish_reason": ABORT})
    assert answer == Answer(finish="abort")


def test_tokens_after_a_stop_are_taken_back():
    assert taken(part(4, [1, 2, 3, 4]), part(3, [], finish_reason={"type": "stop"})).tokens == [1, 2, 3]


def test_the_end_says_which_weights_made_which_tokens():
    spans = [{"version": "3", "start": 0, "end": 1}, {"version": "4", "start": 1, "end": 3}]
    answer = taken(part(2, [1, 2], "4"), part(3, [3], "4", finish_reason=LENGTH, weight_versions=spans))
    assert answer.versions == [3, 4, 4]


def test_log_probs_that_are_no_numbers_are_told():
    broken = part(1, [5], "7")
    broken["output_token_logprobs"][0][0] = None
    with pytest.raises(RlcoreError, match="version 7 give logits that are not finite"):
        taken(broken)


def test_tokens_without_log_probs_are_no_answer():
    with pytest.raises(RlcoreError, match="of 4 new tokens 1 have log-probs"):
        taken(part(1, [1]), part(5, [5], finish_reason=LENGTH))


def test_a_request_that_the_server_gives_up_says_why():
    reason = {"type": "abort", "message": "out of memory", "status_code": 500}
    with pytest.raises(RlcoreError, match="out of memory"):
        taken(part(0, [], finish_reason=reason))
