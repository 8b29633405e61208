"""Its head leaves the loss in the batch."""

from .detector3d_template import Detector3DTemplate


class TransFusion(Detector3DTemplate):
    def __init__(self, model_cfg, num_class, dataset):
        super().__init__(model_cfg=model_cfg, num_class=num_class, dataset=dataset)
        self.module_list = self.build_networks()

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
