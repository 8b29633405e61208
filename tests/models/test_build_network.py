"""Building a detector: valid configs, and the errors of invalid ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from model_cases import CLASS_NAMES, dataset, model_config, small_model
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models import DENSE_HEADS, DETECTORS, TASK_HEADS, build_network

Change = Callable[[dict[str, Any]], Any]


def test_modules_stand_in_the_order_of_the_topology() -> None:
    config = model_config()
    model = small_model({key: config[key] for key in sorted(config, reverse=True)})
    assert model.module_names == ("vfe", "map_to_bev_module", "backbone_2d", "dense_head")
    assert [name for name, _ in model.named_children()] == list(model.module_names)


def test_every_module_declares_the_keys_that_it_reads_and_writes() -> None:
    available = {"voxels", "voxel_num_points", "voxel_coords", "batch_size", "gt_boxes"}
    for module in small_model().module_list:
        assert {*module.reads, *module.reads_train} <= available
        available |= set(module.writes)
    assert {"batch_cls_preds", "batch_box_preds"} <= available


def test_the_classifier_starts_with_a_probability_of_one_percent() -> None:
    head = small_model().dense_head
    torch.testing.assert_close(head.conv_cls.bias.sigmoid(), torch.full_like(head.conv_cls.bias, 0.01))
    assert 0.0005 < head.conv_box.weight.std() < 0.002


def test_bn_momentum_defaults_to_openpcdets() -> None:
    config = model_config()
    config["BACKBONE_2D"]["BN_MOMENTUM"] = 0.1
    model = small_model(config)
    assert model.vfe.pfn_layers[0].norm.momentum == 0.01
    norms = [m for m in model.backbone_2d.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}


FAULTS: dict[str, tuple[Change, str]] = {
    "an unknown detector": (
        lambda c: c.update(NAME="PVRCNN"),
        r"MODEL.NAME must be one of .*PointPillar.*'PVRCNN'",
    ),
    "an unknown module": (
        lambda c: c["VFE"].update(NAME="ImageVFE"),
        r"MODEL.VFE.NAME: .*PillarVFE.*'ImageVFE'.*not implemented",
    ),
    "a family that is not implemented": (
        lambda c: c.update(BACKBONE_3D={"NAME": "PointNet2MSG"}),
        r"MODEL.BACKBONE_3D.NAME: .*'PointNet2MSG'.*not implemented",
    ),
    "a section that is not a section": (lambda c: c.update(VFE="PillarVFE"), "MODEL.VFE must be a section"),
    "a model key that is not implemented": (
        lambda c: c.update(IMAGE_BACKBONE={}),
        "MODEL.IMAGE_BACKBONE is not a key",
    ),
    "a module key that is not implemented": (
        lambda c: c["DENSE_HEAD"].update(SEPARATE_MULTIHEAD=True),
        "MODEL.DENSE_HEAD.SEPARATE_MULTIHEAD is not a key",
    ),
    "a typing error": (lambda c: c["VFE"].update(NUM_FILTER=[8]), "did you mean NUM_FILTERS"),
    "a missing key": (
        lambda c: c["BACKBONE_2D"].pop("LAYER_NUMS"),
        "MODEL.BACKBONE_2D.LAYER_NUMS is required, but missing",
    ),
    "a missing key deep inside": (
        lambda c: c["DENSE_HEAD"]["ANCHOR_GENERATOR_CONFIG"][1].pop("anchor_sizes"),
        r"MODEL.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG\[1\].anchor_sizes is required",
    ),
    "a wrong type": (
        lambda c: c["BACKBONE_2D"].update(LAYER_STRIDES=2),
        "MODEL.BACKBONE_2D.LAYER_STRIDES must be a list of integers; got int 2",
    ),
    "a wrong type inside a list": (
        lambda c: c["BACKBONE_2D"].update(LAYER_STRIDES=[2, "2"]),
        r"LAYER_STRIDES\[1\] must be a whole number, 1 or more; got '2'",
    ),
    "lists of different lengths": (
        lambda c: c["BACKBONE_2D"].update(NUM_FILTERS=[8]),
        "LAYER_NUMS, LAYER_STRIDES and NUM_FILTERS must have one entry per level",
    ),
    "a map as wide as no pillar": (
        lambda c: c["MAP_TO_BEV"].update(NUM_BEV_FEATURES=64),
        "MODEL.MAP_TO_BEV.NUM_BEV_FEATURES must be the width of pillar_features, 8; got 64",
    ),
    "levels that do not meet": (
        lambda c: c["BACKBONE_2D"].update(UPSAMPLE_STRIDES=[1, 1]),
        "16 x 16, 8 x 8.*UPSAMPLE_STRIDES",
    ),
    "anchors on another grid": (
        lambda c: c["DENSE_HEAD"]["ANCHOR_GENERATOR_CONFIG"][0].update(feature_map_stride=4),
        "feature_map_stride 4 of Car gives 8 x 8 cells, but spatial_features_2d has 16 x 16",
    ),
    "a class without anchors": (
        lambda c: c["DENSE_HEAD"]["ANCHOR_GENERATOR_CONFIG"].pop(),
        "one entry for each class, Car, Pedestrian; got entries for Car",
    ),
    "a missing module": (
        lambda c: c.pop("MAP_TO_BEV"),
        "reads spatial_features, which no module before it writes",
    ),
    "no post-processing": (lambda c: c.pop("POST_PROCESSING"), "MODEL.POST_PROCESSING is required"),
    "an unknown NMS": (
        lambda c: c["POST_PROCESSING"]["NMS_CONFIG"].update(NMS_TYPE="soft"),
        "MODEL.POST_PROCESSING.NMS_CONFIG.NMS_TYPE must be one of nms_gpu, nms_normal_gpu; got 'soft'",
    ),
    "random anchors": (
        lambda c: c["DENSE_HEAD"]["TARGET_ASSIGNER_CONFIG"].update(POS_FRACTION=0.5),
        "TARGET_ASSIGNER_CONFIG.POS_FRACTION must be -1.0",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_config_with_a_fault_is_one_clear_error(fault: str) -> None:
    change, message = FAULTS[fault]
    config = model_config()
    change(config)
    with pytest.raises(ConfigError, match=message):
        small_model(config)


def test_all_faults_of_a_config_are_reported_at_once() -> None:
    config = model_config()
    config["VFE"]["NUM_FILTERS"] = "64"
    config["BACKBONE_2D"]["NAME"] = "Resnet"
    del config["POST_PROCESSING"]["SCORE_THRESH"]
    with pytest.raises(ConfigError, match="has 3 faults") as error:
        small_model(config)
    for part in ("VFE.NUM_FILTERS", "'Resnet'", "POST_PROCESSING.SCORE_THRESH"):
        assert part in str(error.value)


def test_a_number_of_classes_that_is_not_the_data_sets_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"num_class must be .* 2 .*got 3"):
        build_network(model_config(), 3, dataset())


def test_a_map_that_the_strides_do_not_divide_is_an_error() -> None:
    with pytest.raises(ConfigError, match="15 x 15, 16 x 16"):
        build_network(model_config(), len(CLASS_NAMES), dataset(cells=30))


def test_a_data_set_without_voxels_is_an_error() -> None:
    points_only = dataset()
    points_only.voxel_size = points_only.grid_size = None
    with pytest.raises(ConfigError, match="transform_points_to_voxels"):
        build_network(model_config(), len(CLASS_NAMES), points_only)


def test_a_freeze_list_is_no_business_of_the_builder() -> None:
    config = model_config() | {"NOT_TRAIN_IN_MULTI_TASK": ["vfe"], "FREEZE": {"PARAMETERS": True}}
    assert all(p.requires_grad for p in small_model(config).parameters())


class KerbHead(nn.Module):
    """A custom task: one module."""

    reads = ("spatial_features_2d",)
    writes = ("kerb_map",)
    reads_train: tuple[str, ...] = ()

    def __init__(self, settings: dict[str, Any], context: Any) -> None:
        super().__init__()
        self.weight = settings["WEIGHT"]
        self.conv = nn.Conv2d(context.features["spatial_features_2d"].channels, 1, 1)
        self.last: Tensor

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        self.last = batch_dict["kerb_map"] = self.conv(batch_dict["spatial_features_2d"])
        return batch_dict

    def get_loss(self, tb_dict: dict[str, float] | None = None) -> tuple[Tensor, dict[str, float]]:
        loss = self.weight * self.last.square().mean()
        return loss, {**(tb_dict or {}), "kerb": loss.item()}

    def add_predictions(self, batch_dict: dict[str, Any], pred_dicts: list[dict[str, Any]]) -> None:
        for sample, pred_dict in enumerate(pred_dicts):
            pred_dict["kerb_map"] = batch_dict["kerb_map"][sample]


@pytest.fixture
def kerb_config() -> Iterator[dict[str, Any]]:
    TASK_HEADS.register(KerbHead)
    yield model_config() | {"KERB_HEAD": {"NAME": "KerbHead", "WEIGHT": 3.0}}
    del TASK_HEADS._known["KerbHead"]


def test_a_new_task_is_one_module_and_one_registry_line(kerb_config: dict[str, Any]) -> None:
    from model_cases import batch

    model = small_model(kerb_config)
    assert model.module_names[-2:] == ("dense_head", "kerb_head")
    ret_dict, tb_dict, _ = model.train()(batch())
    assert ret_dict["loss"].item() == pytest.approx(tb_dict["rpn_loss"] + tb_dict["kerb"])
    assert tb_dict["loss_kerb_head"] == pytest.approx(tb_dict["kerb"])
    pred_dicts, _ = model.eval()(batch())
    assert all(p["kerb_map"].shape == (1, 16, 16) and "pred_boxes" in p for p in pred_dicts)


def test_a_detector_can_have_a_task_head_only(kerb_config: dict[str, Any]) -> None:
    from model_cases import batch

    for section in ("DENSE_HEAD", "POST_PROCESSING"):
        del kerb_config[section]
    model = small_model(kerb_config)
    assert list(model.train()(batch())[1]) == ["loss_kerb_head", "kerb"]
    assert [list(p) for p in model.eval()(batch())[0]] == [["kerb_map"], ["kerb_map"]]


def test_the_names_of_openpcdet_are_registered() -> None:
    assert "PointPillar" in DETECTORS
    assert "AnchorHeadSingle" in DENSE_HEADS
