import torch

from rlcore.models.shared_rows import SharedRows

LENGTHS = [4, 3, 5]


def test_equal_beginnings_have_one_row_for_each_of_their_places():
    rows = SharedRows.of([[7, 8], [7, 8], [7, 8]], LENGTHS)
    assert rows.row_w.tolist() == [0, 1, 2, 3, 0, 1, 4, 0, 1, 5, 6, 7]
    assert rows.first_u.tolist() == [0, 1, 2, 3, 6, 9, 10, 11]
    assert rows.absent == 4


def test_beginnings_that_differ_have_rows_of_their_own():
    rows = SharedRows.of([[7, 8], [7], [7, 8]], LENGTHS)
    assert rows.row_w.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 7, 8, 9]


def test_nothing_is_shared_where_that_saves_little():
    assert SharedRows.of([[7, 8], [7], [8]], LENGTHS) is None
    assert SharedRows.of([[7], [7]], [40, 40]) is None


def test_padding_has_rows_of_its_own():
    rows = SharedRows.of([[7, 8], [7, 8], [7, 8]], LENGTHS).padded(14)
    assert rows.row_w.tolist()[-3:] == [7, 8, 9]
    assert rows.first_u.tolist()[-3:] == [11, 12, 13]


def test_rows_are_spread_over_their_tokens_and_back():
    rows = SharedRows.of([[7, 8], [7, 8], [7, 8]], LENGTHS)
    x_uh = torch.randn(8, 2)
    torch.testing.assert_close(rows.once(rows.spread(x_uh)), x_uh, rtol=0, atol=0)
