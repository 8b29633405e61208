"""Flags that several commands share; imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pcdet_freeze.engine.option_limits import LOWEST, default_workers

if TYPE_CHECKING:
    from pcdet_freeze.config.easy_dict import EasyDict
    from pcdet_freeze.engine.run_context import RunOptions

CFG_HELP = "config: a file, or the name of a packaged one, such as synthetic_models/pointpillar.yaml"


def add_cfg(parser: argparse.ArgumentParser) -> None:
    """``--cfg_file``"""
    parser.add_argument("--cfg_file", required=True, help=CFG_HELP)


def add_set(parser: argparse.ArgumentParser, last: bool = True) -> None:
    """``--set KEY VALUE ...``; with ``last`` it takes all words that follow, options included."""
    parser.add_argument(
        "--set",
        dest="set_cfgs",
        nargs=argparse.REMAINDER if last else "*",
        default=[],
        metavar="KEY VALUE",
        help="config keys to change" + ("; must come last" if last else ""),
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Flags of both train and test: the fields of ``RunOptions``, and ``--verbose``."""
    add = parser.add_argument
    add_cfg(parser)
    add_number(parser, "batch_size", "samples a step, over all processes; default BATCH_SIZE_PER_GPU each")
    add_number(parser, "workers", "loader processes of each rank", default_workers())
    add("--extra_tag", default="default", help="name of the run's folder")
    add("--output_dir", help="folder for all runs; default: ./output")
    add(
        "--ckpt", help="checkpoint to resume from, or to evaluate; train: default the newest valid of the run"
    )
    add("--pretrained_model", help="checkpoint whose tensors are loaded where name and shape fit")
    add("--allow_mismatch", action="store_true", help="skip pretrained tensors of another shape")
    add_trust(parser)
    add("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="what started the processes")
    add("--tcp_port", type=int, default=18888, help="port of the process group, where the launcher sets none")
    add("--local_rank", "--local-rank", type=int, help="ignored; the launcher sets LOCAL_RANK")
    add_number(parser, "start_epoch", "first epoch whose checkpoint is evaluated", 0)
    add("--save_to_file", action="store_true", help="write the predictions as text files too")
    add("--digest", action="store_true", help="write digests of the outputs of an evaluation, too")
    add("--device", help="cpu, cuda or cuda:N; default: CUDA if available")
    add("--timeout", type=seconds, default=600,
        help="seconds until a rank that does not answer, or an iteration that does not end, is an error; "
        "default 600")  # fmt: skip
    add("--verbose", action="store_true", help="print the traceback of an error")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """``--trust_checkpoint``, which the error of a checkpoint with other than plain data recommends."""
    parser.add_argument(
        "--trust_checkpoint",
        action="store_true",
        help="unpickle any object in a checkpoint, which can run code; for your own files only",
    )


def add_number(parser: argparse.ArgumentParser, name: str, text: str, default: int | None = None) -> None:
    """A whole number with the limit that ``RunOptions`` sets."""
    parser.add_argument(f"--{name}", type=whole(LOWEST[name]), default=default, help=text)


def options_of(kind: type[RunOptions], args: argparse.Namespace) -> dict[str, Any]:
    """The flags that are fields of ``kind``, by the names that ``train`` and ``evaluate`` have for them."""
    given = {name: value for name, value in vars(args).items() if name in kind.__dataclass_fields__}
    return {"pretrained" if name == "pretrained_model" else name: value for name, value in given.items()}


def whole(lowest: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number, ``lowest`` or more."""

    def read(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be a whole number, {lowest} or more; got {text!r}")
        return int(text)

    return read


def positive(text: str, what: str = "a number") -> float:
    """An argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be {what} above 0; got {text!r}")
    return value


def seconds(text: str) -> float:
    """An argparse type: a finite number of seconds above 0."""
    return positive(text, "a number of seconds")


def cfg_of(args: argparse.Namespace, needed: Sequence[str] = (), check: bool = True) -> EasyDict:
    """The config of ``--cfg_file`` and ``--set``; kept as ``args.cfg``, to name file and line in errors.

    Raises ConfigError where the config is not valid, or a section of ``needed`` is missing; with
    ``check=False`` the caller checks it (:func:`~pcdet_freeze.engine.check_config.check_config`).
    """
    # not for help and completion, which must be fast
    from pcdet_freeze.config import cfg_faults, load_cfg
    from pcdet_freeze.utils.settings.faults import raise_faults

    args.cfg = cfg = load_cfg(args.cfg_file, args.set_cfgs)
    if check:
        raise_faults(cfg_faults(cfg, needed), cfg)
    return cfg
