# ruff: noqa: E501, I001
"""The signatures of release 0.6.0."""

import torch

from train_utils.loop import one_epoch, state_of


def train_one_epoch(model, optimizer, train_loader, model_func, lr_scheduler, accumulated_iter, optim_cfg,
                    rank, tbar, total_it_each_epoch, dataloader_iter, tb_log=None, leave_pbar=False,
                    use_logger_to_record=False, logger=None, logger_iter_interval=50, cur_epoch=None,
                    total_epochs=None, ckpt_save_dir=None, ckpt_save_time_interval=300, show_gpu_stat=False):  # fmt: skip
    return one_epoch(
        model, optimizer, train_loader, model_func, lr_scheduler, accumulated_iter, optim_cfg, rank, logger
    )


def train_model(model, optimizer, train_loader, model_func, lr_scheduler, optim_cfg,
                start_epoch, total_epochs, start_iter, rank, tb_log, ckpt_save_dir, train_sampler=None,
                lr_warmup_scheduler=None, ckpt_save_interval=1, max_ckpt_save_num=50,
                merge_all_iters_to_one_epoch=False, use_logger_to_record=False, logger=None,
                logger_iter_interval=None, ckpt_save_time_interval=None, show_gpu_stat=False):  # fmt: skip
    accumulated_iter = start_iter
    for cur_epoch in range(start_epoch, total_epochs):
        if train_sampler is not None:
            train_sampler.set_epoch(cur_epoch)
        accumulated_iter = train_one_epoch(
            model, optimizer, train_loader, model_func, lr_scheduler=lr_scheduler,
            accumulated_iter=accumulated_iter, optim_cfg=optim_cfg, rank=rank, tbar=None, tb_log=tb_log,
            total_it_each_epoch=len(train_loader), dataloader_iter=None, cur_epoch=cur_epoch,
            total_epochs=total_epochs, logger=logger,
        )  # fmt: skip
        if (cur_epoch + 1) % ckpt_save_interval == 0 and rank == 0:
            state = checkpoint_state(model, optimizer, cur_epoch + 1, accumulated_iter)
            save_checkpoint(state, filename=ckpt_save_dir / f"checkpoint_epoch_{cur_epoch + 1}")


def checkpoint_state(model=None, optimizer=None, epoch=None, it=None):
    return state_of(model, optimizer, epoch, it)


def save_checkpoint(state, filename="checkpoint"):
    torch.save(state, f"{filename}.pth", _use_new_zipfile_serialization=False)
