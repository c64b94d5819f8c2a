"""How many threads torch computes with, and that its attention does not pay for having been told."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rlcore.threads import _mkl, compute_with

needs_mkl = pytest.mark.skipif(_mkl() is None, reason="this torch has no MKL")

# Prints the share of system time in attention on two threads: opening and closing teams is the kernel's work.
ATTENTION = """
import resource, torch
from rlcore.threads import compute_with
{tell}(2)
query, key = torch.zeros(512, 2, 4, 32), torch.zeros(512, 2, 40, 32)
before = resource.getrusage(resource.RUSAGE_SELF)
for _ in range(200):
    torch.nn.functional.scaled_dot_product_attention(query, key, key)
after = resource.getrusage(resource.RUSAGE_SELF)
system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
print(system / (system + user))
"""


def system_share(tell: str) -> float:
    return float(subprocess.check_output([sys.executable, "-c", ATTENTION.format(tell=tell)], text=True))


def numbers() -> tuple[int, int]:
    return torch.get_num_threads(), _mkl().MKL_Get_Max_Threads()


@needs_mkl
@pytest.mark.parametrize("number", [1, os.cpu_count()])
def test_torch_and_its_matrix_products_compute_with_so_many_threads(number):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(compute_with, number).result()
        assert pool.submit(numbers).result() == (number, number)


@needs_mkl
def test_other_threads_keep_their_number():
    before = numbers()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(compute_with, before[0] % 2 + 1).result()
    assert numbers() == before


@needs_mkl
def test_a_product_within_attention_opens_no_team_of_threads_of_its_own():
    assert system_share("compute_with") < system_share("torch.set_num_threads") / 2
