"""Copy tensors from a device to the host together.

Each copy waits until the device has finished, whatever the size of the tensor, so tensors are packed into a
few buffers of bytes on their device, and each buffer is copied at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pcdet_freeze.utils.tensors import flat_bytes

BUFFER_BYTES = 64 * 2**20
"""size of a buffer; it is the memory that the copies need on the device, besides the tensors"""


def host_copies(tensors: Sequence[Tensor], buffer_bytes: int = BUFFER_BYTES) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, copy on the CPU) for each of ``tensors``, in another order.

    The copies are contiguous and have the bits, dtype and shape of their tensors. Copies of one buffer share
    its memory: clone what is kept. Tensors that cannot be packed are yielded as they are: those that are on
    the CPU already or on ``meta``, sparse and quantized ones.

    Args:
        buffer_bytes: a larger tensor is copied alone. Where the device has no memory for a buffer, its
            tensors are copied one by one.
    """
    groups: dict[torch.device, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        if _can_be_packed(tensor):
            groups[tensor.device].append(index)
        else:
            yield index, tensor
    for group in groups.values():
        for indices in in_buffers(tensors, group, buffer_bytes):
            yield from zip(indices, _copy([tensors[index] for index in indices]), strict=True)


def to_host(value: Any, copy: bool = False) -> Any:
    """``value`` with all tensors in its dicts, lists and tuples detached and on the CPU.

    Args:
        copy: False: a tensor that is on the CPU already keeps its memory. True: it is cloned. All others get
            memory of their own.
    """
    leaves, structure = tree_flatten(value)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[place] for place in places]
    for index, found in host_copies(tensors):
        is_packed = found is not tensors[index]
        leaves[places[index]] = found.clone() if is_packed else found.detach().to("cpu", copy=copy)
    return tree_unflatten(leaves, structure)


def _can_be_packed(tensor: Tensor) -> bool:
    on_device = tensor.device.type not in ("cpu", "meta")
    return on_device and tensor.layout == torch.strided and not tensor.is_quantized


def in_buffers(
    tensors: Sequence[Tensor], indices: Sequence[int], most: int = BUFFER_BYTES
) -> Iterator[list[int]]:
    """Split ``indices`` of tensors into groups of at most ``most`` bytes, ready for :func:`pack`."""
    group: list[int] = []
    size = 0
    # in this order each tensor of a buffer begins at a multiple of its element size, as view(dtype) demands
    for index in sorted(indices, key=lambda index: -tensors[index].element_size()):
        own = _nbytes(tensors[index])
        if group and size + own > most:
            yield group
            group, size = [], 0
        group.append(index)
        size += own
    if group:
        yield group


def _copy(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the CPU, of one buffer."""
    try:
        return unpack(pack(tensors).cpu(), tensors)
    except torch.cuda.OutOfMemoryError:
        return [
            unpack(flat_bytes(tensor.detach().resolve_conj().resolve_neg().cpu()), [tensor])[0]
            for tensor in tensors
        ]


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of all ``tensors``, in C order, in one uint8 tensor on their device."""
    parts = [flat_bytes(tensor) for tensor in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def unpack(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``buffer`` with the dtypes and shapes of the tensors ``like``, which it was packed from."""
    found, begin = [], 0
    for tensor in like:
        end = begin + _nbytes(tensor)
        found.append(buffer[begin:end].view(tensor.dtype).reshape(tensor.shape))
        begin = end
    return found


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
