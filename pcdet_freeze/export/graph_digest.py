"""Digests of an ONNX graph by head: equal digests mean the same operators with the same weights.

The digest of a value is the SHA-256 of the operator that computes it, its attributes and the digests of its
inputs (a Merkle tree, R. Merkle, CRYPTO '87). Names of nodes and weights, their order, and what other heads
compute do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any


def head_digests(model: Any) -> dict[str, str]:
    """SHA-256 of the graph that computes the outputs of each head.

    Args:
        model: ``onnx.ModelProto`` whose outputs are named ``<head>.<key>``.
    """
    digests = _value_digests(model.graph)
    heads: dict[str, list[str]] = {}
    for output in model.graph.output:
        heads.setdefault(output.name.split(".")[0], []).append(output.name)
    return {
        head: _sha256(f"{name} {digests[name]}" for name in sorted(names)) for head, names in heads.items()
    }


def _value_digests(graph: Any) -> dict[str, str]:
    """Digest of each value of ``graph``, whose nodes are in the order of execution."""
    digests = {"": "none"}  # an optional input that is left out
    digests |= {value.name: _sha256(["input", value.name]) for value in graph.input}
    digests |= {tensor.name: _tensor(tensor) for tensor in graph.initializer}
    for node in graph.node:
        attributes = sorted(_attribute(attribute) for attribute in node.attribute)
        operator = [node.domain, node.op_type, *attributes, *(digests[name] for name in node.input)]
        for number, name in enumerate(node.output):
            digests[name] = _sha256([*operator, str(number)])
    return digests


def _tensor(tensor: Any) -> str:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    return _sha256([str(array.dtype), str(array.shape), array.tobytes().hex()])


def _attribute(attribute: Any) -> str:
    from onnx import AttributeProto

    if attribute.type == AttributeProto.TENSOR:
        return f"{attribute.name} {_tensor(attribute.t)}"
    copy = AttributeProto()
    copy.CopyFrom(attribute)
    copy.doc_string = ""
    return f"{attribute.name} {copy.SerializeToString(deterministic=True).hex()}"


def _sha256(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()
