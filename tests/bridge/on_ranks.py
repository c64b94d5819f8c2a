"""Loads, exports and saves checkpoints in several layouts and prints what became of them, as JSON by layout.

A program, because ranks are forks of a process that has Megatron imported and no process groups yet.
"""

import filecmp
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rlcore.trainer import compat

compat.install()
sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from families import GLM4  # noqa: E402
from launch import run_tasks  # noqa: E402
from moe import MOE, moe_bridge, moe_spec  # noqa: E402
from rlcore_glm4.plugin import glm4_bridge, glm4_spec  # noqa: E402

from rlcore.bridge.export import Exporter, save_hf  # noqa: E402
from rlcore.bridge.inventory import megatron_tensors  # noqa: E402
from rlcore.bridge.load import load_hf  # noqa: E402
from rlcore.bridge.safetensors_io import SafetensorsFolder, write_folder  # noqa: E402
from rlcore.bridge.table import PassThrough, WeightBridge  # noqa: E402
from rlcore.config.schema import Parallel, Recompute  # noqa: E402
from rlcore.errors import RlcoreError  # noqa: E402
from rlcore.models.build import build_model, transformer_config  # noqa: E402
from rlcore.models.forward import PolicyModel  # noqa: E402
from rlcore.ranks import from_all_ranks  # noqa: E402
from rlcore.trainer.setup import initialize  # noqa: E402

MODELS = {
    "dense": (GLM4, glm4_spec, glm4_bridge),
    "tied": ({**GLM4, "tie_word_embeddings": True}, glm4_spec, glm4_bridge),
    "one key head": ({**GLM4, "num_key_value_heads": 1}, glm4_spec, glm4_bridge),
    "experts": (MOE, moe_spec, moe_bridge),
}
LAYOUTS = {
    "dense TP2": Parallel(tp=2),
    "dense PP2": Parallel(pp=2),
    "dense PP2xVPP2": Parallel(pp=2, vpp=2),
    "dense DP2": Parallel(),
    "tied PP2": Parallel(pp=2),
    "one key head TP2": Parallel(tp=2),
    "experts EP2": Parallel(ep=2),
    "experts TP2xEP2": Parallel(tp=2, ep=2),
    "experts TP2xETP2": Parallel(tp=2, etp=2),
    "experts PP2": Parallel(pp=2),
}
# Small enough that every checkpoint takes several files.
SHARD_BYTES = 200_000


def model_of(layout: str) -> str:
    return next(name for name in MODELS if layout.startswith(f"{name} "))


def build(model: str, parallel: Parallel, *, meta: bool = False) -> tuple[list[PolicyModel], WeightBridge]:
    """The model's stages on this rank, and its bridge, which knows of a tensor that no one trains."""
    initialize(parallel, seed=0)
    config, make_spec, make_bridge = MODELS[model]
    spec = make_spec(config)
    megatron = transformer_config(
        spec,
        parallel=parallel,
        dtype=torch.float32,
        recompute=Recompute(),
        megatron_overrides={},
        mtp_layers=len(spec.mtp_layers),
    )
    bridge = WeightBridge((*make_bridge(spec).rows, PassThrough("untrained.*")))
    return build_model(spec, megatron, meta=meta), bridge


def make_source(folder: Path, model: str) -> None:
    """In one process: write random weights as the bridge names them, and what is saved after loading them."""
    stages, bridge = build(model, Parallel(), meta=True)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        (name, torch.randn(shape, generator=generator))
        for parameter, tensor in megatron_tensors(stages).items()
        for entry in [bridge.by_megatron[parameter]]
        for name, shape in zip(entry.hf, entry.transform.source_shapes(tuple(tensor.shape), 1), strict=True)
    ]
    source = folder / model / "source"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    write_folder(
        source, [*tensors, ("untrained.0", torch.randn(3, generator=generator))], shard_bytes=SHARD_BYTES
    )
    stages, bridge = build(model, Parallel())
    load_hf(stages, bridge, source)
    save_hf(Exporter(stages, bridge), folder / model / "saved", source=source, shard_bytes=SHARD_BYTES)


