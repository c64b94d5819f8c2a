"""What a model of ours and transformers' make of one checkpoint, for tests of model plugins to compare.

Logits of the model itself are `rlcore.trainer.parity`'s; here are gradients, and logits of an MTP layer.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlcore.bridge.load import load_hf
from rlcore.bridge.table import WeightBridge
from rlcore.models.attention import PackedSequences
from rlcore.models.forward import PolicyModel, forward_hidden, forward_mtp, output_weight
from rlcore.models.spec import ModelSpec
from rlcore.rollout.local_weights import unstacked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = (1, 40, 3, 77, 20, 64, 2, 19)
DRAFTED = (40, 5, 23)

Gradients = Mapping[str, Tensor]


def gradients_of_both(
    spec: ModelSpec, bridge: WeightBridge, model: PolicyModel, folder: Path
) -> tuple[Gradients, Gradients]:
    """Gradients of one loss, ours and transformers', by the checkpoint's names; those that there are."""
    load_hf([model], bridge, folder)
    reference = _transformers(folder)
    spec.mend_transformers(reference)
    tokens_1t = _tokens(spec, 50)[None]
    hidden_th = forward_hidden(model, tokens_1t, PackedSequences.of([50]))[:, 0]
    for logits_tv in (hidden_th @ output_weight(model).T, reference(tokens_1t).logits[0]):
        logits_tv.log_softmax(-1)[:, 7].sum().backward()
    own = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    ours = {
        name: gradient
        for entry in bridge.entries
        if entry.megatron in own
        for name, gradient in zip(entry.hf, entry.transform.write([own[entry.megatron]]), strict=True)
    }
    theirs = {
        hub_name: gradient
        for name, parameter in reference.named_parameters()
        if parameter.grad is not None
        for hub_name, gradient in unstacked(name, parameter.grad)
    }
    return ours, theirs


def packed_and_alone(spec: ModelSpec, model: PolicyModel) -> tuple[Tensor, Tensor]:
    """Hidden states [t, 1, h] of the same sequences: packed into one micro-batch, and run one by one."""
    tokens_1t = _tokens(spec, sum(PACKED))[None]
    packed = forward_hidden(model, tokens_1t, PackedSequences.of(PACKED))
    alone = [
        forward_hidden(model, part, PackedSequences.of([part.shape[1]])) for part in tokens_1t.split(PACKED, 1)
    ]
    return packed, torch.cat(alone)


@torch.no_grad()
def mtp_logits_of_both(
    spec: ModelSpec,
    model: PolicyModel,
    folder: Path,
    prepare: "Callable[[PreTrainedModel], None]" = lambda reference: None,
) -> tuple[Tensor, Tensor]:
    """Logits of the MTP layer, ours and those of transformers' MtpModel; each sequence's last token has none.

    `model` has its weights. `prepare` gives transformers' model what it lacks to make an MtpModel of.
    """
    tokens_t, sequences = _tokens(spec, sum(DRAFTED)), PackedSequences.of(DRAFTED)
    hidden_t1h = forward_hidden(model.eval(), tokens_t[None], sequences)
    (mtp_t1h,) = forward_mtp(model, hidden_t1h, tokens_t[None], sequences)
    logits_tv = mtp_t1h[:, 0] @ output_weight(model).T
    ours = torch.cat([part[:-1] for part in logits_tv.split(DRAFTED)])
    return ours, _mtp_logits(spec, folder, tokens_t, prepare)


def _mtp_logits(
    spec: ModelSpec, folder: Path, tokens_t: Tensor, prepare: "Callable[[PreTrainedModel], None]"
) -> Tensor:
    from transformers.modeling_layers import MtpModel

    main = _transformers(folder, attn_implementation="eager").eval()
    prepare(main)
    # Known for the published depths only; any other would be called unexpected.
    main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{len(spec.layers)}\..*"]
    mtp = MtpModel.from_pretrained(main).eval()
    for part in (main, mtp):
        spec.mend_transformers(part)

    def logits(tokens_l: Tensor) -> Tensor:
        hidden = main.model(tokens_l[None], use_cache=False).last_hidden_state
        positions = torch.arange(len(tokens_l) - 1)[None]
        out = mtp.forward_layer(0, hidden[:, :-1], positions, None, input_ids=tokens_l[None, 1:])
        return main.lm_head(out)[0]

    return torch.cat([logits(part) for part in tokens_t.split(DRAFTED)])


def _transformers(folder: Path, **options: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def _tokens(spec: ModelSpec, count: int) -> Tensor:
    return torch.randint(spec.vocab_size, (count,), generator=torch.Generator().manual_seed(0))
