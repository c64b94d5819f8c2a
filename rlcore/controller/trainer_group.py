"""The trainer ranks of a run: in this process, in a Ray of the run's own, or where its site has them."""

import torch

from rlcore.cluster.group import InProcess, WorkerGroup
from rlcore.controller.site import Site
from rlcore.controller.trainer_job import TrainerJob


def trainer_group(job: TrainerJob, ranks: int, site: Site, quiet: bool) -> WorkerGroup:
    """Start the ranks. Raises RlcoreError as the trainers do."""
    if ranks == 1 and site.cluster is None:
        return InProcess(job)
    if not quiet:
        where = f" in the Ray cluster at {site.cluster.address}" if site.cluster else ""
        print(f"starting {ranks} trainer rank{'s' * (ranks > 1)}{where} …", flush=True)
    from rlcore.cluster.ray_group import RayGroup

    return RayGroup(job, ranks, site.cluster) if site.cluster else _own(job, ranks)


def _own(job: TrainerJob, ranks: int) -> WorkerGroup:
    """Each rank has its part of the processor's cores."""
    from rlcore.cluster.local_ray import LocalRay
    from rlcore.cluster.ray_group import RayGroup

    threads = job.recipe.train.threads or max(1, torch.get_num_threads() // ranks)
    return RayGroup(job, ranks, LocalRay(ranks, threads))
