"""Ahead-of-time compilation of every kernel that an encoder needs, for a named GPU, with no GPU and no driver.

Each op's `variants(shape)` calls its own launchers with tensors on the device "meta" and notes the launches. A note is then compiled as Triton itself
would at that launch, by a driver that only says which GPU it stands for, so what comes out is what a training run looks up in Triton's cache
(TRITON_CACHE_DIR). The binaries tell what they need: registers, shared memory, spills.
"""

from __future__ import annotations

import functools
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bertfast_kernels.attention.op import variants as attention_variants
from bertfast_kernels.cross_entropy import variants as cross_entropy_variants
from bertfast_kernels.dropout import variants as dropout_variants
from bertfast_kernels.embedding import variants as embedding_variants
from bertfast_kernels.gelu import variants as gelu_variants
from bertfast_kernels.layer_norm import variants as layer_norm_variants
from bertfast_kernels.primitives.lazy_triton import HAS_TRITON, Launch, is_interpreting, jitted, load_triton
from bertfast_kernels.shapes import EncoderShape

VARIANTS = (embedding_variants, attention_variants, layer_norm_variants, gelu_variants, dropout_variants, cross_entropy_variants)


@dataclass(frozen=True)
class Target:
    """A GPU to compile for, and what one of its multiprocessors has: the most a program may take."""

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_memory: int  # bytes a program can have
    registers: int  # a thread can have: 32-bit ones
    register_file: int  # 32-bit registers of all threads of a program together

    @property
    def wgmma(self) -> bool:
        """Whether its tensor cores read their operands from shared memory."""
        return self.backend == "cuda" and isinstance(self.arch, int) and self.arch >= 90

    @property
    def hopper(self) -> bool:
        """Whether its compute capability is 9.0."""
        return self.backend == "cuda" and self.arch == 90

    def gpu(self) -> Any:
        """Triton's name for it."""
        return load_triton().backends.compiler.GPUTarget(self.backend, self.arch, self.warp_size)


# CUDA C++ Programming Guide, "Compute Capabilities"; AMD Instinct MI300 ISA, "Vector registers" and "LDS".
TARGETS = {
    "sm_80": Target("sm_80", "cuda", 80, 32, 163 * 1024, 255, 65536),
    "sm_90": Target("sm_90", "cuda", 90, 32, 227 * 1024, 255, 65536),
    "sm_100": Target("sm_100", "cuda", 100, 32, 227 * 1024, 255, 65536),
    "gfx942": Target("gfx942", "hip", "gfx942", 64, 64 * 1024, 512, 131072),
}


@dataclass(frozen=True)
class CompiledKernel:
    """One row of the table."""

    kernel: str
    dtype: str
    shape_class: str
    target: str
    num_warps: int
    registers: int  # of a thread
    shared_memory: int  # bytes of a program
    spills: int  # bytes of a thread
    problem: str = ""  # why it does not fit, or did not compile

    @property
    def fits(self) -> bool:
        return not self.problem


def local_target() -> Target | None:
    """The GPU of this machine, if torch sees one; of one that TARGETS does not know, the limits are those it tells."""
    if not torch.cuda.is_available():
        return None
    gpu = torch.cuda.get_device_properties(0)
    if torch.version.hip:
        name = gpu.gcnArchName.partition(":")[0]
        return TARGETS.get(name) or replace(TARGETS["gfx942"], name=name, arch=name, warp_size=gpu.warp_size)
    name = f"sm_{gpu.major}{gpu.minor}"
    shared_memory = gpu.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub leaves both out
    register_file = gpu.regs_per_multiprocessor  # type: ignore[attr-defined]
    limits = {"shared_memory": shared_memory, "register_file": register_file}
    return TARGETS.get(name) or replace(TARGETS["sm_80"], name=name, arch=10 * gpu.major + gpu.minor, **limits)


