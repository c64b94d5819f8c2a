"""How tensors and samples cross processes: as plain arrays, which Ray shares between ranks without a copy."""

from dataclasses import fields
from typing import Any

import numpy as np
import ray.util
import torch

from rlcore.data.train_sample import TrainSample

_DTYPES = {
    "tokens": np.int32,
    "loss_mask": np.float32,
    "advantages": np.float32,
    "old_log_probs": np.float32,
    "ref_log_probs": np.float32,
    "rollout_log_probs": np.float32,
    "fresh": np.bool_,
    "selections": np.int64,
}


def register() -> None:
    """Teach the Ray of this process to send both; the receiving side needs nothing."""
    # A tensor's own way sends the whole storage that it views, which may be a buffer of all gradients.
    ray.util.register_serializer(torch.Tensor, serializer=_bytes, deserializer=_tensor)
    ray.util.register_serializer(TrainSample, serializer=_arrays, deserializer=_sample)


def _bytes(tensor: torch.Tensor) -> tuple[np.ndarray, torch.dtype, torch.Size]:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy(), tensor.dtype, tensor.shape


def _tensor(sent: tuple[np.ndarray, torch.dtype, torch.Size]) -> torch.Tensor:
    array, dtype, shape = sent
    # What Ray gives is read-only memory that others see too.
    return torch.from_numpy(array.copy()).view(dtype).view(shape)


def _arrays(sample: TrainSample) -> dict[str, Any]:
    values = {field.name: getattr(sample, field.name) for field in fields(sample)}
    return {
        name: value if value is None or isinstance(value, str | int) else np.asarray(value, _DTYPES[name])
        for name, value in values.items()
    }


def _sample(arrays: dict[str, Any]) -> TrainSample:
    return TrainSample(**arrays)
