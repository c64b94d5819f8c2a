"""Gives mbridge (https://github.com/ISEEKYAN/mbridge) every model family that is installed as a plugin.

    import rlcore.mbridge  # before anything that imports megatron
    from mbridge import AutoBridge

    bridge = AutoBridge.from_pretrained(FOLDER)
    models = bridge.get_model(weight_path=FOLDER)

Names, shapes and transforms are those of the plugin's table, and so is what mbridge exports and saves. A family
that mbridge knows by itself is ours from then on.
"""

from collections.abc import Sequence
from typing import Any

from rlcore.trainer import compat

compat.install()

from mbridge.core import LLMBridge, register_model  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec  # noqa: E402
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import PretrainedConfig  # noqa: E402

from rlcore.bridge.table import Entry  # noqa: E402
from rlcore.bridge.transforms import Shard  # noqa: E402
from rlcore.config.schema import Parallel, Recompute  # noqa: E402
from rlcore.models.build import transformer_config  # noqa: E402
from rlcore.models.layers import last_decoder_layer  # noqa: E402
from rlcore.registry import Catalog  # noqa: E402


class PluginBridge(LLMBridge):
    """mbridge's interface to a family's spec and table. `set_extra_args(mtp_num_layers=1)` brings MTP along.

    A weight "in Megatron's format" is here still the checkpoint's tensors, until mbridge asks for its shards;
    merged shards are still shards, until it asks for the checkpoint's tensors.
    """

    def __init__(self, hf_config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        catalog, name = Catalog.installed(), hf_config.model_type
        self.spec = catalog.load("model_spec", name).create(hf_config.to_dict())
        self.table = catalog.load("weight_bridge", name).create(self.spec)
        self.has_vp_stage = True
        self._vp_stage: int | None = None
        self._whole_names: dict[str, str] = {}
        super().__init__(hf_config, *args, **kwargs)

    def _build_config(self) -> TransformerConfig:
        sizes = {name: getattr(self.mpu, f"{name}_size") for name in ("tp", "pp", "cp", "ep", "etp", "vpp")}
        overrides = dict(self.extra_args)
        mtp_layers = overrides.pop("mtp_num_layers", None) or 0
        config = transformer_config(
            self.spec,
            parallel=Parallel(**sizes),
            dtype=self.dtype,
            recompute=Recompute(),
            megatron_overrides=overrides,
            mtp_layers=mtp_layers,
        )
        # Marks what is split over ranks, which mbridge goes by.
        config.perform_initialization = True
        return config

    def _get_transformer_layer_spec(self, vp_stage: int | None = None) -> TransformerBlockSubmodules:
        self._vp_stage = vp_stage
        return self.spec.layer_specs(self.config, vp_stage)

    def _get_gptmodel_args(self) -> dict[str, Any]:
        arguments = {"vocab_size": self.spec.vocab_size, **self.spec.model_args}
        if self.config.mtp_num_layers:
            layer = (self.spec.mtp_layer_spec or last_decoder_layer)(self.config)
            arguments["mtp_block_spec"] = get_gpt_mtp_block_spec(
                self.config, layer, use_transformer_engine=True, vp_stage=self._vp_stage
            )
        return arguments

    def _weight_name_mapping_mcore_local_to_global(
        self, model: nn.Module, consider_ep: bool = True
    ) -> dict[str, str]:
        self._whole_names = super()._weight_name_mapping_mcore_local_to_global(model, consider_ep)
        return self._whole_names

    def _weight_name_mapping_mcore_to_hf(self, mcore_weights_name: str) -> list[str]:
        return list(self._entry(mcore_weights_name).hf)

    def _weight_to_mcore_format(self, mcore_weights_name: str, hf_weights: list[Tensor]) -> list[Tensor]:
        return hf_weights

    def _weight_split_across_tp(
        self, mcore_weights_name: str, mcore_weights: Sequence[Tensor], param: Tensor, tp_split_size: int
    ) -> list[Tensor]:
        transform = self._entry(self._whole_names[mcore_weights_name]).transform
        shards = (Shard(rank, tp_split_size) for rank in range(tp_split_size))
        return [transform.read(mcore_weights, tuple(param.shape), shard) for shard in shards]

    def _weight_merge_across_tp(
        self, mcore_weights_name: str, mcore_weights: Sequence[Tensor], param: Tensor
    ) -> Sequence[Tensor]:
        return mcore_weights

    def _weight_to_hf_format(
        self, mcore_weights_name: str, mcore_weights: Tensor | Sequence[Tensor]
    ) -> tuple[list[str], list[Tensor]]:
        entry = self._entry(mcore_weights_name)
        shards = [mcore_weights] if isinstance(mcore_weights, Tensor) else mcore_weights
        return list(entry.hf), [tensor.contiguous() for tensor in entry.transform.write(shards)]

    def _entry(self, name: str) -> Entry:
        if self.spec.tied_embeddings and name == "output_layer.weight":
            name = "embedding.word_embeddings.weight"
        return self.table.by_megatron[name]


register_model(Catalog.installed().names("weight_bridge"))(PluginBridge)
