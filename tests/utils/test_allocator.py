"""Freed memory stays in the process: page faults of a child process, counted exactly."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from pcdet_freeze.utils.allocator import OF_THE_USER, SWITCH, keep_freed_memory

CHILD = """
import ctypes, json, os, resource
from pcdet_freeze.utils.allocator import keep_freed_memory, return_freed_memory

libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def faults_of(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        block = libc.malloc(size)
        ctypes.memset(block, 1, size)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

done = keep_freed_memory()
first, later = faults_of(1), faults_of(4)
full = resident()
return_freed_memory()
if os.fork() == 0:  # as a loader process
    faults_of(1)
    os._exit(0 if faults_of(4) < 16 else 1)
worker = os.waitpid(-1, 0)[1]
found = {"done": done, "first": first, "later": later, "returned": full - resident(), "worker": worker}
print(json.dumps(found))
"""


def child(**variables: str) -> dict[str, int]:
    own = {name: value for name, value in os.environ.items() if name not in {SWITCH, *OF_THE_USER}}
    text = subprocess.run([sys.executable, "-c", CHILD], env=own | variables, capture_output=True, check=True)
    return json.loads(text.stdout)


def test_blocks_that_are_freed_are_used_again_without_page_faults() -> None:
    found = child()
    assert found["done"] and found["first"] >= 32
    assert found["later"] < 16 and found["worker"] == 0


def test_what_is_free_goes_back_to_the_system_on_request() -> None:
    assert child()["returned"] > 60 << 20


@pytest.mark.parametrize("variables", [{SWITCH: "0"}, {"MALLOC_TRIM_THRESHOLD_": "1000000"}])
def test_the_switch_and_settings_of_the_user_leave_the_allocator_alone(variables: dict[str, str]) -> None:
    found = child(**variables)
    assert not found["done"] and found["later"] >= 4 * 32


def test_nothing_happens_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert keep_freed_memory() is False
