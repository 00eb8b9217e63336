"""What is set for the whole process before a model is built."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other rules")

# How much glibc keeps by itself moves with what was freed before, so that the program first has it keep nothing.
BATCHES = """
import ctypes
import resource
import torch
from pipeline_kit.contract.types import Device
from pipeline_kit.runtime.device import prepare_process

def pages_cleared():
    found = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            wide = torch.ones(1024, 3072)
            torch.nn.functional.gelu(wide)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(found)

ctypes.CDLL(None).mallopt(-3, 128 * 1024)
before = pages_cleared()
prepare_process(Device("cpu", "float32", 1))
print(before, pages_cleared())
"""


@GLIBC
def test_memory_of_a_batch_is_kept_for_the_next_one() -> None:
    done = subprocess.run([sys.executable, "-c", BATCHES], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert before > 1000  # else this shows nothing
    assert after < 100


SIZES = """
import psutil
import torch
from pipeline_kit.builtin.models.hf.linears import PackedLinear
from pipeline_kit.contract.types import Device
from pipeline_kit.runtime.device import prepare_process

prepare_process(Device("cpu", "float32", 1))
layer = PackedLinear(torch.nn.Linear(312, 1200))

def growth(sizes):
    before = psutil.Process().memory_info().rss
    with torch.inference_mode():
        for size in sizes:
            layer(torch.ones(size, 312))
    return psutil.Process().memory_info().rss - before

growth([1000])
print(growth(range(600, 300, -1)), growth(range(300, 0, -1)))  # downwards, so that freed memory is used again
"""


@GLIBC
def test_what_is_compiled_for_sizes_of_batches_is_bounded() -> None:
    done = subprocess.run([sys.executable, "-c", SIZES], check=True, capture_output=True, text=True)
    first, others = map(int, done.stdout.split())
    assert others < first / 2
