"""What the system's files say of cores and memory, held against folders that are written as the kernel writes them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bertfast import machine


@pytest.fixture
def system(tmp_path, monkeypatch):
    """system(path, text): a file of /proc or /sys; the process may run on 8 cores."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name in ("OMP_NUM_THREADS", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


def test_cores_of_this_very_process():
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= machine.cores() <= expected and machine.physical_cores() <= expected


@pytest.mark.parametrize(
    "cpuinfo, has",
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni avx2\nbugs\t\t: bf16\n", False),
        ("", False),
    ],
)
def test_bf16_by_the_flags_of_the_cpu(cpuinfo, has, system):
    system("proc/cpuinfo", f"processor\t: 0\nmodel name\t: avx512_bf16\n{cpuinfo}")
    assert machine.has_bf16() is has


def test_bf16_where_the_system_does_not_tell(system):
    assert not machine.has_bf16()


@pytest.mark.parametrize(
    "cgroup, files, cores",
    [
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 8, id="version-2-no-limit"),
        pytest.param("0::/\n", {"cpu.max": "200000 100000\n"}, 2, id="version-2-two-cores"),
        pytest.param("0::/\n", {"cpu.max": "250000 100000\n"}, 3, id="a-part-of-a-core-is-one"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000\n"}, 1, id="half-a-core"),
        pytest.param("0::/\n", {"cpu.max": "9900000 100000\n"}, 8, id="more-than-there-are"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3, id="a-limit-further-up-holds-too"),
        pytest.param("0::/of/the/host\n", {"cpu.max": "400000 100000\n"}, 4, id="a-path-that-the-container-has-not"),
        pytest.param(
            "3:cpu,cpuacct:/x\n0::/\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "150000", "cpu,cpuacct/x/cpu.cfs_period_us": "50000"},
            3,
            id="version-1",
        ),
        pytest.param("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, id="version-1-no-limit"),
        pytest.param("", {}, 8, id="no-cgroups"),
    ],
)
def test_cores_that_a_cgroup_gives(system, cgroup, files, cores):
    system("proc/self/cgroup", cgroup)
    for name, text in files.items():
        system(f"cgroup/{name}", text)
    assert machine.cores() == machine.threads() == cores


@pytest.mark.parametrize(
    "variables, threads",
    [
        pytest.param({}, 8, id="all"),
        pytest.param({"OMP_NUM_THREADS": "3"}, 3, id="asked-for"),
        pytest.param({"OMP_NUM_THREADS": "5,2"}, 5, id="a-number-for-each-level"),
        pytest.param({"OMP_NUM_THREADS": "64"}, 8, id="more-than-cores"),
        pytest.param({"OMP_NUM_THREADS": "all"}, 8, id="no-number"),
        pytest.param({"OMP_NUM_THREADS": "0"}, 8, id="none"),
        pytest.param({"WORLD_SIZE": "3"}, 2, id="ranks-share"),
        pytest.param({"WORLD_SIZE": "32", "LOCAL_WORLD_SIZE": "16"}, 1, id="more-ranks-than-cores"),
        pytest.param({"WORLD_SIZE": "4", "OMP_NUM_THREADS": "4"}, 4, id="a-launcher-says-for-each-rank"),
    ],
)
def test_threads(system, monkeypatch, variables, threads):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machine.threads() == threads


def test_two_threads_may_share_a_core(system):
    for number in range(8):
        system(f"cpu/cpu{number}/topology/thread_siblings_list", f"{number % 4},{number % 4 + 4}\n")
    assert (machine.cores(), machine.physical_cores()) == (8, 4)


MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n"
KB = 1024


@pytest.mark.parametrize(
    "cgroup, files, total, available",
    [
        pytest.param("0::/\n", {}, 1000 * KB, 600 * KB, id="the-machine"),
        pytest.param("0::/\n", {"memory.max": "max", "memory.current": "5"}, 1000 * KB, 600 * KB, id="version-2-no-limit"),
        pytest.param(
            "0::/a\n",
            {"a/memory.max": f"{400 * KB}", "a/memory.current": f"{300 * KB}", "a/memory.stat": f"anon 7\ninactive_file {50 * KB}\n"},
            400 * KB,
            150 * KB,
            id="version-2",
        ),
        pytest.param(
            "5:memory:/b\n0::/\n",
            {
                "memory/memory.limit_in_bytes": f"{800 * KB}",
                "memory/memory.usage_in_bytes": f"{790 * KB}",
                "memory/memory.stat": "cache 1\n",
            },
            800 * KB,
            10 * KB,
            id="version-1-of-the-container",
        ),
        pytest.param("5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 1000 * KB, 600 * KB, id="version-1-no-limit"),
    ],
)
def test_memory(system, cgroup, files, total, available):
    system("proc/meminfo", MEMINFO)
    system("proc/self/cgroup", cgroup)
    for name, text in files.items():
        system(f"cgroup/{name}", text)
    assert (machine.memory_total(), machine.memory_available()) == (total, available)


def test_a_system_that_does_not_tell(system):
    assert machine.memory_total() is None and machine.memory_available() is None and machine.cores() == 8


def test_memory_of_this_very_machine():
    psutil = pytest.importorskip("psutil")
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc/meminfo")
    assert 0 < machine.memory_available() <= machine.memory_total() <= psutil.virtual_memory().total


def raised(call) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    "make, says",
    [
        pytest.param(lambda: torch.empty(10**15), "memory ran out (4,000,000.0 GB more were asked for)", id="torch"),
        pytest.param(lambda: np.empty(2**57), "memory ran out (1.00 EiB more were asked for)", id="numpy"),
        pytest.param(lambda: torch.empty(-1), None, id="another-fault-of-torch"),
        pytest.param(lambda: int("x"), None, id="a-value"),
    ],
)
def test_memory_that_ran_out_is_told_by_who_raises_it(make, says):
    assert machine.out_of_memory(raised(make)) == says


@pytest.mark.parametrize(
    "error, says",
    [
        pytest.param(
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3.0 GiB"
            ),
            "the GPU's memory ran out (20.00 GiB more were asked for)",
            id="cuda",
        ),
        pytest.param(OSError(12, "Cannot allocate memory"), "memory ran out", id="the-system"),
        pytest.param(MemoryError(), "memory ran out", id="python"),
        pytest.param(RuntimeError("CUDA error: an illegal memory access was encountered"), None, id="an-illegal-access"),
    ],
)
def test_memory_that_ran_out_is_told_by_its_words(error, says):
    assert machine.out_of_memory(error) == says


def test_onnx_runtime_tells_too():
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    shape, out = (onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in (("s", 7), ("y", 1)))
    graph = onnx.helper.make_graph([onnx.helper.make_node("ConstantOfShape", ["s"], ["y"])], "g", [shape], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    error = raised(lambda: session.run(None, {"s": np.array([10**7, 10**8])}))
    assert machine.out_of_memory(error) == "memory ran out (4,000,000.0 GB more were asked for)"
