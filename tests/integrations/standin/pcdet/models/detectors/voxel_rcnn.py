"""Two losses, and one of the backbone where it has one; added in place."""

from .detector3d_template import Detector3DTemplate


class VoxelRCNN(Detector3DTemplate):
    def __init__(self, model_cfg, num_class, dataset):
        super().__init__(model_cfg=model_cfg, num_class=num_class, dataset=dataset)
        self.module_list = self.build_networks()

    def forward(self, batch_dict):
        for cur_module in self.module_list:
            batch_dict = cur_module(batch_dict)
        if not self.training:
            return self.post_processing(batch_dict)
        loss, tb_dict, disp_dict = self.get_training_loss()
        return {"loss": loss}, tb_dict, disp_dict

    def get_training_loss(self):
        loss_rpn, tb_dict = self.dense_head.get_loss()
        loss = loss_rpn
        loss_rcnn, tb_dict = self.roi_head.get_loss(tb_dict)
        loss += loss_rcnn
        if hasattr(self.backbone_3d, "get_loss"):
            loss_backbone3d, tb_dict = self.backbone_3d.get_loss(tb_dict)
            loss += loss_backbone3d
        return loss, tb_dict, {}
