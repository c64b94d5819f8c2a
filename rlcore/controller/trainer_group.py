"""Where the trainer ranks of a run are: in this process, in a Ray of the run's own, or in a cluster."""

import os
from collections import Counter

import torch

from rlcore.cluster.environment import worker_environment
from rlcore.cluster.group import InProcess, WorkerGroup
from rlcore.cluster.hostfile import read_hostfile
from rlcore.config.schema import Recipe
from rlcore.controller.trainer_job import TrainerJob
from rlcore.layout.seats import trainer_seats


def trainer_group(job: TrainerJob, ranks: int, quiet: bool) -> WorkerGroup:
    """Start the ranks. Raises RlcoreError where they have no place, or as the trainers do."""
    recipe = job.recipe
    address = _address(recipe)
    if ranks == 1 and not address:
        return InProcess(job)
    if not quiet:
        where = f" in the Ray cluster at {address}" if address else ""
        print(f"starting {ranks} trainer rank{'s' * (ranks > 1)}{where} …", flush=True)
    return _joined(job, ranks, address) if address else _own(job, ranks)


def _address(recipe: Recipe) -> str | None:
    """The Ray cluster to join, if any. A run of one process needs no Ray."""
    if not recipe.cluster.address:
        return None
    from rlcore.cluster.cluster_ray import running_cluster

    return running_cluster(recipe.cluster.address)


def _own(job: TrainerJob, ranks: int) -> WorkerGroup:
    """Each rank has its part of the processor's cores."""
    from rlcore.cluster.local_ray import LocalRay
    from rlcore.cluster.ray_group import RayGroup

    threads = job.recipe.train.threads or max(1, torch.get_num_threads() // ranks)
    return RayGroup(job, ranks, LocalRay(ranks, threads))


def _joined(job: TrainerJob, ranks: int, address: str) -> WorkerGroup:
    from rlcore.cluster.cluster_ray import ClusterRay
    from rlcore.cluster.ray_group import RayGroup

    recipe, cluster = job.recipe, job.recipe.cluster
    hosts = [host.address for host in read_hostfile(cluster.hostfile)] if cluster.hostfile else []
    home = ClusterRay(address, hosts)
    try:
        nodes = home.choose(cluster.nodes, cluster.gpus_per_node)
        on_node = [seat.node for seat in trainer_seats(recipe, ranks)]
        counts = Counter(on_node)
        cores = min(node.cpus for node in nodes) // max(counts.values())
        threads = recipe.train.threads or max(1, cores)
        gpus = {"GPU": float(cluster.gpus_per_node)} if cluster.gpus_per_node else {}
        bundles = [{"CPU": float(threads * max(1, counts[index])), **gpus} for index in range(len(nodes))]
        addresses = [node.address for node in nodes]
        home.reserve(nodes, bundles, on_node, worker_environment(cluster.env, addresses, os.environ))
    except BaseException:
        home.stop()
        raise
    return RayGroup(job, ranks, home)
