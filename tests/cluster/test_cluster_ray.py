"""Ranks on two nodes of a Ray cluster that runs already: real raylets, both on this machine."""

import os
import threading

import pytest
import torch
import torch.distributed as dist
from ray.cluster_utils import Cluster

from rlcore.cluster.cluster_ray import ClusterRay, Node, _order, running_cluster
from rlcore.cluster.group import Rank, RanksLostError
from rlcore.cluster.ray_group import RayGroup
from rlcore.errors import RlcoreError, fail

BUNDLES = [{"CPU": 1.0}, {"CPU": 1.0}]


class Adder:
    """Adds over ranks, says where it is, and refuses on one of them."""

    def __init__(self, rank: Rank) -> None:
        import ray

        self.rank = rank
        self.node = ray.get_runtime_context().get_node_id()
        dist.init_process_group("gloo", store=rank.store, rank=rank.number, world_size=rank.world_size)

    def add(self, number):
        total = torch.tensor(float(number + self.rank.number))
        dist.all_reduce(total)
        return total.item()

    def where(self):
        return self.node, os.getcwd(), os.environ.get("NCCL_SOCKET_IFNAME")

    def niceness(self):
        return os.getpriority(os.PRIO_PROCESS, 0)

    def refuse_on_one(self):
        if self.rank.number == 1:
            raise fail("plugins.lock.json: reward short", "the files have changed", "install it again")

    def add_forever(self):
        while True:
            self.add(1)


@pytest.fixture(scope="module")
def nodes():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def second(nodes):
    node = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield node
    if node in nodes.worker_nodes:
        nodes.remove_node(node)


@pytest.fixture
def home(nodes, second):
    home = ClusterRay(running_cluster(nodes.address))
    yield home
    home.stop()


@pytest.fixture
def group(home):
    home.reserve(home.choose(2, 0), BUNDLES, [0, 1], {"NCCL_SOCKET_IFNAME": "eth7"})
    group = RayGroup(Adder, 2, home)
    yield group
    group.close()


def test_ranks_work_together_across_nodes_and_a_node_that_leaves_is_named(group, home, nodes, second):
    assert group.call("add", 10) == [21.0, 21.0]
    places = group.call("where")
    assert [node for node, *_ in places] == [node.id for node in home.nodes]
    assert places[1][1:] == (os.getcwd(), "eth7")

    with pytest.raises(RlcoreError, match=r"3 nodes are asked for; the Ray cluster at \S+ has \S+, \S+"):
        home.choose(3, 0)
    with pytest.raises(RlcoreError, match="1 nodes of 8 GPUs are asked for"):
        home.choose(1, 8)

    (raylet,) = second.all_processes["raylet"]
    threading.Timer(0.5, raylet.process.kill).start()
    with pytest.raises(RanksLostError) as lost:
        group.call("add_forever")
    assert "trainer rank 1 (node " in str(lost.value)
    assert "its node has left the cluster during add_forever" in str(lost.value)


def test_ranks_give_way_to_others_no_more_than_the_run_does(group):
    assert group.call("niceness") == [os.getpriority(os.PRIO_PROCESS, 0)] * 2


def test_what_only_some_nodes_refuse_comes_with_their_names(group):
    with pytest.raises(RanksLostError, match=r"node \S+ plugins\.lock\.json: reward short: the files have"):
        group.call("refuse_on_one")


def test_where_no_cluster_answers_the_address_is_refused():
    with pytest.raises(RlcoreError, match=r"cluster\.address: no Ray cluster answers at 127\.0\.0\.1:9"):
        running_cluster("127.0.0.1:9")


def test_nodes_stand_in_the_order_of_the_host_file_then_of_their_addresses():
    nodes = [Node(str(index), f"10.0.0.{index}", 6380, 8, 8) for index in (10, 9, 2, 1)]
    ordered = sorted(nodes, key=lambda node: _order(node, ["10.0.0.9"]))
    assert [node.address for node in ordered] == ["10.0.0.9", "10.0.0.1", "10.0.0.2", "10.0.0.10"]