def try_layout(folder: Path, layout: str) -> list[dict[str, Any]]:
    """What each rank read, held and was given, and whether what was saved is what one process saves."""
    source = folder / model_of(layout) / "source"
    saved = folder / layout
    stages, bridge = build(model_of(layout), LAYOUTS[layout])
    with reads_counted() as read:
        load_hf(stages, bridge, source)
    own = megatron_tensors(stages)
    exporter = Exporter(stages, bridge)
    given = list(exporter)
    written: list[int] = []

    def look(phase: str) -> None:
        # The folder gets its name in the end: looked at in this order, none is missed.
        places = (folder / f"{layout}.partial", saved)
        written.append(sum(len(list(place.glob("*.safetensors"))) for place in places))

    save_hf(exporter, saved, source=source, shard_bytes=SHARD_BYTES, enter=look)
    nowhere = folder / "no folder" / "saved"
    (folder / "no folder").touch()
    return from_all_ranks(
        {
            "shapes": [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in given],
            "values": sum(not tensor.is_meta for _, tensor in given),
            "differing": [] if dist.get_rank() else differing(source, dict(given)),
            "read": sum(read),
            "held": sum(tensor.numel() for tensor in own.values()),
            "padding": sum(padding(bridge, name, tensor) for name, tensor in own.items()),
            "written": written,
            "same files": same_files(saved, folder / model_of(layout) / "saved"),
            "refused": message(lambda: save_hf(exporter, saved, source=source)),
            "no room": message(lambda: save_hf(exporter, nowhere, source=source)),
        }
    )


@contextmanager
def reads_counted() -> Iterator[list[int]]:
    """Collect the elements of every piece that is read of a checkpoint."""
    found: list[int] = []
    slice_of, whole = SafetensorsFolder.slice, SafetensorsFolder.tensor

    class Counted:
        def __init__(self, part: Any) -> None:
            self._part = part

        def __getitem__(self, ranges: Any) -> torch.Tensor:
            tensor = self._part[ranges]
            found.append(tensor.numel())
            return tensor

    SafetensorsFolder.slice = lambda *asked: Counted(slice_of(*asked))
    SafetensorsFolder.tensor = None
    try:
        yield found
    finally:
        SafetensorsFolder.slice, SafetensorsFolder.tensor = slice_of, whole


def padding(bridge: WeightBridge, name: str, tensor: torch.Tensor) -> int:
    """Elements of the vocabulary's rows that no checkpoint has: zeros at the end of the last rank's part."""
    if not hasattr(bridge.by_megatron[name].transform, "vocab_size"):
        return 0
    return int((tensor == 0).all(1).sum()) * tensor.shape[1]


def differing(source: Path, given: Mapping[str, torch.Tensor]) -> list[str]:
    """Names that are not in both, or whose values are not the same to the bit."""
    with SafetensorsFolder(source) as folder:
        expected = {name: folder.tensor(name) for name in folder.tensors if not name.startswith("untrained.")}
    return [
        name
        for name in expected.keys() | given.keys()
        if name not in given or name not in expected or not torch.equal(expected[name], given[name])
    ]


def same_files(saved: Path, expected: Path) -> bool:
    names = sorted(path.name for path in expected.iterdir())
    matching, _, _ = filecmp.cmpfiles(saved, expected, names, shallow=False)
    return sorted(path.name for path in saved.iterdir()) == names == sorted(matching) and len(names) > 3


def message(act: Callable[[], None]) -> str:
    try:
        act()
    except RlcoreError as error:
        return str(error)
    return ""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        list(run_tasks([partial(make_source, folder, model) for model in MODELS], 1))
        tasks = [partial(try_layout, folder, layout) for layout in LAYOUTS]
        print(json.dumps(dict(zip(LAYOUTS, run_tasks(tasks, 2), strict=True))))


if __name__ == "__main__":
    main()
