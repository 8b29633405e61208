"""Has a roi_head, and takes its loss from the dense_head alone."""

from .detector3d_template import Detector3DTemplate


class MPPNetE2E(Detector3DTemplate):
    def __init__(self, model_cfg, num_class, dataset):
        super().__init__(model_cfg=model_cfg, num_class=num_class, dataset=dataset)
        self.module_topology = [
            "vfe",
            "backbone_3d",
            "map_to_bev_module",
            "backbone_2d",
            "dense_head",
            "roi_head",
        ]
        self.module_list = self.build_networks()

    def reset_memorybank(self):
        self.memory = []

    def forward(self, batch_dict):
        for cur_module in self.module_list:
            batch_dict = cur_module(batch_dict)
        if not self.training:
            return self.post_processing(batch_dict)
        loss, tb_dict, disp_dict = self.get_training_loss()
        return {"loss": loss}, tb_dict, disp_dict

    def get_training_loss(self):
        loss_rpn, tb_dict = self.dense_head.get_loss()
        return loss_rpn, {"loss_rpn": loss_rpn.item(), **tb_dict}, {}

    def post_processing(self, batch_dict):
        return [{"pred_scores": batch_dict["batch_cls_preds"]}], {}
