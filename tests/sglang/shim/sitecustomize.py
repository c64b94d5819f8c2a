"""Lets a torchvision that was built for CUDA be imported beside a torch that was built for a CPU.

It cannot load its operators there, and its import fails for want of their names. Declared, none is ever called.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import version
from types import ModuleType


class DeclareOperators(MetaPathFinder):
    """Declares them when torchvision is first looked for; finds nothing itself."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        if version("torch").endswith("+cpu") and not version("torchvision").endswith("+cpu"):
            from torch import library

            # What is collected takes its operators along.
            type(self).operators = library.Library("torchvision", "DEF")
            type(self).operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            type(self).operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, DeclareOperators())
