"""Base class of data sets: from a raw frame to a sample, and from samples to a batch.

```
__getitem__(index)
    rng    = RandomState([seed, epoch, index])      # so worker count and resume do not change data;
                                                    # after keep_variants(n): epoch modulo n
    sample = load_sample(index)                     # the subclass: a raw frame
    prepare_data(sample, rng)
        data_augmentor            (training only)
        boxes of other classes are removed; gt_names become the class column
        point_feature_encoder
        data_processor            (range mask, shuffle, voxels)
collate_batch([sample, ...]) -> batch_dict
```

Keys of a sample (LiDAR frame: x forward, y left, z up; metres; heading counter-clockwise from x):

| key | shape | |
| --- | --- | --- |
| points | (N, C) float32 | x, y, z, intensity, ... |
| frame_id | str | |
| gt_boxes | (G, 7) or (G, 9) float32 | x, y, z, dx, dy, dz, heading[, vx, vy]; centre in the box middle |
| labelled_classes | (C,) bool | optional; classes that are labelled; names before prepare_data |
| gt_names | (G,) str | before prepare_data; afterwards the last column of gt_boxes is the 1-based class |
| point_labels | (N,) int64 | optional; 255: no class |
| lane_map | (H, W) uint8 | optional; raster over the point cloud range, rows y, columns x; 255: no lane |
| calib, image_shape | | optional |
| voxels, voxel_coords, voxel_num_points | (M, P, C), (M, 3) zyx, (M,) | where the processor makes voxels |
| skipped_frames | list of str | names of bad or empty frames that were skipped before this one |
| bad_data | list of BadItem | optional; the bad frames among them, and bad database objects |
| cache_entry | (2,) int64 | after keep_variants: row in a cache, checksum of the points |
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from pcdet_freeze.datasets.augmentor import DataAugmentor
from pcdet_freeze.datasets.collate import collate
from pcdet_freeze.datasets.epoch import EpochMixin
from pcdet_freeze.datasets.frames import BOX_KEYS, keep_boxes
from pcdet_freeze.datasets.labels.labelled_classes import LABELLED_CLASSES, labelled_classes, mark_labelled
from pcdet_freeze.datasets.point_features import PointFeatureEncoder
from pcdet_freeze.datasets.processor import DataProcessor
from pcdet_freeze.datasets.reading.bad_data import BadFramePolicy
from pcdet_freeze.datasets.registry import Config, Sample
from pcdet_freeze.datasets.settings import DataSettings, OpenDataSettings
from pcdet_freeze.datasets.usable_frames import UsableFramesMixin
from pcdet_freeze.datasets.variants import VariantsMixin
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.sections import read_section


class LabelForms(NamedTuple):
    """What a model must know of the labels of a data set."""

    semantic_class_names: tuple[str, ...]
    lane_map_shape: tuple[int, int] | None


class DatasetTemplate(UsableFramesMixin, EpochMixin, VariantsMixin, Dataset):
    """Base of all data sets; a subclass loads raw frames and their ground truth.

    It implements ``__len__``, ``load_sample`` and ``ground_truth_annos``, and may override
    ``generate_prediction_dicts``. ``DATA_CONFIG.KEEP_EMPTY_FRAMES`` (default False, as in OpenPCDet):
    whether training uses frames without a box of the trained classes; frames with another label are always
    used.

    Frames may be partially labelled: a label key that is absent or None means that the frame does not have
    it. Boxes may be labelled for some classes only: those of ``DATA_CONFIG.LABELLED_CLASSES``, or of the
    frame's own ``labelled_classes``; boxes of other classes are then removed. ``labels``: labels that frames
    of this set can have (of LABEL_KEYS, and labels of your own tasks:
    arrays of one shape in all frames);
    ``semantic_class_names``: semantic class 0, 1, ...; ``lane_map_shape``: (H, W) of every lane map.
    """

    Settings: ClassVar[type[DataSettings]] = OpenDataSettings
    """what DATA_CONFIG is read into; a data set that knows all its keys has one of its own"""
    settings: Any
    """DATA_CONFIG, read into ``Settings``"""
    labels: tuple[str, ...] = ("gt_boxes",)
    semantic_class_names: tuple[str, ...] = ()
    absent_classes_count: bool = False
    """the mean IoU is over all semantic classes, with 0 for those without a labelled point"""
    lane_map_shape: tuple[int, int] | None = None

    def __init__(
        self,
        dataset_cfg: Config,
        class_names: Sequence[str],
        training: bool = True,
        root_path: str | Path | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        super().__init__()
        self.dataset_cfg = dataset_cfg
        self.class_names = list(class_names)
        self.training = training
        self.logger = logger or logging.getLogger("pcdet_freeze")
        settings = self.settings = self.read_settings(dataset_cfg)
        raise_faults(self.config_faults(dataset_cfg), dataset_cfg)
        for name, form in self.label_forms(dataset_cfg)._asdict().items():
            vars(self).setdefault(name, form)  # a subclass may have set it before this
        self.root_path = Path(root_path if root_path is not None else settings.data_path or ".")
        self.check_root()
        self.seed = 0
        self.epoch = 0
        self.keep_empty_frames = settings.keep_empty_frames
        self.labelled_classes = labelled_classes(settings, class_names, training)
        self.policy = BadFramePolicy(training and settings.on_bad_frame == "skip", settings.bad_frame_limit)
        self.timeout = settings.timeout or 0.0
        self.point_cloud_range = np.array(settings.point_cloud_range, np.float32)
        self.point_feature_encoder = PointFeatureEncoder(dataset_cfg["POINT_FEATURE_ENCODING"])
        self.data_augmentor = self._build_augmentor() if training else None
        self.data_processor = DataProcessor(
            dataset_cfg.get("DATA_PROCESSOR") or [],
            self.point_cloud_range,
            training,
            self.point_feature_encoder.num_point_features,
        )
        self.grid_size = self.data_processor.grid_size
        self.voxel_size = self.data_processor.voxel_size
        self.depth_downsample_factor = None
        self._warned: set[str] = set()
        self.open_files(settings)

    def open_files(self, settings: Any) -> None:
        """Find the frames of this data set; called by the constructor, when all else is set.

        A subclass overrides this in place of the constructor. ``settings``: DATA_CONFIG as ``Settings``.
        """

    @classmethod
    def read_settings(cls, dataset_cfg: Config) -> Any:
        """Read DATA_CONFIG into ``Settings``; ConfigError with every fault."""
        settings, faults = read_section(cls.Settings, dataset_cfg, "DATA_CONFIG")
        raise_faults(faults)
        return settings

    @classmethod
    def config_faults(cls, dataset_cfg: Config) -> list[str]:
        """Faults of DATA_CONFIG beyond those of its keys, which ``read_settings`` finds; reads no file."""
        return []

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """Point classes and size of the lane maps that frames of ``dataset_cfg`` have; reads no file."""
        return LabelForms(cls.semantic_class_names, cls.lane_map_shape)

    def _build_augmentor(self) -> DataAugmentor:
        return DataAugmentor(
            self.dataset_cfg.get("DATA_AUGMENTOR") or [],
            self.class_names,
            self.point_cloud_range,
            root_path=self.info_root,
            logger=self.logger,
            semantic_class_names=self.semantic_class_names,
            policy=self.policy,
        )

    @property
    def info_root(self) -> Path:
        """Folder of the info files and the ground-truth database: INFO_ROOT, or the data folder itself."""
        return Path(self.dataset_cfg.get("INFO_ROOT") or self.root_path)

    @property
    def mode(self) -> str:
        """'train' or 'test', as the keys of a config are called."""
        return "train" if self.training else "test"

    def check_root(self) -> None:
        """Raise DataError if this data set is not in ``root_path``, or set the folder of it that is meant.

        Called before any file is read.
        """

    def load_sample(self, index: int) -> Sample:
        """Return raw frame ``index``; raises DataError with the file's name for an unusable frame."""
        raise NotImplementedError(f"{type(self).__name__} must implement load_sample")

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all frames, in their order, for the evaluation; None: no box labels."""
        raise NotImplementedError(f"{type(self).__name__} has no annotations to evaluate against")

    def check_evaluation(self) -> None:
        """Raise ConfigError if ``official_scores`` cannot be computed; called before a training begins."""

    def official_scores(self, annos: Sequence[dict[str, Any]]) -> tuple[str, dict[str, float]] | None:
        """Scores of the data set's own tool, as an evaluator of EVAL_METRIC returns them.

        None: boxes are scored by MODEL.POST_PROCESSING.EVAL_METRIC, or no frame has boxes.
        """
        return None

    def frame_name(self, index: int) -> str:
        """Return the name of frame ``index`` for messages."""
        return str(index)

    def prepare_data(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        """Augment (training only), turn names into classes, pick point features, process; in that order."""
        mark_labelled(sample, self.labelled_classes)
        if self.data_augmentor is not None:
            sample = self.data_augmentor(sample, rng)
        self._names_to_classes(sample)
        self.point_feature_encoder(sample)
        sample = self.data_processor(sample, rng)
        sample.pop("road_plane", None)
        return sample

    def _names_to_classes(self, sample: Sample) -> None:
        if sample.get("gt_boxes") is None:
            for key in (*BOX_KEYS, LABELLED_CLASSES):
                sample.pop(key, None)
            return
        keep_boxes(sample, np.isin(np.asarray(sample["gt_names"], str), self.class_names))
        if LABELLED_CLASSES in sample:
            mark_labelled(sample, None)  # an augmentor may have added boxes
            sample[LABELLED_CLASSES] = np.isin(self.class_names, sample[LABELLED_CLASSES])
        classes = [self.class_names.index(name) + 1 for name in sample.pop("gt_names")]
        column = np.array(classes, np.float32).reshape(-1, 1)
        sample["gt_boxes"] = np.concatenate([sample["gt_boxes"].astype(np.float32), column], axis=1)

    def collate_batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """batch_dict of numpy arrays; see :func:`pcdet_freeze.datasets.collate.collate`."""
        return collate(samples, self.labels)

    def write_predictions(
        self, batch_dict: Mapping[str, Any], pred_dicts: Sequence[Mapping[str, Any]], folder: Path
    ) -> None:
        """Write predictions other than boxes below ``folder``, in the data set's own format if it has one.

        Called with ``--save_to_file``; see ``generate_prediction_dicts`` for boxes.
        """

    def generate_prediction_dicts(
        self,
        batch_dict: dict[str, Any],
        pred_dicts: list[dict[str, Any]],
        class_names: Sequence[str],
        output_path: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Predictions as annotation dicts: name, score, boxes_lidar (K, 7), pred_labels, frame_id."""
        annos = []
        for frame_id, prediction in zip(batch_dict["frame_id"], pred_dicts, strict=True):
            labels = prediction["pred_labels"].cpu().numpy()
            annos.append(
                {
                    "name": np.array([class_names[label - 1] for label in labels], dtype=str),
                    "score": prediction["pred_scores"].cpu().numpy(),
                    "boxes_lidar": prediction["pred_boxes"].cpu().numpy(),
                    "pred_labels": labels,
                    "frame_id": frame_id,
                }
            )
        return annos
