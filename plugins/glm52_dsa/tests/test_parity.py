from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.spec import dsa_spec
from rlcore.models.hf_config import read_hf_config
from rlcore.testing.routers import choice_margins
from rlcore.trainer.parity import measure_parity
import pytest


@pytest.mark.parametrize("seed", range(12))
def test_x(megatron, make_checkpoint, seed):
    folder = make_checkpoint(seed)
    spec = dsa_spec(read_hf_config(folder))
    with choice_margins() as margins:
        parity = measure_parity(spec, dsa_bridge(spec), folder)
    print(parity, min(margins))
