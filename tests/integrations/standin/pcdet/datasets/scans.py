# ruff: noqa: E501
"""A data set with a pipeline: augmentors, point encoder, processors and collate, in OpenPCDet's public shape.

The height of point k of a scan is k / 64, which no augmentor here changes: a test can tell which point it is.
"""

from functools import partial, reduce
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

STEP = 64


def bound_steps(owner, entries):
    """Callables for the entries of a config list: ``frame = step(data_dict=frame)``."""
    whole = {"gt_sampling": DataBaseSampler}
    return [
        whole[entry["NAME"]]()
        if entry["NAME"] in whole
        else partial(getattr(owner, entry["NAME"]), config=entry)
        for entry in entries
    ]


class DataBaseSampler:
    """Pastes a box with points, and removes what was there."""

    def __call__(self, data_dict):
        centre = np.random.uniform(-1, 1, 3).astype(np.float32)
        box = np.array([[*centre, 1, 1, 1, 0]], np.float32)
        points = data_dict["points"]
        pasted = np.random.uniform(-0.4, 0.4, (5, 4)).astype(np.float32)
        pasted[:, :3] += centre
        assert points.shape[1] == pasted.shape[1]
        kept = points[(np.abs(points[:, :3] - centre) > 0.5).any(axis=1)]
        data_dict["points"] = np.concatenate([pasted, kept])
        data_dict["gt_boxes"] = np.concatenate([data_dict["gt_boxes"], box])
        data_dict["gt_names"] = np.append(data_dict["gt_names"], "Car")
        return data_dict


class DataAugmentor:
    def __init__(self, steps):
        self.data_augmentor_queue = bound_steps(self, steps)

    def random_world_flip(self, data_dict, config):
        if np.random.choice([False, True]):
            data_dict["points"][:, 1] *= -1
            data_dict["gt_boxes"][:, 1] *= -1
        return data_dict

    def random_world_rotation(self, data_dict, config):
        angle = np.random.uniform(-0.5, 0.5)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
        data_dict["points"][:, :2] = data_dict["points"][:, :2] @ turn
        data_dict["gt_boxes"][:, :2] = data_dict["gt_boxes"][:, :2] @ turn
        return data_dict

    def jitter(self, data_dict, config):
        """An augmentor of a fork, which changes every coordinate."""
        data_dict["points"] = data_dict["points"] + np.random.uniform(0.1, 0.2, data_dict["points"].shape)
        return data_dict

    def apply(self, frame):
        return reduce(lambda done, step: step(data_dict=done), self.data_augmentor_queue, frame)


class PointFeatureEncoder:
    def __init__(self, config):
        self.src_feature_list, self.used_feature_list = config.src_feature_list, config.used_feature_list

    @property
    def num_point_features(self):
        return len(self.used_feature_list)

    def apply(self, frame):
        assert frame["points"].shape[1] == len(self.src_feature_list)
        columns = map(self.src_feature_list.index, self.used_feature_list)
        return {**frame, "points": frame["points"][:, [*columns]]}


class DataProcessor:
    def __init__(self, steps, limits, training, num_point_features):
        self.limits, self.training, self.num_point_features = limits, training, num_point_features
        self.data_processor_queue = bound_steps(self, steps)

    def mask_points_and_boxes_outside_range(self, data_dict, config):
        points = data_dict["points"]
        data_dict["points"] = points[
            ((points[:, :2] >= self.limits[:2]) & (points[:, :2] <= self.limits[3:5])).all(1)
        ]
        return data_dict

    def shuffle_points(self, data_dict, config):
        if self.training:
            data_dict["points"] = data_dict["points"][np.random.permutation(len(data_dict["points"]))]
        return data_dict

    def transform_points_to_voxels(self, data_dict, config):
        points = data_dict["points"]
        assert points.shape[1] == self.num_point_features and points.flags["C_CONTIGUOUS"]
        data_dict["voxels"] = points[:8, None].copy()
        return data_dict

    def apply(self, frame):
        return reduce(lambda done, step: step(data_dict=done), self.data_processor_queue, frame)


class ScanDataset(Dataset):
    """Scans of 40 to 43 points; the scan after the last one has no boxes."""

    def __init__(self, dataset_cfg=None, class_names=None, training=True, root_path=None, logger=None):
        self.dataset_cfg, self.class_names, self.training, self.logger = (
            dataset_cfg,
            class_names,
            training,
            logger,
        )
        self.root_path = Path(root_path or dataset_cfg.DATA_PATH)
        self.point_cloud_range = np.array(dataset_cfg.POINT_CLOUD_RANGE, np.float32)
        self.point_feature_encoder = PointFeatureEncoder(dataset_cfg.POINT_FEATURE_ENCODING)
        self.data_augmentor = DataAugmentor(dataset_cfg.DATA_AUGMENTOR) if training else None
        self.data_processor = DataProcessor(
            dataset_cfg.DATA_PROCESSOR, self.point_cloud_range, training, self.point_feature_encoder.num_point_features
        )  # fmt: skip

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "logger"}

    def __len__(self):
        return 8

    def __getitem__(self, index):
        draw = np.random.RandomState(index)
        points = draw.uniform(-2, 2, (40 + index % 4, 4)).astype(np.float32)
        points[:, 2] = np.arange(len(points)) / STEP
        boxes = draw.uniform(-1, 1, (3, 7)).astype(np.float32)[: 0 if index >= len(self) else 3]
        frame = {
            "points": points,
            "gt_boxes": boxes,
            "gt_names": np.array(["Car"] * len(boxes)),
            "frame_id": str(index),
        }
        data_dict = self.prepare_data(data_dict=frame)
        data_dict["gt_boxes"] = data_dict["gt_boxes"][:3, :4]
        return data_dict

    def prepare_data(self, data_dict):
        frame = dict(data_dict)
        for part in filter(None, [self.data_augmentor, self.point_feature_encoder, self.data_processor]):
            frame = part.apply(frame)
        if self.training and not len(frame["gt_boxes"]):
            return self[np.random.randint(len(self))]  # trains with another frame
        return {key: value for key, value in frame.items() if key != "gt_names"}

    @staticmethod
    def collate_batch(batch_list, _unused=False):
        batch = {"batch_size": len(batch_list)}
        for key in batch_list[0]:
            values = [sample[key] for sample in batch_list]
            if key == "points":
                values = [np.insert(value, 0, number, axis=1) for number, value in enumerate(values)]
            batch[key] = np.concatenate(values) if key in ("points", "voxels") else np.stack(values)
        return batch

    def generate_prediction_dicts(self, batch_dict, pred_dicts, class_names, output_path=None):
        scores = [pred_dict["pred_scores"].numpy() for pred_dict in pred_dicts]
        return [
            {"frame_id": name, "score": score}
            for name, score in zip(batch_dict["frame_id"], scores, strict=True)
        ]

    def evaluation(self, det_annos, class_names, **kwargs):
        assert all(set(anno) == {"frame_id", "score"} for anno in det_annos)
        return f"{len(det_annos)} frames", {"frames": len(det_annos)}
