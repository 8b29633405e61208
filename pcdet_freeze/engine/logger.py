"""One logger: console and file, rank 0 only."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from pcdet_freeze import __version__
from pcdet_freeze.config import plain
from pcdet_freeze.utils.terminal import Color, paint

FORMAT = "%(asctime)s  %(levelname)5s  %(message)s"
COLORS: dict[int, Color] = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class _Console(logging.StreamHandler):
    """Handler of :func:`create_logger`; :func:`close_logger` removes only these."""

    before: tuple[bool, int] = (True, logging.NOTSET)
    """``propagate`` and level of the logger before"""

    def emit(self, record: logging.LogRecord) -> None:
        """A progress bar that is shown moves below the line."""
        with tqdm.external_write_mode(self.stream):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Warnings are yellow and errors red, on a terminal."""
        text = super().format(record)
        level = f"{record.levelname:>5}"
        return text.replace(level, paint(level, COLORS.get(record.levelno), self.stream), 1)


class _File(logging.FileHandler):
    """Handler of :func:`create_logger`; a disk that cannot be written to ends the file, not the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logger = logging.getLogger(record.name)
        logger.removeHandler(self)
        self.close()
        logger.warning(
            "The log %s cannot be written (%s): the run continues without it.",
            self.baseFilename,
            error.strerror or error,
        )

    def close(self) -> None:
        with suppress(OSError):  # what is buffered is lost
            super().close()


def create_logger(
    log_file: str | Path | None = None, rank: int = 0, name: str = "pcdet_freeze"
) -> logging.Logger:
    """The logger ``name``, writing to the console and to ``log_file``; ranks other than 0 log errors only.

    Handlers of an earlier call are closed.
    """
    logger = logging.getLogger(name)
    close_logger(logger)
    console = _Console(sys.stdout)
    console.before = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    handlers: list[logging.Handler] = [console]
    if log_file is not None and rank == 0:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_File(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
    return logger


def close_logger(logger: logging.Logger) -> None:
    """Undo :func:`create_logger`: close its handlers, restore the logger's level and propagation."""
    for handler in list(logger.handlers):
        if isinstance(handler, _Console):
            logger.propagate = handler.before[0]
            logger.setLevel(handler.before[1])
        if isinstance(handler, _Console | _File):
            logger.removeHandler(handler)
            handler.close()


def is_open(logger: logging.Logger) -> bool:
    """True between :func:`create_logger` and :func:`close_logger`."""
    return any(isinstance(handler, _Console) for handler in logger.handlers)


def log_name(kind: str) -> str:
    """``<kind>_<YYYYmmdd-HHMMSS>.log``"""
    return f"{kind}_{time.strftime('%Y%m%d-%H%M%S')}.log"


def log_environment(logger: logging.Logger, device: torch.device, processes: int) -> None:
    """Log device, versions and processes, one line each."""
    logger.info("**********************Start logging**********************")
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    logger.info("CUDA_VISIBLE_DEVICES=%s", os.environ.get("CUDA_VISIBLE_DEVICES", "ALL"))
    logger.info(
        "pcdet_freeze %s, torch %s, Python %s", __version__, torch.__version__, platform.python_version()
    )
    logger.info(
        "device %s%s, processes: %d, threads each: %d", device, gpu, processes, torch.get_num_threads()
    )


def log_config(logger: logging.Logger, options: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Log options and config as they are used."""
    for key, value in options.items():
        logger.info("%-26s %s", key, value)
    logger.info(
        "config:\n%s", yaml.safe_dump(plain(cfg), sort_keys=False, default_flow_style=None, width=100)
    )
