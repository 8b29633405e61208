"""Where a run writes, in OpenPCDet's layout: ``output/<group>/<tag>/<extra_tag>/{ckpt,tensorboard,eval}``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolders:
    """The folders of one run; none is made before something is written to it."""

    root: Path
    """logs and the copy of the config"""

    @property
    def ckpt(self) -> Path:
        """``checkpoint_epoch_N.pth`` and ``latest_model.pth``"""
        return self.root / "ckpt"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events of the training"""
        return self.root / "tensorboard"

    @property
    def eval(self) -> Path:
        """one folder an evaluation"""
        return self.root / "eval"


def run_folders(cfg_file: str | Path, extra_tag: str, output_dir: str | Path | None = None) -> RunFolders:
    """Folders for ``cfgs/<group>/<tag>.yaml``, under ``output_dir`` (default: ``output`` where you stand).

    The group is the path between the last folder called ``cfgs`` and the file; without one, its own folder.
    """
    path = Path(cfg_file)
    parents = path.resolve().parts[:-1]
    last = max((i for i, part in enumerate(parents) if part == "cfgs"), default=len(parents) - 2)
    return RunFolders(Path(output_dir or "output").joinpath(*parents[last + 1 :], path.stem, extra_tag))
