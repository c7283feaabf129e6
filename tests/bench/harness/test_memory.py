"""bench.harness.memory: a process's peak is its own, and begins anew where it is told to."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import ROOT

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="Linux tells it")
LARGE = 200 * 2**20


def test_a_peak_is_found_and_forgotten():
    """In a process of its own: what this one's libraries free meanwhile would be taken off."""
    program = f"""
import numpy as np
from bench.harness.memory import forget_peak, peak_resident_bytes, resident_bytes
before = resident_bytes()
forget_peak()
np.ones({LARGE}, np.uint8).sum()
print(peak_resident_bytes() - before)
forget_peak()
print(peak_resident_bytes() - resident_bytes())
"""
    grown, kept = map(int, answer_of(program).split())
    assert 0.9 * LARGE < grown < 1.3 * LARGE and abs(kept) < 0.2 * LARGE


def answer_of(program):
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_child_does_not_begin_at_its_parents_peak():
    held = np.ones(LARGE, np.uint8)
    program = "from bench.harness.memory import peak_resident_bytes; print(peak_resident_bytes())"
    assert int(answer_of(program)) < 0.5 * LARGE and held.all()
