from rlcore.cluster.heartbeat import Beat, Heart, stall


def test_the_rank_that_came_least_far_is_waited_for():
    beats = {
        0: Beat("optimizer step", 5, 130.0),
        1: Beat("micro-batch 2 of 4", 2, 131.0),
        2: Beat(None, 5, 140.0),
    }
    found = stall("train_step", beats, 0.0)
    assert found.seconds == 130.0
    assert found.text == (
        "rank 1 is in train_step: micro-batch 2 of 4 since 131 s; "
        "ranks 0, 2 wait for it (optimizer step since 130 s)"
    )


def test_a_rank_that_does_not_answer_is_waited_for_wherever_others_are():
    found = stall("save", {0: None, 1: Beat("start", 0, 7.0)}, 0.0)
    assert found.text.startswith("rank 0 does not answer in save")
    assert "rank 1 waits for it (start since 7 s)" in found.text


def test_ranks_that_all_stand_at_one_place_are_all_named():
    found = stall(
        "log_probs", {0: Beat("micro-batch 1 of 1", 1, 9.0), 1: Beat("micro-batch 1 of 1", 1, 9.0)}, 0.0
    )
    assert "rank 0 is" in found.text
    assert "rank 1 is" in found.text
    assert "wait" not in found.text


def test_a_rank_says_its_phase_and_since_when():
    now = [0.0]
    heart = Heart(clock=lambda: now[0])
    heart.begin()
    heart.enter("loading weights")
    now[0] = 4.0
    assert heart.beat() == Beat("loading weights", 1, 4.0)
    heart.end()
    assert heart.beat().phase is None


def test_where_nobody_answers_the_silence_counts():
    assert stall("save", {0: None, 1: None}, 12.0).seconds == 12.0
