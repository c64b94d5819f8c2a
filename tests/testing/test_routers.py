import torch
from megatron.core.transformer.moe.router import TopKRouter

from rlcore.testing.routers import choice_margins


class Router(TopKRouter):
    """What `routing` reads of a router, without Megatron's process groups."""

    def __init__(self, topk, experts):
        torch.nn.Module.__init__(self)
        self.topk = topk
        self.expert_bias = torch.zeros(experts)

    def route(self, monkeypatch, logits):
        monkeypatch.setattr(TopKRouter, "routing", lambda router, logits, **_: "chosen")
        with choice_margins() as found:
            assert self.routing(logits) == "chosen"
        return found


def test_the_margin_is_that_of_the_token_nearest_to_a_tie(monkeypatch):
    logits = torch.logit(torch.tensor([[0.9, 0.5, 0.3, 0.1], [0.8, 0.6, 0.59, 0.2]]))
    (margin,) = Router(2, 4).route(monkeypatch, logits)
    assert abs(margin - 0.01) < 1e-6


def test_biases_count_as_they_do_for_the_choice(monkeypatch):
    router = Router(1, 2)
    router.expert_bias = torch.tensor([0.0, 0.3])
    (margin,) = router.route(monkeypatch, torch.logit(torch.tensor([[0.6, 0.5]])))
    assert abs(margin - 0.2) < 1e-6


def test_who_takes_all_experts_chooses_none(monkeypatch):
    assert Router(2, 2).route(monkeypatch, torch.zeros(3, 2)) == []
