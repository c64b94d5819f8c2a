"""Every process of a run, as it would be started: on numbered nodes, or on those of a host file."""

from rlcore.cluster.environment import proxies, worker_environment
from rlcore.cluster.placement import place
from rlcore.config.schema import Cluster, Model, Parallel, Recipe, Rollout, Train
from rlcore.config.sglang_arguments import known_arguments
from rlcore.layout.plan import layout_of

PAIR = [
    {"worker_type": "prefill", "num_gpus": 8, "num_gpus_per_engine": 8},
    {"worker_type": "decode", "num_gpus": 16, "num_gpus_per_engine": 16, "overrides": {"page_size": 64}},
]


def placed(nodes=1, gpus=8, hosts=(), env=(), colocate=False, parallel=None, train=None, **rollout):
    recipe = Recipe(
        model=Model(checkpoint="some/model"),
        cluster=Cluster(nodes=nodes, gpus_per_node=gpus, colocate=colocate, env=dict(env)),
        rollout=Rollout(engine="sglang", **rollout),
        parallel=parallel or Parallel(),
        train=train or Train(),
    )
    return place(recipe, layout_of(recipe, [True] * 4), known_arguments(), hosts=hosts)


def option(process, flag):
    words = process.command
    return words[words.index(flag) + 1] if flag in words else None


def test_a_server_on_two_nodes_is_two_processes_that_meet_at_the_first():
    found = placed(hosts=["10.0.0.1", "10.0.0.2", "10.0.0.3"], num_gpus=16, gpus_per_engine=16)
    first, second = found.of("server")
    assert [one.host for one in (first, second)] == ["10.0.0.2", "10.0.0.3"]
    for rank, one in enumerate((first, second)):
        assert option(one, "--nnodes") == "2"
        assert option(one, "--node-rank") == str(rank)
        assert option(one, "--tp-size") == "16"
        assert option(one, "--dist-init-addr") == f"10.0.0.2:{one.ports['meeting']}"
        assert option(one, "--host") == one.host
        assert one.environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
    assert found.of("router") == []
    assert [dict(bundle) for bundle in found.bundles] == [{"CPU": 8, "GPU": 8}, *[{"CPU": 1, "GPU": 8}] * 2]


def test_servers_on_one_node_have_ports_of_their_own():
    servers = placed(gpus=4, num_gpus=4, gpus_per_engine=1).of("server")
    ports = [port for one in servers for port in one.ports.values()]
    assert len(ports) == len(set(ports)) == 8
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in servers] == ["4", "5", "6", "7"]


def test_servers_draw_from_random_numbers_of_their_own_and_parts_of_one_from_the_same():
    groups = [{"num_gpus": 16, "num_gpus_per_engine": 4}, {"num_gpus": 16, "num_gpus_per_engine": 16}]
    found = placed(nodes=4, colocate=True, sglang={"config": {"sglang": [{"server_groups": groups}]}})
    assert [option(one, "--random-seed") for one in found.of("server")] == ["42", "43", "44", "45", "46", "46"]


def test_the_router_knows_who_reads_and_who_generates():
    found = placed(nodes=3, colocate=True, sglang={"config": {"sglang": [{"server_groups": PAIR}]}})
    prefill, decode, follower = sorted(found.of("server"), key=lambda one: one.position["group"])
    assert option(prefill, "--disaggregation-mode") == "prefill"
    assert option(decode, "--page-size") == "64"
    assert follower.position["node_rank"] == 1
    (router,) = found.of("router")
    words = " ".join(router.command)
    assert "--pd-disaggregation" in words
    met = option(prefill, "--disaggregation-bootstrap-port")
    assert f"--prefill http://{prefill.host}:{prefill.ports['http']} {met}" in words
    assert f"--decode http://{decode.host}:{decode.ports['http']}" in words
    assert words.count("--decode") == 1


def test_models_of_their_own_have_routers_of_their_own():
    models = [{"name": name, "server_groups": [{"num_gpus": 4}]} for name in ("policy", "judge")]
    routers = placed(nodes=1, num_gpus=8, gpus_per_engine=2, sglang={"config": {"sglang": models}}).of("router")
    assert [one.name for one in routers] == ["router of policy", "router of judge"]
    assert len({one.ports["http"] for one in routers}) == 2


def test_without_gpus_ranks_and_servers_share_the_nodes():
    found = placed(nodes=2, gpus=0, num_gpus=2, parallel=Parallel(dp=2), train=Train(threads=3))
    assert [one.node for one in found.of("trainer")] == [0, 1]
    assert [option(one, "--device") for one in found.of("server")] == ["cpu", "cpu"]
    assert [one.node for one in found.of("server")] == [0, 1]
    assert [dict(bundle) for bundle in found.bundles] == [{"CPU": 3}] * 2


def test_all_workers_have_the_recipes_variables():
    found = placed(nodes=2, num_gpus=8, gpus_per_engine=8, env={"NCCL_SOCKET_IFNAME": "eth0"})
    workers = [*found.of("trainer"), *found.of("server")]
    assert {one.environment["NCCL_SOCKET_IFNAME"] for one in workers} == {"eth0"}
    assert {one.environment["no_proxy"] for one in workers} == {"localhost,127.0.0.1,node0,node1,node2"}


def test_proxies_are_told_from_other_variables_and_keep_out_of_what_is_between_nodes():
    shell = {"HTTP_PROXY": "http://proxy", "https_proxy": "", "no_proxy": "intranet,10.0.0.1"}
    assert proxies(shell) == ["HTTP_PROXY"]
    found = worker_environment({"A": "b"}, ["10.0.0.1", "10.0.0.2"], shell)
    assert found["A"] == "b"
    assert found["no_proxy"] == found["NO_PROXY"] == "intranet,10.0.0.1,localhost,127.0.0.1,10.0.0.2"
    assert worker_environment({"A": "b"}, ["10.0.0.1"], shell) == {"A": "b"}
