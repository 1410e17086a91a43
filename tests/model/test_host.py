"""Freed memory is used again: counted in page faults, which do not depend on how busy the machine is."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys, torch
from tuyi.model.host import reuse_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "reuse":
    assert reuse_freed_memory()
ones = torch.ones(2**24)
for _ in range(20):
    ones * 2
begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    ones * 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_arrays_take_memory_that_others_gave_back():
    # ten arrays of 64 MB in pages of 4 kB
    assert faults("reuse") < 0.1 * faults("plain")
