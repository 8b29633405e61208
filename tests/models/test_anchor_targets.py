"""Anchors, box code and target assignment on cases small enough to check by hand."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_freeze.models.dense_heads import (
    AnchorClass,
    AnchorGenerator,
    AxisAlignedTargetAssigner,
    ResidualCoder,
)
from pcdet_freeze.utils.settings.sections import read_section

CPU = torch.device("cpu")


def car(stride: int = 1, align_center: bool = True, turns: tuple[float, ...] = (0.0,)) -> AnchorClass:
    return AnchorClass("Car", ((4.0, 2.0, 1.5),), turns, (-1.0,), stride, 0.6, 0.45, align_center)


def test_aligned_anchors_stand_in_the_middle_of_cells() -> None:
    anchors = AnchorGenerator([car()], [0, -2, -3, 8, 2, 1], [4, 2, 1]).all(CPU)
    assert anchors[:, 0].tolist() == [1, 3, 5, 7, 1, 3, 5, 7]
    assert anchors[:, 1].tolist() == [-1] * 4 + [1] * 4
    assert anchors[0, 2:].tolist() == [-0.25, 4.0, 2.0, 1.5, 0.0]


def test_other_anchors_reach_from_border_to_border() -> None:
    anchors = AnchorGenerator([car(align_center=False)], [0, -2, -3, 9, 2, 1], [4, 2, 1]).all(CPU)
    assert anchors[:4, 0].tolist() == [0, 3, 6, 9]
    assert anchors[::4, 1].tolist() == [-2, 2]


def test_anchors_of_a_cell_stand_side_by_side_class_by_class() -> None:
    walker = AnchorClass("Pedestrian", ((0.8, 0.6, 1.7),), (0.0, 1.57), (-1.0, 0.0), 1, 0.5, 0.35)
    generator = AnchorGenerator([car(turns=(0.0, 1.57)), walker], [0, -2, -3, 8, 2, 1], [4, 2, 1])
    assert generator.num_per_location == 6
    first = generator.all(CPU)[:6]
    assert first[:, 3].tolist() == pytest.approx([4.0, 4.0, 0.8, 0.8, 0.8, 0.8])
    assert first[:, 6].tolist() == pytest.approx([0, 1.57, 0, 1.57, 0, 1.57])
    assert [len(part) for part in generator.per_class(CPU)] == [8, 8]


def test_anchors_that_an_evaluation_made_can_be_used_in_a_training() -> None:
    generator = AnchorGenerator([car()], [0, -2, -3, 8, 2, 1], [4, 2, 1])
    with torch.inference_mode():
        generator.all(CPU)
    assert not generator._cells(CPU).is_inference()


def test_copies_share_anchors_and_pickles_make_them_again() -> None:
    generator = AnchorGenerator([car()], [0, -2, -3, 8, 2, 1], [4, 2, 1])
    anchors = generator.all(CPU)
    assert copy.deepcopy(generator) is generator
    assert pickle.loads(pickle.dumps(generator)).all(CPU).equal(anchors)


@given(st.lists(st.floats(-30, 30), min_size=18, max_size=18), st.booleans())
@settings(max_examples=50, deadline=None)
def test_decoding_undoes_encoding(numbers: list[float], sincos: bool) -> None:
    values = torch.tensor(numbers, dtype=torch.float64).view(2, 9)
    values[:, 3:6] = values[:, 3:6].abs() + 0.1
    coder = ResidualCoder(code_size=9, encode_angle_by_sincos=sincos)
    decoded = coder.decode(coder.encode(values[:1], values[1:]), values[1:])
    turn = decoded[:, 6] - values[:1, 6]
    torch.testing.assert_close(turn.cos(), torch.ones_like(turn), atol=1e-9, rtol=0)
    torch.testing.assert_close(decoded[:, :6], values[:1, :6], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(decoded[:, 7:], values[:1, 7:])


class Street:
    """Eight car anchors in a row, 2 m apart, 4 m long."""

    def __init__(self, **options: bool) -> None:
        generator = AnchorGenerator([car()], [0, -1, -3, 16, 1, 1], [8, 1, 1])
        self.anchors = generator.per_class(CPU)
        self.assigner = AxisAlignedTargetAssigner([car()], ["Van", "Car"][1:], ResidualCoder(), **options)

    def assign(self, *samples: list[list[float]]) -> dict[str, torch.Tensor]:
        rows = max(len(sample) for sample in samples)
        boxes = torch.zeros(len(samples), rows, 8)
        for padded, sample in zip(boxes, samples, strict=True):
            padded[: len(sample)] = torch.tensor(sample).view(-1, 8)
        before = boxes.clone()
        targets = self.assigner.assign_targets(self.anchors, boxes)
        assert boxes.equal(before)
        return targets


def box(x: float, label: int = 1, length: float = 4.0) -> list[float]:
    return [x, 0.0, -0.25, length, 2.0, 1.5, 0.0, label]


def test_a_box_on_an_anchor_makes_it_positive_and_far_ones_negative() -> None:
    targets = Street().assign([box(7.0)])
    # the neighbours overlap by 2 of 6 metres: below 0.45
    assert targets["box_cls_labels"].tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]
    assert targets["reg_weights"].tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]
    assert not targets["box_reg_targets"].any()


def test_between_the_thresholds_an_anchor_is_ignored() -> None:
    # 3 of 5 metres: 0.6 is a match; a box of 5 m covers 4 of 5 m there, and 3 of 6 m beside
    targets = Street().assign([box(7.5, length=5.0)])
    assert targets["box_cls_labels"].tolist() == [[0, 0, 0, 1, -1, 0, 0, 0]]


def test_the_best_anchor_of_a_small_box_is_positive_all_the_same() -> None:
    targets = Street().assign([box(7.2, length=0.5)])
    assert targets["box_cls_labels"][0, 3] == 1
    assert (targets["box_cls_labels"] > 0).sum() == 1
    assert targets["box_reg_targets"][0, 3, 3] == pytest.approx(torch.log(torch.tensor(0.125)).item())


def test_a_positive_anchor_gets_the_box_with_the_largest_overlap() -> None:
    targets = Street().assign([box(7.6), box(7.1)])
    expected = (7.1 - 7.0) / (4.0**2 + 2.0**2) ** 0.5
    assert targets["box_reg_targets"][0, 3, 0] == pytest.approx(expected, abs=1e-6)


def test_samples_without_boxes_have_negatives_only() -> None:
    targets = Street().assign([], [box(7.0)], [])
    assert targets["box_cls_labels"].sum(dim=1).tolist() == [0, 1, 0]
    nothing = Street().assign([], [])
    assert not any(value.any() for value in nothing.values())
    assert nothing["box_reg_targets"].shape == (2, 8, 7)


def test_a_box_that_no_anchor_touches_forces_nothing() -> None:
    assert not Street().assign([box(60.0)])["box_cls_labels"].any()


def test_boxes_of_other_classes_are_not_matched() -> None:
    walker = AnchorClass("Pedestrian", ((0.8, 0.6, 1.7),), (0.0,), (-1.0,), 1, 0.5, 0.35, True)
    generator = AnchorGenerator([walker, car()], [0, -1, -3, 16, 1, 1], [8, 1, 1])
    assigner = AxisAlignedTargetAssigner([walker, car()], ["Car", "Pedestrian"], ResidualCoder())
    targets = assigner.assign_targets(generator.per_class(CPU), torch.tensor([[box(7.0, label=1)]]))
    assert targets["box_cls_labels"].view(8, 2).tolist() == [[0, 0]] * 3 + [[0, 1]] + [[0, 0]] * 4


def test_weights_can_be_shared_among_the_anchors_that_count() -> None:
    targets = Street(norm_by_num_examples=True).assign([box(7.5, length=5.0)])
    assert targets["reg_weights"].sum().item() == pytest.approx(1 / 7)


def test_overlap_can_regard_height() -> None:
    high = box(7.0)
    high[2] = 0.55
    assert Street().assign([high])["box_cls_labels"][0, 3] == 1
    labels = Street(match_height=True).assign([high, box(15.0)])["box_cls_labels"]
    assert labels[0, 3] == 1  # 0.30 only, but it is the best anchor of its box
    assert Street(match_height=True).assign([[*high[:2], 5.0, *high[3:]]])["box_cls_labels"].sum() == 0


def test_thresholds_the_wrong_way_round_are_an_error() -> None:
    anchors = AnchorClass("Car", ((4.0, 2.0, 1.5),), (0.0,), (-1.0,), 1, 0.4, 0.5)
    _, faults = read_section(AnchorClass, vars(anchors), "ANCHORS")
    assert "ANCHORS.unmatched_threshold must not exceed matched_threshold; got 0.5 and 0.4" in faults
