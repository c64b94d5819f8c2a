"""How well training uses its processors: a model's FLOPs a second, and their share of what a GPU can do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

# Dense bf16 matrix products in TFLOP/s: half of what NVIDIA's data sheets give for matrices of half zeros.
# The first that a device's name begins with is its own.
_PEAKS = {
    "A100": 312.0,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.5,
    "H200 NVL": 835.5,
    "H200": 989.5,
    "B200": 2250.0,
}


def peak_tflops(device: str, dtype: str) -> float | None:
    """What a GPU of this name does at most with matrices of a type; None where that is not known here."""
    if dtype != "bfloat16":
        return None
    name = device.removeprefix("NVIDIA ")
    return next((peak for model, peak in _PEAKS.items() if name.startswith(model)), None)


@dataclass(frozen=True)
class Throughput:
    """Counts model FLOPs. `flops(length)` are those of one sequence's forward pass; `peak` is in TFLOP/s."""

    flops: Callable[[int], float]
    gpus: int
    peak: float | None

    def metrics(self, lengths: Iterable[int], seconds: float) -> dict[str, float]:
        """TFLOP/s of each GPU in an optimizer step on sequences of these lengths, and model FLOPs utilization.

        A backward pass costs two forward passes; what is recomputed, padding and MTP layers do not count
        (MFU: arXiv 2204.02311, appendix B).
        """
        rate = 3 * sum(map(self.flops, lengths)) / seconds / self.gpus / 1e12
        return {"perf/tflops_per_gpu": rate} | ({"perf/mfu": rate / self.peak} if self.peak else {})
