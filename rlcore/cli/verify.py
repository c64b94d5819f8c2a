"""Compare a checkpoint with its model plugin, tensor by tensor.

Every tensor of CHECKPOINT (a folder with config.json and *.safetensors) must have the name, shape and type that
the plugin of its model_type expects, hold finite values, and have a place in the Megatron model; and every
parameter of that model must get its values from the checkpoint. --parity also runs both models in fp32 on
random tokens: the logits may differ by 3e-6 of the largest one, and by twice the distance of transformers from
its own float64 run. The exit code is 1 if anything is wrong.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.cli.output import print_json, print_problems
from rlcore.errors import Problem, fail
from rlcore.models.hf_config import read_hf_config
from rlcore.registry import Catalog

if TYPE_CHECKING:
    import torch

    from rlcore.bridge.table import Coverage, WeightBridge
    from rlcore.models.spec import ModelSpec
    from rlcore.trainer.parity import Parity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder in Hugging Face format")
    parser.add_argument("--parity", action="store_true", help="also compare logits with transformers'")
    parser.add_argument("--plugin", metavar="NAME", help="model plugin (default: model_type of config.json)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if there is anything to find. Raises RlcoreError for what cannot be read at all."""
    findings = examine(args.checkpoint, args.plugin, parity=args.parity)
    if args.json:
        print_json(findings.to_dict())
    else:
        _print(findings)
    return 0 if findings.sound else 1


@dataclass(frozen=True)
class Findings:
    """What a checkpoint's examination brought to light. `parity` is None where it was not measured."""

    model_type: str
    tensors: int
    coverage: "Coverage"
    problems: tuple[Problem, ...]
    parity: "Parity | None"

    @property
    def sound(self) -> bool:
        covered = not self.coverage.unmapped_hf and not self.coverage.unmapped_megatron
        return covered and not self.problems and (self.parity is None or self.parity.holds)

    def to_dict(self) -> dict[str, Any]:
        parity = self.parity
        return {
            "model_type": self.model_type,
            "unmapped_hf": list(self.coverage.unmapped_hf),
            "unmapped_megatron": list(self.coverage.unmapped_megatron),
            "problems": [asdict(problem) for problem in self.problems],
            "max_rel_logit_diff": parity and parity.max_rel_logit_diff,
            "reference_noise": parity and parity.reference_noise,
            "tokens": parity and parity.tokens,
            "left_out": parity and parity.left_out,
        }


def examine(checkpoint: Path, plugin: str | None = None, *, parity: bool = False) -> Findings:
    """Check a checkpoint. Parity is measured only of one that is sound so far.

    Raises RlcoreError for a folder, config.json or file that cannot be read, and for an unknown model_type.
    """
    hf_config = read_hf_config(checkpoint)
    name = plugin or str(hf_config["model_type"])
    catalog = Catalog.installed()
    spec: ModelSpec = catalog.load("model_spec", name, str(checkpoint / "config.json")).create(hf_config)
    bridge: WeightBridge = catalog.load("weight_bridge", name).create(spec)

    from rlcore.config.schema import Parallel
    from rlcore.trainer.parity import measure_parity
    from rlcore.trainer.setup import process_groups

    with process_groups(Parallel(), seed=0):
        findings = _compare(checkpoint, spec, bridge)
        if parity and findings.sound:
            return replace(findings, parity=measure_parity(spec, bridge, checkpoint))
        return findings


def _compare(checkpoint: Path, spec: "ModelSpec", bridge: "WeightBridge") -> Findings:
    """Names, shapes, types and values against the model, which is built without memory."""
    import torch

    from rlcore.bridge.check import misfits, mtp_layers_of, not_finite, surprising_types
    from rlcore.bridge.inventory import megatron_tensors
    from rlcore.bridge.safetensors_io import SafetensorsFolder
    from rlcore.config.schema import Parallel, Recompute
    from rlcore.models.build import build_model, transformer_config

    with SafetensorsFolder(checkpoint) as source:
        config = transformer_config(
            spec,
            parallel=Parallel(),
            dtype=torch.float32,
            recompute=Recompute(),
            megatron_overrides={},
            mtp_layers=mtp_layers_of(bridge, source),
        )
        own = megatron_tensors(build_model(spec, config, meta=True))
        problems = (
            *misfits(bridge, source, own, {}),
            *surprising_types(source, _announced_type(spec)),
            *(problem for name in source.tensors for problem in not_finite(source, name)),
        )
        coverage = bridge.coverage(source.tensors, own)
        return Findings(spec.model_type, len(source.tensors), coverage, problems, None)


def _announced_type(spec: "ModelSpec") -> "torch.dtype":
    """The type that config.json gives, by its name in transformers 5 or 4; without one it is fp32."""
    import torch

    name = spec.hf_config.get("dtype") or spec.hf_config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise fail("config.json", f"dtype {name!r} is no type of torch", "bfloat16 or float32")
    return dtype


def _print(findings: Findings) -> None:
    print(f"model_type  {findings.model_type}")
    print(f"tensors     {findings.tensors}")
    for line in _parity_lines(findings):
        print(line)
    print_problems([*findings.coverage.problems("checkpoint"), *findings.problems])
    print("sound" if findings.sound else "not sound")


def _parity_lines(findings: Findings) -> Iterator[str]:
    if parity := findings.parity:
        verdict = "holds" if parity.holds else "fails"
        yield f"parity      {verdict}: logits differ by {parity.max_rel_logit_diff:.1e} of the largest"
        yield f"            limit {parity.limit:.1e}; transformers from float64 {parity.reference_noise:.1e}"
        left_out = f"; {parity.left_out} more follow a near-tie of experts" if parity.left_out else ""
        yield f"            {parity.tokens} tokens{left_out}"
