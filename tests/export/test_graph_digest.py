"""Digests of ONNX graphs by head."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from pcdet_freeze.export.graph_digest import head_digests


def graph(weight: float = 2.0, scale: float = 3.0, prefix: str = "", axis: int = 1) -> Any:
    """a.out = concat(x * weight, x); b.out = (x * weight) * scale."""
    constants = {"weight": weight, "scale": scale}
    tensors = [
        numpy_helper.from_array(np.array([value], np.float32), prefix + name)
        for name, value in constants.items()
    ]
    nodes = [
        helper.make_node("Mul", ["x", prefix + "weight"], [prefix + "trunk"], name=prefix + "first"),
        helper.make_node("Concat", [prefix + "trunk", "x"], ["a.out"], axis=axis),
        helper.make_node("Mul", [prefix + "trunk", prefix + "scale"], ["b.out"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "a.out", "b.out")
    ]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], tensors))


def test_names_of_nodes_and_weights_do_not_matter() -> None:
    assert head_digests(graph()) == head_digests(graph(prefix="other_"))


def test_a_weight_changes_the_heads_that_depend_on_it() -> None:
    before, after = head_digests(graph()), head_digests(graph(scale=3.0000002))
    assert before["a"] == after["a"] and before["b"] != after["b"]


def test_a_weight_of_the_trunk_changes_all_heads() -> None:
    before, after = head_digests(graph()), head_digests(graph(weight=1.0))
    assert before.keys() == {"a", "b"} and all(before[head] != after[head] for head in before)


def test_an_attribute_changes_the_digest() -> None:
    before, after = head_digests(graph()), head_digests(graph(axis=0))
    assert before["a"] != after["a"] and before["b"] == after["b"]
