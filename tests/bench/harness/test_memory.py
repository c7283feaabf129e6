"""bench.harness.memory: a process's peak is its own, and begins anew where it is told to."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import ROOT
from bench.harness.memory import forget_peak, peak_resident_bytes, resident_bytes

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="Linux tells it")
LARGE = 200 * 2**20


def test_a_peak_is_found_and_forgotten():
    before = resident_bytes()
    forget_peak()
    np.ones(LARGE, np.uint8).sum()
    assert before + 0.9 * LARGE < peak_resident_bytes() < before + 1.3 * LARGE
    forget_peak()
    assert abs(peak_resident_bytes() - resident_bytes()) < 0.2 * LARGE


def test_a_child_does_not_begin_at_its_parents_peak():
    held = np.ones(LARGE, np.uint8)
    program = "from bench.harness.memory import peak_resident_bytes; print(peak_resident_bytes())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert held.all() and int(done.stdout) < 0.5 * LARGE
