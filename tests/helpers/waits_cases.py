"""Small trainings whose waits for a device are counted."""

from __future__ import annotations

from typing import Any

SMALL_DATA: dict[str, Any] = {
    "DATA_CONFIG.NUM_SCENES.test": 8,
    "DATA_CONFIG.SENSOR.BEAMS": "VLP-16",
    "DATA_CONFIG.MIN_CARS": 1,
    "MODEL.FREEZE.ALLOW_RANDOM": True,
    # the arithmetic of the device, so that losses can be compared
    "MODEL.CHANNELS_LAST": False,
    "MODEL.FREEZE.SKIP_EMPTY": False,
}
SMALL = {
    "MODEL.BACKBONE_2D.LAYER_NUMS": [1, 1, 1],
    "MODEL.BACKBONE_2D.NUM_FILTERS": [8, 8, 8],
    "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS": [8, 8, 8],
}
POINTPILLAR = {"cfg": "cfgs/synthetic_models/pointpillar.yaml", "batch": 2, "sets": SMALL}
CENTERPOINT = {
    "cfg": "cfgs/synthetic_models/pointpillar.yaml",
    "model": "cfgs/waymo_models/centerpoint_pillar_1x.yaml",
    "batch": 2,
    "sets": {
        **SMALL,
        "MODEL.VFE.NUM_FILTERS": [8],
        "MODEL.MAP_TO_BEV.NUM_BEV_FEATURES": 8,
        "MODEL.BACKBONE_2D.LAYER_STRIDES": [2, 2, 2],
        "MODEL.DENSE_HEAD.SHARED_CONV_CHANNEL": 8,
        "MODEL.DENSE_HEAD.CLASS_NAMES_EACH_HEAD": [["Car"], ["Pedestrian", "Cyclist"]],
        "MODEL.DENSE_HEAD.TARGET_ASSIGNER_CONFIG.FEATURE_MAP_STRIDE": 2,
        "MODEL.POST_PROCESSING.EVAL_METRIC": "kitti",
    },
}
THREE_TASKS = {
    "cfg": "cfgs/synthetic_models/multi_task.yaml",
    "batch": 2,
    "sets": {
        **SMALL,
        "MODEL.VFE.NUM_FILTERS": [8],
        "MODEL.MAP_TO_BEV.NUM_BEV_FEATURES": 8,
        "MODEL.BACKBONE_2D.SEGBLOCKS": {"LAYER_NUMS": [0, 1, 1], "NUM_FILTERS": [8, 8, 8], "NUM_OUT": 8},
        "MODEL.BACKBONE_2D.LANEBLOCKS.NUM_FILTERS": [8, 8],
        "MODEL.BACKBONE_2D.MIXSEGNET": {"PATCH_SIZE": 8, "WIDTH": 16, "DEPTH": 1, "NUM_OUT": 8},
        "MODEL.SEGMENT_HEAD.POINT_FILTERS": [8],
        "MODEL.LANE_HEAD.NUM_FILTERS": 8,
    },
}

NEW_CLASS = {
    "cfg": "cfgs/synthetic_models/new_class.yaml",
    "batch": 2,
    "copies": 2,  # the CenterHead selects its boxes before they are merged with those of the other head
    "sets": {
        **SMALL,
        "MODEL.VFE.NUM_FILTERS": [8],
        "MODEL.MAP_TO_BEV.NUM_BEV_FEATURES": 8,
        "MODEL.DENSE_HEADS.cyclist_head.SHARED_CONV_CHANNEL": 8,
    },
}


def frozen(case: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**case, "sets": {**case["sets"], "MODEL.NOT_TRAIN_IN_MULTI_TASK": list(names)}}


CASES = {
    "PointPillar": POINTPILLAR,
    "PointPillar, frozen": frozen(POINTPILLAR, "vfe", "backbone_2d.blocks"),
    "CenterPoint": CENTERPOINT,
    "CenterPoint, frozen": frozen(CENTERPOINT, "vfe", "backbone_2d.blocks"),
    "new class, frozen": NEW_CLASS,
    "three tasks": {**THREE_TASKS, "batch": 4},
    "three tasks, frozen": frozen(THREE_TASKS, "vfe", "backbone_2d", "dense_head"),
}
