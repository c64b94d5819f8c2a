"""FLOPs a second of training, against what GPUs can do."""

import pytest

from rlcore.controller.throughput import Throughput, peak_tflops


def test_a_step_costs_three_forward_passes_and_its_rate_is_that_of_one_gpu():
    throughput = Throughput(flops=lambda length: 1e12 * length, gpus=4, peak=100.0)
    assert throughput.metrics([10, 30], seconds=2.0) == {"perf/tflops_per_gpu": 15.0, "perf/mfu": 0.15}


def test_where_the_peak_is_not_known_there_is_no_utilization():
    assert Throughput(lambda length: 1e12, gpus=1, peak=None).metrics([1], 1.0) == {"perf/tflops_per_gpu": 3.0}


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA L40S", None),
        ("", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets_by_the_names_that_drivers_give(device, peak):
    assert peak_tflops(device, "bfloat16") == peak
    assert peak_tflops(device, "float32") is None
