"""Who has which GPUs of which node: ranks in order, servers within a node or on whole ones."""

import pytest

from rlcore.config.load import load_recipe
from rlcore.config.schema import Cluster, Model, Parallel, Recipe, Rollout
from rlcore.errors import RlcoreError
from rlcore.layout.groups import groups
from rlcore.layout.plan import Layout, layout_of
from rlcore.layout.seats import Seat, check_seats, coordinates, server_seats, trainer_seats
from rlcore.layout.servers import servers_of


def recipe(nodes=1, gpus=8, generating=0, each=1, config=None, colocate=False, **parallel):
    return Recipe(
        model=Model(checkpoint="some/model"),
        cluster=Cluster(nodes=nodes, gpus_per_node=gpus, colocate=colocate),
        rollout=Rollout(engine="sglang", num_gpus=generating, gpus_per_engine=each, sglang={"config": config}),
        parallel=Parallel(**parallel),
    )


def seats(made, node_gpus=8):
    """(node, GPUs) of every part of every server, group by group."""
    found = server_seats(made, servers_of(made), node_gpus)
    return [[[(seat.node, list(seat.gpus)) for seat in parts] for parts in group] for group in found]


def test_ranks_fill_nodes_in_order_so_that_tp_stays_inside_one():
    made = recipe(nodes=2, gpus=4, tp=2, cp=2)
    found = trainer_seats(made, 8)
    assert [(seat.node, *seat.gpus) for seat in found] == [(n, g) for n in range(2) for g in range(4)]
    for group in groups(layout_of(made, [True] * 4))["tp"]:
        assert len({found[rank].node for rank in group}) == 1


def test_on_a_cpu_ranks_spread_over_nodes_without_gpus():
    assert trainer_seats(recipe(nodes=2, gpus=0), 3) == [Seat(0), Seat(0), Seat(1)]


def test_ranks_of_a_group_differ_on_its_axis_alone():
    layout = Layout(world_size=16, tp=2, cp=2, pp=2, ep=4, stages=(((),), ((),)))
    for kind, found in groups(layout).items():
        for group in found:
            places = [coordinates(layout, rank) for rank in group]
            assert [place[kind] for place in places] == list(range(len(group)))
            dense = ("tp", "cp", "dp", "pp") if kind in ("tp", "cp", "dp", "pp") else ("etp", "ep", "edp", "pp")
            others = [axis for axis in dense if axis != kind]
            assert len({tuple(place[axis] for axis in others) for place in places}) == 1


def test_colocated_servers_have_the_trainers_gpus():
    made = recipe(nodes=2, gpus=4, colocate=True, each=2)
    assert seats(made) == [[[(0, [0, 1])], [(0, [2, 3])], [(1, [0, 1])], [(1, [2, 3])]]]
    assert seats(recipe(nodes=4, gpus=4, colocate=True, each=8)) == [
        [[(0, [0, 1, 2, 3]), (1, [0, 1, 2, 3])], [(2, [0, 1, 2, 3]), (3, [0, 1, 2, 3])]]
    ]


def test_separate_servers_have_what_training_leaves_and_further_nodes():
    assert seats(recipe(gpus=4, generating=4, each=2)) == [[[(0, [4, 5])], [(0, [6, 7])]]]
    assert seats(recipe(gpus=8, generating=4, each=2)) == [[[(1, [0, 1])], [(1, [2, 3])]]]
    assert seats(recipe(gpus=4, generating=16, each=16)) == [[[(1, [*range(8)]), (2, [*range(8)])]]]


def test_servers_that_need_whole_nodes_choose_first():
    groups = [{"num_gpus": 4, "num_gpus_per_engine": 4}, {"num_gpus": 8}]
    made = recipe(generating=12, each=8, config={"sglang": [{"server_groups": groups}]})
    assert seats(made) == [[[(2, [0, 1, 2, 3])]], [[(1, [*range(8)])]]]


@pytest.mark.parametrize(("each", "colocate"), [(3, True), (12, True), (24, False)])
def test_a_server_that_would_end_in_the_middle_of_a_node_is_refused(each, colocate):
    nodes = 3 if colocate else 1
    made = recipe(nodes=nodes, gpus=8, colocate=colocate, generating=0 if colocate else 24, each=each)
    with pytest.raises(RlcoreError, match=rf"rollout.gpus_per_engine: a server of {each} GPUs fits"):
        seats(made, 8 if colocate else 16)


def test_tp_across_nodes_is_refused_where_the_recipe_says_it(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: {checkpoint: some/model}\ncluster: {nodes: 2, gpus_per_node: 4}\nparallel: {tp: 8}\n"
    )
    (problem,) = check_seats(load_recipe(str(file)))
    assert problem.place.endswith(":3 (parallel.tp)")
    assert problem.remedy == "a divisor of 4"