def compile_kernels(
    shapes: EncoderShape | Sequence[EncoderShape],
    targets: Sequence[str | Target],
    processes: int = 2,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> list[CompiledKernel]:
    """Compile what `shapes` need for each of `targets` (names in TARGETS, or GPUs) and fill Triton's cache; what two shapes share is compiled once.

    A kernel that fails to compile is a row with a problem. on_row(done, total) is called after each.

    Raises:
        RuntimeError: Triton is missing, or its interpreter is on.
        ValueError: an unknown target.
    """
    unknown = [name for name in targets if isinstance(name, str) and name not in TARGETS]
    if unknown:
        raise ValueError(f"target is {unknown[0]!r}; it must be one of {', '.join(TARGETS)}")
    if not HAS_TRITON or is_interpreting():
        raise RuntimeError("kernels are compiled by Triton, with TRITON_INTERPRET unset" if HAS_TRITON else "Triton is not installed")
    shapes = [shapes] if isinstance(shapes, EncoderShape) else shapes
    gpus = [TARGETS[target] if isinstance(target, str) else target for target in targets]
    work = [(shape, gpu, index) for gpu in gpus for shape, index in _distinct(shapes, gpu)]
    if processes == 1:
        return _counted((_compile_one(*item) for item in work), len(work), on_row)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return _counted(pool.map(_compile_one, *zip(*work, strict=True), chunksize=1), len(work), on_row)


def _counted(rows: Iterable[CompiledKernel], total: int, on_row: Callable[[int, int], None]) -> list[CompiledKernel]:
    found = []
    for row in rows:
        found.append(row)
        on_row(len(found), total)
    return found


@functools.cache
def launches_of(shape: EncoderShape) -> tuple[Launch, ...]:
    """What an encoder of this shape launches, each distinct compilation once. A forward runs with dropout and without, in evaluation; a backward, in
    training alone, as the training has it."""
    plain_backward = shape.dropout == 0.0 or shape.trains_without_dropout
    distinct = {_identity(launch): launch for variants in VARIANTS for launch in variants(shape)}
    return tuple(
        launch
        for launch in distinct.values()
        if plain_backward or "backward" not in launch.kernel.__name__ or launch.options.get("DROPOUT", True)
    )


def _launches_on(shape: EncoderShape, target: Target) -> tuple[Launch, ...]:
    return launches_of(replace(shape, hopper=target.hopper, wgmma=target.wgmma, warp_size=target.warp_size))


def _identity(launch: Launch) -> tuple[Any, ...]:
    """What tells one compilation from another. Numbers do not: no kernel here is specialised on one (a test holds that)."""
    kinds = (str(arg.dtype) if isinstance(arg, torch.Tensor) else type(arg).__name__ for arg in launch.args)
    return launch.kernel.__name__, *kinds, *sorted(launch.options.items())


def _distinct(shapes: Sequence[EncoderShape], target: Target) -> list[tuple[EncoderShape, int]]:
    """Every compilation that the shapes need on a target, once: a shape and the number of its launch there."""
    distinct: dict[tuple[Any, ...], tuple[EncoderShape, int]] = {}
    for shape in shapes:
        for index, launch in enumerate(_launches_on(shape, target)):
            distinct.setdefault(_identity(launch), (shape, index))
    return list(distinct.values())


def _compile_one(shape: EncoderShape, target: Target, index: int) -> CompiledKernel:
    launch = _launches_on(shape, target)[index]
    constexprs = {name: value for name, value in launch.options.items() if name not in ("num_warps", "num_stages", "maxnreg")}
    floats = [arg.dtype for arg in launch.args if isinstance(arg, torch.Tensor) and arg.is_floating_point()]
    dtype = min(floats, key=lambda dtype: dtype.itemsize)
    row = CompiledKernel(
        launch.kernel.__name__.strip("_").removesuffix("_kernel"),
        str(dtype).removeprefix("torch."),
        " ".join(f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in constexprs.items()),
        target.name,
        launch.options.get("num_warps", 4),
        registers=0,
        shared_memory=0,
        spills=0,
    )
    try:
        binary = _compile(launch, target)
    except Exception as error:  # whatever Triton or the assembler says becomes the row's problem
        return replace(row, problem=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
    registers, spills = _amd_usage(binary) if target.backend == "hip" else _nvidia_usage(binary)
    row = replace(row, registers=registers, shared_memory=binary.metadata.shared, spills=spills)
    return replace(row, problem=_problem(row, target))


def _problem(row: CompiledKernel, target: Target) -> str:
    threads = row.num_warps * target.warp_size
    if row.spills:
        return f"spills {row.spills} bytes a thread"
    if row.shared_memory > target.shared_memory:
        return f"needs {row.shared_memory} bytes of shared memory; {target.name} has {target.shared_memory}"
    if row.registers > target.registers or row.registers * threads > target.register_file:
        return f"needs {row.registers} registers a thread for {threads} threads; {target.name} has {target.register_file}"
    return ""


def _compile(launch: Launch, target: Target) -> Any:
    """As Triton's own launch would, up to the launch."""
    driver = load_triton().runtime.driver
    before = driver._active
    driver.set_active(_Driver(target))
    try:
        return jitted(launch.kernel).warmup(*launch.args, grid=(1,), **launch.options)
    finally:
        driver._active = before


class _Driver:
    """As much of a Triton driver as a compilation asks for."""

    def __init__(self, target: Target):
        self._target = target

    def get_current_target(self) -> Any:
        return self._target.gpu()

    def get_current_device(self) -> str:
        return self._target.name  # Triton keys what it has compiled by this

    def get_current_stream(self, device: object) -> int:
        return 0


def _nvidia_usage(binary: Any) -> tuple[int, int]:
    """(registers, bytes spilled) of a thread, as cuobjdump reads them from the binary."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        command = [load_triton().knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _amd_usage(binary: Any) -> tuple[int, int]:
    """(vector registers, bytes spilled) of a thread, as the assembler notes them."""
    usage = {
        name: int(value)
        for name, value in re.findall(r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s+(\d+)", binary.asm["amdgcn"])
    }
    return usage["vgpr_count"], max(4 * usage["vgpr_spill_count"], usage["private_segment_fixed_size"])
