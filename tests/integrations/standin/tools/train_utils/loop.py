"""The loop behind every release's signatures: train() in each iteration, rank 0 saves."""

import torch
from torch.nn.utils import clip_grad_norm_


def one_epoch(model, optimizer, loader, model_func, lr_scheduler, accumulated_iter, optim_cfg, rank, logger):
    for batch in loader:
        model.train()
        lr_scheduler.step(accumulated_iter)
        optimizer.zero_grad()
        loss, _tb_dict, _disp_dict = model_func(model, batch)
        loss.backward()
        clip_grad_norm_(model.parameters(), optim_cfg.GRAD_NORM_CLIP)
        optimizer.step()
        accumulated_iter += 1
        if rank == 0:
            print(f"iteration {accumulated_iter} loss {loss.item().hex()}", flush=True)
    return accumulated_iter


def state_of(model, optimizer, epoch, it):
    inner = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    model_state = {name: value.cpu() for name, value in inner.state_dict().items()}
    optim_state = optimizer.state_dict() if optimizer is not None else None
    return {
        "epoch": epoch,
        "it": it,
        "model_state": model_state,
        "optimizer_state": optim_state,
        "version": "standin",
    }
