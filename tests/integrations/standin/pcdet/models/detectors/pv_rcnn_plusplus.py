"""Calls its modules by hand; proposals and their targets come before the point features."""

from .detector3d_template import Detector3DTemplate


class PVRCNNPlusPlus(Detector3DTemplate):
    def __init__(self, model_cfg, num_class, dataset):
        super().__init__(model_cfg=model_cfg, num_class=num_class, dataset=dataset)
        self.module_list = self.build_networks()

    def forward(self, batch_dict):
        for module in (self.vfe, self.backbone_3d, self.map_to_bev_module, self.backbone_2d, self.dense_head):
            batch_dict = module(batch_dict)
        batch_dict = self.roi_head.proposal_layer(batch_dict, nms_config=self.mode)
        if self.training:
            targets_dict = self.roi_head.assign_targets(batch_dict)
            batch_dict["roi_targets_dict"] = targets_dict
            batch_dict["rois"] = targets_dict["rois"]
        for module in (self.pfe, self.point_head, self.roi_head):
            batch_dict = module(batch_dict)
        if not self.training:
            return self.post_processing(batch_dict)
        loss, tb_dict, disp_dict = self.get_training_loss()
        return {"loss": loss}, tb_dict, disp_dict

    def get_training_loss(self):
        loss_rpn, tb_dict = self.dense_head.get_loss()
        loss_rcnn, tb_dict = self.roi_head.get_loss(tb_dict)
        loss_point, tb_dict = self.point_head.get_loss(tb_dict)
        return loss_rpn + loss_point + loss_rcnn, tb_dict, {}
