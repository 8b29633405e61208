"""The image encoder has a loss."""

from .detector3d_template import Detector3DTemplate


class CaDDN(Detector3DTemplate):
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
        loss_rpn, tb_dict_rpn = self.dense_head.get_loss()
        loss_depth, tb_dict_depth = self.vfe.get_loss()
        tb_dict = {
            "loss_rpn": loss_rpn.item(),
            "loss_depth": loss_depth.item(),
            **tb_dict_rpn,
            **tb_dict_depth,
        }
        return loss_rpn + loss_depth, tb_dict, {}
