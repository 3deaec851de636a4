"""What becomes of memory that operations let go, as the kernel counts it in a process of its own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys, threading
import torch
from atelier.training.base_models.malloc_tuning import trim_memory, keep_freed_memory

def faults():
    work = torch.ones(2**25)   # 128 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del work
    torch.ones(2**25 - 1024)   # a little less: alignment takes some
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(faults()))
    thread.start(), thread.join()
    return found[0]

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

found = {"plain": faults()}
before = held()
keep_freed_memory()
if "back" in sys.argv:
    from atelier.training.base_models.malloc_tuning import return_freed_memory
    return_freed_memory()
found |= {"kept": faults(), "kept in a thread": in_thread(), "held": held() - before}
trim_memory()
print(json.dumps(found | {"given back": held() - before}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no such settings")
def test_large_buffers_are_used_again_until_they_are_given_back():
    found = json.loads(subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True).stdout)
    assert found["kept"] < found["plain"] / 4
    assert found["kept in a thread"] < found["plain"] / 4
    assert found["held"] > 100e6
    assert found["given back"] < 30e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no such settings")
def test_runs_short_of_memory_keep_nothing():
    found = json.loads(subprocess.run([sys.executable, "-c", SCRIPT, "back"], check=True, capture_output=True).stdout)
    assert found["kept"] > found["plain"] / 2
    assert found["held"] < 30e6
