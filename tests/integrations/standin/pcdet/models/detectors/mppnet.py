"""Refines boxes that came with the batch."""

from .detector3d_template import Detector3DTemplate


class MPPNet(Detector3DTemplate):
    def __init__(self, model_cfg, num_class, dataset):
        super().__init__(model_cfg=model_cfg, num_class=num_class, dataset=dataset)
        self.module_list = self.build_networks()

    def forward(self, batch_dict):
        batch_dict["batch_box_preds"] = batch_dict["gt_boxes"].reshape(-1, 4)
        for cur_module in self.module_list:
            batch_dict = cur_module(batch_dict)
        if not self.training:
            return self.post_processing(batch_dict)
        loss, tb_dict, disp_dict = self.get_training_loss()
        return {"loss": loss}, tb_dict, disp_dict

    def get_training_loss(self):
        tb_dict = {}
        loss_rcnn, tb_dict = self.roi_head.get_loss(tb_dict)
        return loss_rcnn, tb_dict, {}

    def post_processing(self, batch_dict):
        return [{"pred_scores": batch_dict["batch_cls_preds"]}], {}
