"""Checks of Python and of the packages that a training imports."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator

from pcdet_freeze.doctor.checks import Case, NotApplicable, check
from pcdet_freeze.doctor.facts import Child

PYTHON, TORCH = (3, 10), (2, 2)
OLD_CUMM = (0, 7)
"""cumm below this is compiled for numpy 1"""
TRY_TORCH = """
import json, torch
gpu = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if gpu else []
arch = ["sm_%d%d" % torch.cuda.get_device_capability(i) for i in range(len(names))]
torch.zeros(2, 2).numpy()
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "available": gpu, "names": names,
                  "arch": arch, "compiled": torch.cuda.get_arch_list() if gpu else []}))
"""
TRY_NUMBA = """
import numba, numpy
double = numba.njit(lambda values: values * 2)
assert double(numpy.ones(2))[0] == 2
"""
TRY_SPCONV = """
import numpy, torch, spconv.pytorch
from cumm import tensorview
assert tensorview.from_numpy(numpy.zeros((4, 4), numpy.float32)).numpy().shape == (4, 4)
"""


@check("python", "Python 3.10 or later", "error", "install a later Python and make a new environment with it")
def python(case: Case) -> Iterator[str]:
    if case.facts.python < PYTHON:
        yield f"Python {'.'.join(map(str, case.facts.python))} is too old"


@check("requirements", "packages that this one requires", "error", "pip install -c constraints.txt -e .")
def requirements(case: Case) -> Iterator[str]:
    try:
        required = importlib.metadata.requires("pcdet-freeze") or []
    except importlib.metadata.PackageNotFoundError:
        raise NotApplicable("pcdet-freeze is used from its sources, without an installation") from None
    names = [re.split(r"[^\w.-]", line)[0].lower() for line in required if ";" not in line]
    missing = [name for name in names if name.replace("_", "-") not in case.facts.versions]
    if missing:
        yield f"not installed: {', '.join(missing)}"


@check("torch", "torch can be imported", "error", "pip install torch, in the build of your CUDA version")
def torch(case: Case) -> Iterator[str]:
    version = case.facts.version("torch")
    if version is None:
        yield "torch is not installed"
    elif version < TORCH:
        yield f"torch {case.facts.versions['torch']} is too old; 2.2 or later is needed"
    elif not _torch(case).works:
        yield f"torch {case.facts.versions['torch']} cannot be used: {_end(_torch(case))}"


@check(
    "cuda",
    "torch uses the GPU",
    "warning",
    "install the torch build that your driver supports; `nvidia-smi` names the newest CUDA of the driver; "
    "unset CUDA_VISIBLE_DEVICES where it is empty",
)
def cuda(case: Case) -> Iterator[str]:
    if not case.facts.driver:
        raise NotApplicable("no NVIDIA driver: trainings run on the CPU")
    found = _needed_torch(case).result
    if found.get("available"):
        return
    if case.facts.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield "CUDA_VISIBLE_DEVICES hides all GPUs"
    elif found.get("cuda"):
        yield f"torch is built for CUDA {found['cuda']}, but finds no GPU with driver {case.facts.driver}"
    else:
        yield f"torch {found.get('version')} is a build for CPUs, but there is a driver, {case.facts.driver}"


@check(
    "gpu-arch",
    "torch has code for the GPU",
    "error",
    'install a torch build for this GPU; otherwise "no kernel image is available for execution"',
)
def gpu_arch(case: Case) -> Iterator[str]:
    found = _needed_torch(case).result
    if not found.get("available"):
        raise NotApplicable("torch finds no GPU")
    compiled = [str(name) for name in found.get("compiled", [])]
    for name, arch in zip(found.get("names", []), found.get("arch", []), strict=False):
        major = str(arch)[:-1]  # code of a lower minor version of the same major version runs as well
        if not any((one.startswith(major) and one <= arch) or one.startswith("compute_") for one in compiled):
            yield f"{name} is {arch}, but torch has code for {', '.join(compiled)}"


@check(
    "numpy-spconv", "numpy fits spconv", "error", "pip install 'numpy<2', or spconv-cu126 with Python 3.12"
)
def numpy_spconv(case: Case) -> Iterator[str]:
    cumm = case.facts.installed("cumm")
    if not cumm:
        raise NotApplicable("spconv is not installed")
    numpy, version = case.facts.version("numpy") or (0,), case.facts.version(cumm[0]) or (0,)
    if numpy >= (2,) and version < OLD_CUMM:
        yield (
            f"numpy {case.facts.versions['numpy']} with {cumm[0]} {case.facts.versions[cumm[0]]}, which is "
            'made for numpy 1: "Floating point exception (core dumped)" (SIGFPE)'
        )


@check(
    "spconv",
    "spconv can be imported and used",
    "error",
    "reinstall the spconv of your CUDA version (spconv-cu120 and the like; one alone); pillar models run "
    "without it",
)
def spconv(case: Case) -> Iterator[str]:
    names = case.facts.installed("spconv")
    if not names:
        raise NotApplicable(
            "spconv is not installed: pillar models run without it, models with sparse 3D do not"
        )
    if len(names) > 1:
        yield f"several builds are installed, which overwrite each other: {', '.join(names)}"
    version = case.facts.version(names[0]) or (0,)
    if version < (2,):
        yield f"{names[0]} {case.facts.versions[names[0]]}: version 2 or later is needed"
        return
    child = case.facts.run(TRY_SPCONV)
    if not child.works:
        yield f"{names[0]} {case.facts.versions[names[0]]} cannot be used: {_end(child)}"


@check(
    "numba", "numba compiles", "error", "pip install -U numba; each numba supports a range of numpy versions"
)
def numba(case: Case) -> Iterator[str]:
    if "numba" not in case.facts.versions:
        yield "numba is not installed"
        return
    child = case.facts.run(TRY_NUMBA)
    if not child.works:
        yield f"numba {case.facts.versions['numba']} cannot be used: {_end(child)}"


def _torch(case: Case) -> Child:
    """The process that tried torch; one for all checks."""
    if "torch" not in case.kept:
        case.kept["torch"] = case.facts.run(TRY_TORCH)
    child: Child = case.kept["torch"]
    return child


def torch_works(case: Case) -> bool:
    """Whether this Python can import torch."""
    return _torch(case).works


def _needed_torch(case: Case) -> Child:
    child = _torch(case)
    if not child.works:
        raise NotApplicable("torch cannot be imported (check torch)")
    return child


def _end(child: Child) -> str:
    """How a process ended, in words."""
    if child.code < 0:
        return f"the process was ended by signal {-child.code}{' (SIGFPE)' if child.code == -8 else ''}"
    return child.error or f"exit code {child.code}"
