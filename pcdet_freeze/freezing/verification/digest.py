"""Digest of the exact bits of a tensor.

BLAKE2b with 16 bytes, about 1.3 GB/s on one core: 60 M float32 parameters take about 0.2 s.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pcdet_freeze.utils.host_copies import host_copies
from pcdet_freeze.utils.tensors import flat_bytes

ALGORITHM = "blake2b-128"


def tensor_digest(tensor: torch.Tensor) -> str:
    """``dtype[shape]:hash`` of a tensor of any dtype, layout and device.

    It is a digest of bits, not values: NaNs with different payloads differ, and so do 0.0 and -0.0. Strides
    do not matter.
    """
    shape = ",".join(str(size) for size in tensor.shape)
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind}[{shape}]:{_hash_tensor(tensor.detach()).hexdigest()}"


def tensor_digests(tensors: Sequence[torch.Tensor]) -> list[str]:
    """:func:`tensor_digest` of each tensor; those on a device are copied to the host in a few buffers."""
    digests = [""] * len(tensors)
    for index, copy in host_copies(tensors):
        digests[index] = tensor_digest(copy)
    return digests


def value_digest(value: Any) -> str:
    """Digest of a value of ``get_extra_state``: tensors by their bits, containers item by item."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return f"state:{digest.hexdigest()}"


def _hash_tensor(tensor: torch.Tensor) -> hashlib.blake2b:
    digest = hashlib.blake2b(digest_size=16)
    if tensor.device.type == "meta":
        digest.update(b"meta")
    elif tensor.layout != torch.strided:
        for part in _parts(tensor):
            digest.update(_bytes(part))
    elif tensor.is_quantized:
        digest.update(repr((tensor.qscheme(), *_scales(tensor))).encode())
        digest.update(_bytes(tensor.int_repr()))
    else:
        digest.update(_bytes(tensor))
    return digest


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Bytes of a strided tensor in C order; no copy if it is contiguous and on the CPU."""
    if tensor.numel() == 0:
        return memoryview(b"")
    return memoryview(flat_bytes(tensor.resolve_conj().resolve_neg().cpu()).numpy())  # type: ignore[arg-type]  # numpy stubs < 2


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        return [whole.indices(), whole.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]


def _scales(tensor: torch.Tensor) -> list[object]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [tensor.q_scale(), tensor.q_zero_point()]
    return [tensor.q_per_channel_scales().tolist(), tensor.q_per_channel_zero_points().tolist()]


def _feed(digest: hashlib.blake2b, value: Any) -> None:
    digest.update(type(value).__name__.encode())
    if isinstance(value, torch.Tensor):
        digest.update(tensor_digest(value).encode())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _feed(digest, key)
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(str(len(value)).encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, set | frozenset):
        digest.update("".join(sorted(value_digest(item) for item in value)).encode())
    elif value is None or isinstance(value, str | bytes | bool | int | float | complex):
        digest.update(repr(value).encode())
    else:
        digest.update(pickle.dumps(value, protocol=4))
