"""Weights of a bf16 model through shared memory to a process that copies them, against memcpy, in one run.

    python tests/benchmarks/bench_sync.py [--gb 1] [--bucket-mib 128] [--repeats 7] [--threads 1] [--python P]

Bridge and transport are those of a sync: Megatron's parameters under hub names, laid into shared memory that
is kept, opened and copied by a receiver; `threads` on each side. memcpy copies as many bytes once. Prints JSON:
GB/s of both (the best of alternating repeats), the ratio with as many threads as both sides have together and
as one has, GB/s of the first sync, for which memory is new, and GB/s where every sync has new memory.

P is an interpreter with sglang: a server of the same model on the CPU then gets the weights, too. `sglang_sync`
is GB/s of that whole sync, `sglang_pack` of the trainer's part, `sglang_load` of the server's.
"""

import argparse
import asyncio
import base64
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from rlcore_glm4.bridge import glm4_bridge
from rlcore_glm4.spec import glm4_spec

from rlcore.bridge.export import Exporter
from rlcore.config.schema import Parallel, Recipe, Recompute
from rlcore.config.sglang_arguments import installed_arguments
from rlcore.controller.sync import SyncReport, sync_weights
from rlcore.rollout.sglang.arguments import ServerPlace, server_command
from rlcore.rollout.sglang.engine import open_engine
from rlcore.rollout.sglang.server import ServerProcess, free_port
from rlcore.rollout.sglang.updates import TensorTransport, served_updates
from rlcore.sync.buckets import buckets
from rlcore.sync.outbox import Outbox
from rlcore.sync.parcel import Packing, Parcel
from rlcore.telemetry.log_files import LogFolder
from rlcore.testing.tiny import tiny_tokenizer
from rlcore.trainer.setup import process_groups

MIB = 2**20
CPU = torch.device("cpu")
CONFIG = {
    "model_type": "glm4",
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
# Bytes of a layer and of both embeddings, in bf16.
LAYER, TABLES = 94e6, 262e6


def receive(pipe: Connection, threads: int) -> None:
    """Copy each bundle into tensors of this process's own, as a server loads weights; say when it is done."""
    torch.set_num_threads(threads)
    own: dict[str, torch.Tensor] = {}
    mapped: list[torch.Tensor] = []
    while handle := pipe.recv():
        sent = pickle.loads(base64.b64decode(handle))
        flat = sent["flattened_tensor"]
        # While it is referred to, memory stays mapped.
        mapped = [*mapped[-3:], flat]
        for one in sent["metadata"]:
            tensor = flat[one.start_idx : one.end_idx].view(one.dtype).view(one.shape)
            own.setdefault(one.name, torch.empty_like(tensor)).copy_(tensor)
        pipe.send(True)


def sync(exporter: Exporter, outbox: Outbox, pipe: Connection, room: int) -> int:
    """One sync, the next bundle packed while one is copied; returns its bytes."""
    outbox.open(Packing("tensor", 1, copies=1), room)
    sent, waits = 0, False
    for bucket in buckets(exporter, room):
        parcel = outbox.pack(bucket)
        if waits:
            pipe.recv()
        pipe.send(parcel.handles[0])
        sent, waits = sent + parcel.nbytes, True
    pipe.recv()
    return sent


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def with_threads(number: int, work: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        torch.set_num_threads(number)
        work()

    return run


def measure(options: argparse.Namespace, pipe: Connection) -> dict[str, float]:
    # Megatron, which the trainer has to prepare for machines like this one.
    from rlcore.models.build import build_model, transformer_config

    layers = max(1, round((options.gb * 1e9 - TABLES) / LAYER))
    spec = glm4_spec(CONFIG | {"num_hidden_layers": layers})
    config = transformer_config(
        spec,
        parallel=Parallel(),
        dtype=torch.bfloat16,
        recompute=Recompute(),
        megatron_overrides={},
        mtp_layers=0,
    )
    exporter = Exporter(build_model(spec, config), glm4_bridge(spec))
    room, kept = options.bucket_mib * MIB // 2, Outbox(CPU)

    def one_sync(outbox: Outbox = kept) -> int:
        return sync(exporter, outbox, pipe, room)

    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    nbytes = one_sync()
    first = time.perf_counter() - started
    source, target = (torch.ones(nbytes, dtype=torch.uint8) for _ in range(2))
    works = {
        "sync": with_threads(options.threads, one_sync),
        "memcpy_both": with_threads(2 * options.threads, lambda: target.copy_(source)),
        "memcpy_one": with_threads(options.threads, lambda: target.copy_(source)),
        "new_memory": with_threads(options.threads, lambda: one_sync(Outbox(CPU))),
    }
    times = {name: [] for name in works}
    for _ in range(options.repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    speeds = {name: nbytes / 1e9 / min(found) for name, found in times.items()}
    ratios = {f"ratio_{part}": speeds["sync"] / speeds[f"memcpy_{part}"] for part in ("both", "one")}
    served = measure_sglang(exporter, spec.hf_config, options) if options.python else {}
    return {"gb": nbytes / 1e9, "first_sync": nbytes / 1e9 / first, **speeds, **ratios, **served}


class Packer:
    """What a sync asks of a policy, in this process."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._outbox = Outbox(CPU)

    def weights(self, most_bytes: int, packing: Packing) -> Iterator[Parcel]:
        self._outbox.open(packing, most_bytes)
        return (self._outbox.pack(bucket) for bucket in buckets(self._exporter, most_bytes))


async def sync_to_sglang(
    server: ServerProcess, exporter: Exporter, options: argparse.Namespace
) -> list[SyncReport]:
    await server.wait_healthy()
    transport = served_updates(TensorTransport())
    engine = await open_engine([server.url], transport, vocab_size=CONFIG["vocab_size"])
    packer, versions = Packer(exporter), range(1, options.repeats + 2)
    reports = [await sync_weights(engine, packer, version, options.bucket_mib) for version in versions]
    await engine.close()
    # The first has new memory.
    return reports[1:]


def measure_sglang(exporter: Exporter, config: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config | {"architectures": ["Glm4ForCausalLM"]}))
        tiny_tokenizer(Path(folder), chat_template="", special_tokens=["<e>"], eos_token="<e>")
        args = {"load_format": "dummy", "max_total_tokens": 4096, "skip_server_warmup": True}
        sglang = {"python": options.python, "args": args}
        recipe = Recipe(model={"checkpoint": folder, "dtype": "bfloat16"}, rollout={"sglang": sglang})
        place, known = ServerPlace("127.0.0.1", free_port()), installed_arguments(options.python)
        log = LogFolder(Path(folder)).file("server.log")
        server = ServerProcess(server_command(recipe, folder, place, known), log)
        try:
            reports = asyncio.run(sync_to_sglang(server, exporter, options))
        finally:
            server.stop()
    gb = reports[0].nbytes / 1e9
    return {
        "sglang_sync": gb / min(one.seconds for one in reports),
        "sglang_pack": gb / min(one.pack_seconds for one in reports),
        "sglang_load": gb / min(one.load_seconds for one in reports),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--bucket-mib", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--python", type=Path)
    options = parser.parse_args()
    context = mp.get_context("spawn")
    pipe, theirs = context.Pipe()
    receiver = context.Process(target=receive, args=(theirs, options.threads))
    receiver.start()
    with process_groups(Parallel(), seed=0):
        found = measure(options, pipe)
    pipe.send("")
    receiver.join()
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=2))


if __name__ == "__main__":
    main()
