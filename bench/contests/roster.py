"""Who takes part in inference: every contender by its name, with what it needs and how a process of it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.contests.bundles import Bundle, Packed
from bench.contests.runtimes import Place, ctranslate2, onnxruntime, openvino, transformers


@dataclass(frozen=True)
class Runtime:
    """One contender. load: what a process of it holds. needs: conversions, by name. files: what it loads from the disk, below the folder of a `Place`
    that `root` names. least_threads: with fewer it would be another contender over again."""

    name: str
    load: Callable[[Place], Any]
    files: tuple[str, ...] = ()
    root: str = "files"
    needs: tuple[str, ...] = ()
    least_threads: int = 1

    @property
    def is_peer(self) -> bool:
        return not self.name.startswith("bertfast")

    def file_bytes(self, place: Place) -> int | None:
        """Of its files on the disk; None of a contender that picks a file by itself."""
        return sum((getattr(place, self.root) / file).stat().st_size for file in self.files) or None


BASELINE = "transformers float32"
OWN_CHOICE = "bertfast, its own choice"
_WEIGHTS = {"files": ("model.safetensors",), "root": "checkpoint"}


def everybody(variants: Mapping[str, tuple[str, ...]], others: Mapping[str, str]) -> list[Runtime]:
    """Every contender, the baseline first. variants: of a bundle, with their files; others: other people's ONNX files, by name."""
    found = [*_transformers_runtimes(), *_openvino_runtimes(), *_ctranslate2_runtimes()]
    for name, file, need in (
        ("ONNX Runtime, quantize_dynamic", "dynamic.onnx", "onnxruntime-dynamic"),
        ("Optimum's export", "optimum/model.onnx", "optimum"),
    ):
        found.append(Runtime(name, partial(onnxruntime, file=file), (file,), needs=(need,)))
    for name, file in others.items():
        found.append(Runtime(name, partial(onnxruntime, file=file), (file,)))
    for variant, files in variants.items():
        for streams in (1, 2):
            name, load = f"bertfast {variant}{', two streams' * (streams > 1)}", partial(Bundle, variant=variant, streams=streams)
            found.append(Runtime(name, load, files, "bundle", least_threads=streams))
    found.append(Runtime(OWN_CHOICE, partial(Bundle, variant=None, streams=None)))
    found.append(Runtime(f"{OWN_CHOICE} for one text", partial(Bundle, variant=None, streams=1)))
    for precision in ("float32", "bf16"):
        found.append(Runtime(f"bertfast packed network, torch {precision}", partial(Packed, precision=precision), **_WEIGHTS))
    return found


def _transformers_runtimes() -> list[Runtime]:
    return [
        Runtime(
            f"transformers {precision}{', torch.compile' * compiled}",
            partial(transformers, precision=precision, compiled=compiled),
            **_WEIGHTS,
        )
        for compiled in (False, True)
        for precision in ("float32", "bf16")
    ]


def _openvino_runtimes() -> list[Runtime]:
    """int8 as OpenVINO runs it by default, the rest in bf16 where the CPU has that, and with the rest in float32: on CPUs with AMX the default answers
    otherwise for texts of 32 tokens (findings/)."""
    found = []
    kinds = (
        ("float32", "openvino", "f32"),
        ("bf16", "openvino", "bf16"),
        ("int8", "openvino-int8", None),
        ("int8 and float32", "openvino-int8", "f32"),
    )
    for precision, name, hint in kinds:
        for streams in (1, 2):
            load = partial(openvino, file=f"{name}.xml", precision=hint, streams=streams)
            needs = tuple(dict.fromkeys(("openvino", name)))  # nncf quantizes what the first one leaves
            found.append(
                Runtime(
                    f"OpenVINO {precision}, {_number(streams, 'stream')}",
                    load,
                    (f"{name}.xml", f"{name}.bin"),
                    needs=needs,
                    least_threads=streams,
                )
            )
    return found


def _ctranslate2_runtimes() -> list[Runtime]:
    found = []
    for kind, folder in (("float32", "ctranslate2"), ("int8", "ctranslate2-int8")):
        for workers in (1, 2):
            load = partial(ctranslate2, folder=folder, kind=kind, workers=workers)
            files = (f"{folder}/model.bin", f"{folder}/head.npz")
            found.append(Runtime(f"CTranslate2 {kind}, {_number(workers, 'worker')}", load, files, needs=(folder,), least_threads=workers))
    return found


def _number(count: int, noun: str) -> str:
    return f"one {noun}" if count == 1 else f"two {noun}s"
