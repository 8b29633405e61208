"""Two stages, scores its own way."""

from .detector3d_template import Detector3DTemplate


class SECONDNetIoU(Detector3DTemplate):
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
        loss_rcnn, tb_dict = self.roi_head.get_loss(tb_dict)
        return loss_rpn + loss_rcnn, tb_dict, {}

    @staticmethod
    def cal_scores_by_npoints(cls_scores, iou_scores, num_points_in_gt):
        return cls_scores + iou_scores

    def set_nms_score_by_class(self, iou_preds, cls_preds, label_preds, score_by_class):
        return iou_preds

    def post_processing(self, batch_dict):
        return [{"pred_scores": batch_dict["batch_cls_preds"]}], {}
