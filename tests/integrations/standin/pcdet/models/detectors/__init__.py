"""NAME -> detector."""

from .bevfusion import BevFusion
from .caddn import CaDDN
from .centerpoint import CenterPoint
from .mppnet import MPPNet
from .mppnet_e2e import MPPNetE2E
from .PartA2_net import PartA2Net
from .pillarnet import PillarNet
from .point_rcnn import PointRCNN
from .pointpillar import PointPillar
from .pv_rcnn import PVRCNN
from .pv_rcnn_plusplus import PVRCNNPlusPlus
from .second_net import SECONDNet
from .second_net_iou import SECONDNetIoU
from .transfusion import TransFusion
from .voxel_rcnn import VoxelRCNN
from .voxelnext import VoxelNeXt

DETECTORS = (
    BevFusion, CaDDN, CenterPoint, MPPNet, MPPNetE2E, PartA2Net, PillarNet, PointRCNN, PointPillar, PVRCNN,
    PVRCNNPlusPlus, SECONDNet, SECONDNetIoU, TransFusion, VoxelRCNN, VoxelNeXt,
)  # fmt: skip


def build_detector(model_cfg, num_class, dataset):
    kinds = {kind.__name__: kind for kind in DETECTORS}
    return kinds[model_cfg.NAME](model_cfg=model_cfg, num_class=num_class, dataset=dataset)
