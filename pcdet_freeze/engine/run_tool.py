"""How a tool ends: with 0, or with one clear message."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from pcdet_freeze.config import locate
from pcdet_freeze.engine.checkpoint.io import newest_checkpoint
from pcdet_freeze.engine.logger import close_logger, create_logger, is_open
from pcdet_freeze.engine.run_context import run_folders
from pcdet_freeze.errors import CheckpointError, PCDetFreezeError
from pcdet_freeze.utils import distributed

INTERRUPTED = 130


def run_tool(tool: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run ``tool(args)``; returns the exit code: 0, 1 after a PCDetFreezeError, 130 after Ctrl-C.

    An expected error becomes one message without a traceback, unless ``--verbose``.
    """
    logger = logging.getLogger("pcdet_freeze")
    try:
        tool(args)
        return 0
    except PCDetFreezeError as error:
        _open(logger)
        told = locate(getattr(args, "cfg", {}), clear_message(error))
        logger.error("%s: %s", type(error).__name__, told, exc_info=args.verbose)
        return 1
    except KeyboardInterrupt:
        _open(logger)
        logger.warning("Stopped by the user. %s", resume_advice(args, logger))
        return INTERRUPTED
    finally:
        distributed.stop()
        close_logger(logger)


def clear_message(error: BaseException) -> str:
    """The message of ``error``, without the traceback that a worker process puts around it."""
    text = str(error)
    mark = f"{type(error).__name__}: "
    return text.rpartition(mark)[2].strip() if "Original Traceback" in text and mark in text else text


def resume_advice(args: argparse.Namespace, logger: logging.Logger) -> str:
    """Which checkpoint the same command goes on from."""
    folder = run_folders(args.cfg_file, args.extra_tag, args.output_dir).ckpt
    try:
        found = newest_checkpoint(folder, logger)
    except CheckpointError as error:
        return str(error)
    if found is None:
        return f"No checkpoint had been written to {Path(folder)} yet: the same command starts anew."
    return f"The same command goes on from {found[0]} (iteration {found[1].get('it')})."


def _open(logger: logging.Logger) -> None:
    if not is_open(logger):
        create_logger(rank=0)
