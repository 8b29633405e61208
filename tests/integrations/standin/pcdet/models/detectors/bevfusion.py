"""Camera and LiDAR; its head leaves the loss in the batch."""

from .. import parts
from .detector3d_template import Detector3DTemplate


class BevFusion(Detector3DTemplate):
    def __init__(self, model_cfg, num_class, dataset):
        super().__init__(model_cfg=model_cfg, num_class=num_class, dataset=dataset)
        self.module_topology = [
            "vfe", "backbone_3d", "map_to_bev_module", "pfe", "image_backbone", "neck", "vtransform", "fuser",
            "backbone_2d", "dense_head", "point_head", "roi_head",
        ]  # fmt: skip
        self.module_list = self.build_networks()

    def make(self, name):
        build = getattr(self, f"build_{name}", None)
        return super().make(name) if build is None else build()

    def build_neck(self):
        return parts.Camera("image_features", "neck_features")

    def build_vtransform(self):
        return parts.Camera("neck_features", "spatial_features_img")

    def build_image_backbone(self):
        return parts.Camera("voxel_features", "image_features")

    def build_fuser(self):
        return parts.Fuser()

    def forward(self, batch_dict):
        for cur_module in self.module_list:
            batch_dict = cur_module(batch_dict)
        if not self.training:
            return self.post_processing(batch_dict)
        loss, tb_dict, disp_dict = self.get_training_loss(batch_dict)
        return {"loss": loss}, tb_dict, disp_dict

    def get_training_loss(self, batch_dict):
        loss_trans, tb_dict = batch_dict["loss"], batch_dict["tb_dict"]
        return loss_trans, {"loss_trans": loss_trans.item(), **tb_dict}, {}

    def post_processing(self, batch_dict):
        return batch_dict["final_box_dicts"], {}
