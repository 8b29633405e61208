"""Collectives of the default process group that exchange tensors only, for NCCL as for gloo.

NCCL takes tensors on its rank's own device, and the host waits for the device whenever it reads a result:
each function here waits once, or twice where it says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist

from pcdet_freeze.utils.host_copies import in_buffers, pack, unpack

HEAD_BYTES = 1024
"""bytes up to this number, with their length, are exchanged in one collective"""
LENGTH_BYTES = 8


def collective_device() -> torch.device:
    """The device of tensors for collectives: the CPU, or the current device where the backend has no CPU."""
    kind = collective_type(dist.get_backend_config())
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, getattr(torch, kind).current_device())


def collective_type(config: str) -> str:
    """The type of :func:`collective_device` for ``config``, as ``cpu:gloo,cuda:nccl`` or ``cuda:nccl``."""
    backends = _backends(config)
    if backends.get("cpu", "nccl") != "nccl":  # old versions of torch list NCCL for the CPU too
        return "cpu"
    return next((kind for kind in backends if kind != "cpu"), "cuda")


def _backends(config: str) -> dict[str, str]:
    """Type of device -> backend."""
    return {kind: backend for kind, _, backend in (part.partition(":") for part in config.split(","))}


def all_gather_bytes(data: bytes) -> list[bytes]:
    """``data`` of every rank, in rank order, on every rank. A second collective follows above HEAD_BYTES."""
    heads = _all_gather(_head(data))
    lengths = [_length(head) for head in heads]
    bodies = [head[LENGTH_BYTES:] for head in heads]
    if max(lengths) > len(bodies[0]):
        bodies = _all_gather(data.ljust(max(lengths), b"\0"))
    return [body[:length] for body, length in zip(bodies, lengths, strict=True)]


def broadcast_bytes(data: bytes) -> bytes:
    """Rank 0's ``data``, on every rank. A second collective follows above HEAD_BYTES."""
    head = _broadcast(_head(data))
    length, body = _length(head), head[LENGTH_BYTES:]
    if length > len(body):
        body = _broadcast(data[:length].ljust(length, b"\0"))
    return body[:length]


def _head(data: bytes) -> bytes:
    """The length of ``data`` and its first bytes, HEAD_BYTES in all."""
    return (len(data).to_bytes(LENGTH_BYTES, "little") + data)[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0")


def _length(head: bytes) -> int:
    return int.from_bytes(head[:LENGTH_BYTES], "little")


def _all_gather(data: bytes) -> list[bytes]:
    """``data``, which has one length on all ranks, of every rank."""
    own = _tensor(data)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return [row.numpy().tobytes() for row in torch.stack(parts).cpu()]


def _broadcast(data: bytes) -> bytes:
    """Rank 0's ``data``, which has one length on all ranks."""
    tensor = _tensor(data)
    dist.broadcast(tensor, src=0)
    return tensor.cpu().numpy().tobytes()


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(collective_device())


@torch.no_grad()
def broadcast_tensors(tensors: Sequence[torch.Tensor]) -> None:
    """Copy rank 0's ``tensors`` into those of every rank; one that is equal already is not written to.

    They are packed into a few buffers, so that there is one broadcast and one wait a buffer.

    Args:
        tensors: dense, with the same dtypes and shapes on all ranks.
    """
    groups: dict[torch.device, list[torch.Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device].append(tensor)
    for group in groups.values():
        for indices in in_buffers(group, range(len(group))):
            _broadcast_packed([group[index] for index in indices])


def _broadcast_packed(tensors: Sequence[torch.Tensor]) -> None:
    own = pack(tensors)
    is_taken = own.device.type in _backends(dist.get_backend_config())
    device = own.device if is_taken else collective_device()
    received = own.to(device, copy=True)
    dist.broadcast(received, src=0)
    received = received.to(own.device)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    changed = torch.stack([part.any() for part in (received != own).split(sizes)]).tolist()
    for tensor, new, differs in zip(tensors, unpack(received, tensors), changed, strict=True):
        if differs:
            tensor.copy_(new)
