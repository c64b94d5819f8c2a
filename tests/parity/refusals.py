"""Layouts that Megatron or gloo gets wrong: `rlcore plan` has to refuse each, by its key and with a reason."""

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass

from rlcore.cli.main import main

# On the CPU, where nothing limits the number of ranks.
RECIPE = ("glm4/glm-z1-9b", "--set", "cluster.gpus_per_node=0", "--set", "parallel.tp=1")


@dataclass(frozen=True)
class Refusal:
    """A layout, the settings that ask for it, and the recipe key whose value is refused."""

    layout: str
    settings: Mapping[str, object]
    key: str

    def reasons(self) -> list[str]:
        """What `rlcore plan` says against the key; nothing where it accepts the layout."""
        overrides = [part for name, value in self.settings.items() for part in ("--set", f"{name}={value}")]
        with redirect_stdout(io.StringIO()) as printed:
            code = main(["plan", *RECIPE, *overrides, "--json"])
        problems = json.loads(printed.getvalue())["problems"] if code == 1 else []
        return [
            f"{problem['message']} ({problem['remedy']})"
            for problem in problems
            if self.key in problem["place"]
        ]


REFUSALS = (
    Refusal("TP2 without SP", {"parallel.tp": 2, "megatron.sequence_parallel": "false"}, "sequence_parallel"),
    Refusal("TP2xETP1, EP1", {"parallel.tp": 2, "parallel.etp": 1}, "parallel.etp"),
    Refusal("ETP2, EP1", {"parallel.etp": 2}, "parallel.etp"),
    Refusal("EP2xETP2 on gloo", {"parallel.ep": 2, "parallel.etp": 2}, "parallel.etp"),
    Refusal("EP2 without experts", {"parallel.ep": 2}, "parallel.ep"),
    Refusal("TP3 of 32 heads", {"parallel.tp": 3}, "parallel.tp"),
    Refusal("PP3 of 40 layers", {"parallel.pp": 3}, "parallel.pp"),
    Refusal("VPP2 without PP", {"parallel.vpp": 2}, "parallel.vpp"),
    Refusal("PP2xVPP3 of 40 layers", {"parallel.pp": 2, "parallel.vpp": 3}, "parallel.vpp"),
    Refusal(
        "PP2, experts by all-gather",
        {"parallel.pp": 2, "megatron.moe_token_dispatcher_type": "allgather"},
        "moe_token_dispatcher_type",
    ),
    Refusal("lengths that may not vary", {"megatron.variable_seq_lengths": "false"}, "variable_seq_lengths"),
    Refusal("loss per micro-batch", {"megatron.calculate_per_token_loss": "false"}, "calculate_per_token_loss"),
)
