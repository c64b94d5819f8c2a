"""A process that keeps what it freed has its pages at hand."""

import subprocess
import sys

# An allocator that gives everything back at once, whatever glibc does by itself.
GENEROUS = "import ctypes; ctypes.CDLL(None).mallopt(-3, 2**17)"

# Prints how often memory of a step had to come from the kernel, after steps like it.
STEPS = """
import resource, torch
from rlcore.freed_memory import keep_freed_memory
{first}
def step():
    return [torch.ones(2**21) for _ in range(20)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(first: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", STEPS.format(first=first)], text=True))


def test_a_step_finds_the_memory_that_the_one_before_has_freed():
    assert page_faults(f"{GENEROUS}; keep_freed_memory()") < page_faults(GENEROUS) / 10
