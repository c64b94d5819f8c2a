import torch
from torch import nn

from rlcore.trainer.choices import before_first_difference, joined, recorded_choices


class Router(nn.Module):
    """A router as transformers has them: its last result are the indices of the experts."""

    def __init__(self):
        super().__init__()
        self.e_score_correction_bias = torch.zeros(3)

    def forward(self, indices_tk):
        return None, None, indices_tk


def test_choices_are_recorded_in_rising_order_while_the_context_lasts():
    model = nn.Sequential(nn.Identity(), Router())
    with recorded_choices(model) as choices:
        model(torch.tensor([[2, 0], [1, 2]]))
    model(torch.tensor([[0, 1], [0, 1]]))
    assert [chosen.tolist() for chosen in choices] == [[[0, 2], [1, 2]]]


def test_choices_of_layers_are_joined_and_there_may_be_none():
    assert joined([torch.tensor([[0, 1]]), torch.tensor([[2, 3]])], tokens=1).tolist() == [[0, 1, 2, 3]]
    assert joined([], tokens=5).shape == (5, 0)


def test_what_follows_a_difference_is_marked_out_to_the_end_of_its_sequence():
    ours = torch.tensor([[1], [2], [3], [4], [5]])
    theirs = torch.tensor([[1], [9], [3], [4], [5]])
    assert before_first_difference(ours, theirs, (3, 2)).tolist() == [True, False, False, True, True]
    none = torch.empty(5, 0)
    assert before_first_difference(none, none, (3, 2)).all()
