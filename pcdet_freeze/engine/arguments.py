"""The flags of tools/train.py and tools/test.py: OpenPCDet's, and a few more."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

WITHOUT_EFFECT = {
    "max_waiting_mins": "the checkpoints to evaluate are there when the training ends",
    "use_tqdm_to_record": "the log has its lines beside the progress bar",
    "wo_gpu_stat": "the state of the GPU is never logged",
    "merge_all_iters_to_one_epoch": "each epoch draws every frame once, in an order of its own",
}
"""flags of OpenPCDet's tools/train.py that change nothing here -> why"""


def train_parser() -> argparse.ArgumentParser:
    """Flags of tools/train.py."""
    parser = _common("Train a model; MODEL.NOT_TRAIN_IN_MULTI_TASK names what must not train.")
    add = parser.add_argument
    add("--epochs", type=whole(1), help="epochs; default OPTIMIZATION.NUM_EPOCHS")
    add("--max_iters", type=whole(1), help="iterations in all, for the schedule too; ends with a checkpoint")
    add("--sync_bn", action="store_true", help="SyncBatchNorm over all processes (CUDA)")
    add("--fix_random_seed", action="store_true", help="seed 666 instead of a random one")
    add("--ckpt_save_interval", type=whole(1), default=1, help="epochs between two checkpoints")
    add("--max_ckpt_save_num", type=whole(1), default=30, help="how many checkpoint_epoch_N.pth to keep")
    add("--ckpt_save_time_interval", type=float, default=300, help="seconds between two latest_model.pth")
    add(
        "--num_epochs_to_eval",
        type=whole(0),
        default=1,
        help="evaluate the checkpoints of the last N epochs; 0: none",
    )
    add("--logger_iter_interval", type=whole(1), default=50, help="iterations between two log lines")
    add("--no_savings", action="store_true", help="do not measure what freezing saves")
    add("--use_amp", action="store_true", help="mixed precision: float16 on CUDA, bfloat16 on CPU")
    for name in WITHOUT_EFFECT:
        kind = {"type": float} if name == "max_waiting_mins" else {"action": "store_true"}
        add(f"--{name}", help="taken for OpenPCDet's sake; the log says why it changes nothing", **kind)
    return _last(parser)


def test_parser() -> argparse.ArgumentParser:
    """Flags of tools/test.py."""
    parser = _common("Evaluate one checkpoint (--ckpt), or all of a run as they appear (--eval_all).")
    add = parser.add_argument
    add("--eval_tag", default="default", help="name of this evaluation's folder")
    add("--eval_all", action="store_true", help="every checkpoint of --ckpt_dir, waiting for new ones")
    add("--ckpt_dir", help="folder of checkpoints for --eval_all; default: the run's own")
    add("--max_waiting_mins", type=float, default=30, help="minutes to wait for the next checkpoint")
    add("--infer_time", action="store_true", help="log the time spent in the model")
    return _last(parser)


test_parser.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest thinks of its name


def idle_flags(args: argparse.Namespace) -> list[str]:
    """One line for each flag of OpenPCDet that was given and changes nothing here."""
    given = [name for name in WITHOUT_EFFECT if str(getattr(args, name, None)) not in ("None", "False")]
    return [f"--{name} changes nothing here: {WITHOUT_EFFECT[name]}" for name in given]


def whole(lowest: int) -> Callable[[str], int]:
    """Reads a whole number that is ``lowest`` or more."""

    def read(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be a whole number, {lowest} or more; got {text!r}")
        return int(text)

    return read


def _common(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--cfg_file", required=True, help="config of the run")
    add(
        "--batch_size",
        type=whole(1),
        help="samples a step, over all processes; default BATCH_SIZE_PER_GPU each",
    )
    workers = min(4, os.cpu_count() or 1)
    add("--workers", type=whole(0), default=workers, help="processes that load data, each rank")
    add("--extra_tag", default="default", help="name of this run's folder")
    add("--output_dir", help="folder in place of ./output")
    add("--ckpt", help="checkpoint to go on from, or to evaluate; train: default the newest valid of the run")
    add("--pretrained_model", help="file whose tensors are loaded where name and shape fit")
    add("--allow_mismatch", action="store_true", help="leave pretrained tensors of another shape out")
    add("--trust_checkpoint", action="store_true", help="read checkpoints that may run code; only your own")
    add("--launcher", choices=["none", "pytorch", "slurm"], default="none")
    add("--tcp_port", type=int, default=18888, help="port of the process group, where the launcher sets none")
    add("--local_rank", "--local-rank", type=int, help="set by launchers; LOCAL_RANK is what counts")
    add("--start_epoch", type=whole(0), default=0, help="evaluate checkpoints from this epoch on only")
    add("--save_to_file", action="store_true", help="write predictions as text files too")
    add("--device", help="cpu or cuda; default: CUDA where it is there")
    add("--verbose", action="store_true", help="show the whole traceback of an error")
    return parser


def _last(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--set",
        dest="set_cfgs",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys to change; must come last",
    )
    return parser
