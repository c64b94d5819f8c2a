"""Tiny checkpoints made offline: a byte-level tokenizer and a transformers model with random weights.

They let tests and demos run the real code paths without a download. Templates, special tokens and
configurations come from the caller; nothing here knows a model family.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def tiny_tokenizer(
    folder: Path,
    *,
    chat_template: str,
    special_tokens: Sequence[str],
    eos_token: str,
    plain_tokens: Sequence[str] = (),
) -> "PreTrainedTokenizerFast":
    """Write a tokenizer of 256 byte tokens (ids 0 to 255) followed by `special_tokens` and `plain_tokens`.

    Every text round-trips, and a digit is one token. `plain_tokens` are added tokens that survive
    `skip_special_tokens`. Padding uses `eos_token`, on the left.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: id_ for id_, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain_tokens])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos_token,
        pad_token=eos_token,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
    )
    wrapped.save_pretrained(folder)
    return wrapped


def tiny_checkpoint(
    folder: Path, config: Mapping[str, Any], *, seed: int = 0, jitter: float = 0.0
) -> "PreTrainedModel":
    """Write a transformers checkpoint in fp32 with random weights, from the content of a config.json.

    `jitter` is the standard deviation of noise added to all that is saved: norms and biases start as ones and
    zeros, which would hide a mix-up between them from a parity test. The global random state is left alone.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(config)
    model_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32).eval()
        if jitter:
            with torch.no_grad():
                for tensor in model.state_dict().values():
                    tensor.add_(torch.randn_like(tensor), alpha=jitter)
    model.save_pretrained(folder)
    return model


def tiny_mtp_layer(folder: Path, *, like: int = -1, seed: int = 0, jitter: float = 0.0) -> None:
    """Add to a tiny checkpoint the MTP layer that its config.json announces and transformers leaves out.

    It stands after the last layer, is shaped like the one that `like` counts (from the end where negative), and
    repeats the model's tables, as published ones do. Matrices are random, norms are ones; `jitter` is that of
    `tiny_checkpoint`.
    """
    import json

    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)

    def drawn(name: str, *shape: int) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        start = 1.0 if "norm" in name else 0.0
        return start + noise * (config.get("initializer_range", 0.02) if len(shape) > 1 else jitter)

    other, own = (f"model.layers.{number}." for number in (like % layers, layers))
    shapes = {own + name.removeprefix(other): t.shape for name, t in tensors.items() if name.startswith(other)}
    shapes |= {f"{own}{name}.weight": (hidden,) for name in ("enorm", "hnorm", "shared_head.norm")}
    shapes[f"{own}eh_proj.weight"] = (hidden, 2 * hidden)
    tensors |= {name: drawn(name, *shape) for name, shape in shapes.items()}
    embedding = tensors["model.embed_tokens.weight"]
    tensors[f"{own}embed_tokens.weight"] = embedding.clone()
    tensors[f"{own}shared_head.head.weight"] = tensors.get("lm_head.weight", embedding).clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def tensors_of(folder: Path) -> "dict[str, Tensor]":
    """All tensors of a checkpoint."""
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def rewrite(folder: Path, change: "Callable[[dict[str, Tensor]], object]") -> None:
    """Let `change` alter the tensors of a tiny checkpoint."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
