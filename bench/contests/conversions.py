"""The model of one checkpoint as the tools of each peer convert it: files for OpenVINO, CTranslate2 and ONNX Runtime.

    python -m bench.contests.conversions openvino-int8 CHECKPOINT FOLDER

A program of its own, so that what a conversion takes is in nobody's memory. FOLDER/calibration.npz holds the examples to calibrate on (see
`cases/questions.py`). Each tool is used as its own documentation says, on transformers' model as it is loaded; nothing of bertfast's export is among it,
but for "bundle": bertfast's own, of made-up weights.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases.questions import Tokens, padded

_ASKED = 4  # of the judge's made-up batches, the shortest: all of them take minutes, and weights that are nobody's need no proof
_EXAMPLE = (2, 16)  # texts x tokens, to trace with


def _classifier(checkpoint: Path, attention: str = "sdpa") -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation=attention).eval()


def _example() -> dict[str, Any]:
    import torch

    ids = torch.ones(_EXAMPLE, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, _EXAMPLE[1] // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def openvino(checkpoint: Path, folder: Path) -> None:
    """transformers' model, converted by OpenVINO itself; float32 on the disk, since OpenVINO would save float16 by default."""
    import openvino as ov

    example = _example()
    model = ov.convert_model(_classifier(checkpoint), example_input=example, input=[(name, [-1, -1]) for name in example])
    ov.save_model(model, folder / "openvino.xml", compress_to_fp16=False)


def openvino_int8(checkpoint: Path, folder: Path) -> None:
    """The same, quantized by nncf.quantize with its settings for transformers, on the calibration examples, each alone: none is padded."""
    import nncf
    import openvino as ov

    def calibration() -> Iterator[dict[str, np.ndarray]]:
        tokens = Tokens.load(folder / "calibration.npz")
        for row in range(len(tokens)):
            yield padded(tokens, np.array([row]))

    examples = list(calibration())
    model = ov.Core().read_model(folder / "openvino.xml")
    dataset = nncf.Dataset(examples)
    quantized = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(examples))
    ov.save_model(quantized, folder / "openvino-int8.xml", compress_to_fp16=False)


def _ctranslate2(checkpoint: Path, folder: Path, quantization: str | None) -> None:
    """CTranslate2 takes the encoder and its pooler; the classifier's matrix lies beside them.

    Its converter asks config.json for position_embedding_type, which transformers 5 no longer writes since it knows no other than "absolute". So the
    converter is given a copy of the folder that says so.
    """
    from ctranslate2.converters import TransformersConverter

    name = "ctranslate2" if quantization is None else f"ctranslate2-{quantization}"
    copied = folder / f"{name}-source"
    shutil.copytree(checkpoint, copied, ignore=shutil.ignore_patterns("onnx", "openvino"))
    config = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    (copied / "config.json").write_text(json.dumps({"position_embedding_type": "absolute", **config}), encoding="utf-8")
    TransformersConverter(str(copied)).convert(str(folder / name), quantization=quantization, force=True)
    shutil.rmtree(copied)
    head = _classifier(checkpoint).classifier
    np.savez(folder / name / "head.npz", weight=head.weight.detach().numpy(), bias=head.bias.detach().numpy())


def ctranslate2(checkpoint: Path, folder: Path) -> None:
    _ctranslate2(checkpoint, folder, None)


def ctranslate2_int8(checkpoint: Path, folder: Path) -> None:
    _ctranslate2(checkpoint, folder, "int8")


def onnxruntime_dynamic(checkpoint: Path, folder: Path) -> None:
    """torch's export, fused by ONNX Runtime's own BERT optimizer, then quantize_dynamic.

    Only the older exporter's graph with eager attention is fused as a whole; with the mask as it is, since the other form takes it for right padding.
    """
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    model, example = _classifier(checkpoint, "eager"), _example()
    plain, fused = folder / "plain.onnx", folder / "fused.onnx"
    axes = {name: {0: "batch", 1: "sequence"} for name in example} | {"logits": {0: "batch"}}
    torch.onnx.export(
        model,
        (),
        plain,
        kwargs=example,
        input_names=list(example),
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    options = FusionOptions("bert")
    options.use_raw_attention_mask(True)
    config = model.config
    optimized = optimize_model(
        str(plain), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, optimization_options=options
    )
    fusions = optimized.get_fused_operator_statistics()
    if fusions.get("Attention") != config.num_hidden_layers:
        raise SystemExit(f"ONNX Runtime's optimizer fused {fusions.get('Attention')} of {config.num_hidden_layers} attentions")
    optimized.save_model_to_file(str(fused))
    quantize_dynamic(fused, folder / "dynamic.onnx", weight_type=QuantType.QInt8, per_channel=True, extra_options={"DefaultTensorType": 1})
    plain.unlink()
    fused.unlink()


def optimum(checkpoint: Path, folder: Path) -> None:
    """Optimum's export to ONNX."""
    from optimum.onnxruntime import ORTModelForSequenceClassification

    ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True).save_pretrained(folder / "optimum")


def bundle(checkpoint: Path, folder: Path) -> None:
    """bertfast's bundle of a made-up model, judged on a few of the grid's batches and on the texts that the config beside the checkpoint names."""
    from unittest import mock

    from bertfast.config.load import load_config
    from bertfast_export.bundle import export
    from bertfast_export.bundle.examples import configured
    from bertfast_export.bundle.source import Candidate
    from bertfast_export.contract import VARIANTS, Options
    from bertfast_export.openvino_runtime import has_openvino

    block, make = load_config(checkpoint.parent / "config.json").bertfast, export.make_cases
    variants = [name for name in VARIANTS if name != "fp16"] + ["openvino"] * has_openvino()  # fp16 is for GPUs
    options = Options(tuple(variants))
    with mock.patch.object(export, "make_cases", lambda config: make(config)[:_ASKED]):
        source = Candidate(str(checkpoint), options, block)
        export.export_bundle(str(checkpoint), str(folder / "bundle"), options, configured(source.block), source)


def recipes(checkpoint: Path, folder: Path) -> None:
    """The int8 recipes of bertfast's search as files, whether they keep the answers or not: its first ones, those with ever more products in float32
    (every third), and weights alone. A file is called as its recipe is."""
    from bertfast.model.bert import BertClassifier
    from bertfast_export.bundle.int8_search import STARTS
    from bertfast_export.bundle.int8_search import recipes as searched
    from bertfast_export.graphs.network import Network
    from bertfast_export.graphs.quantized import measure, quantized_graph
    from bertfast_export.graphs.writer import save_model

    network = Network.of(BertClassifier.from_pretrained(str(checkpoint)).eval())
    tokens = Tokens.load(folder / "calibration.npz")
    statistics = measure(network, [padded(tokens, rows) for rows in np.array_split(np.arange(len(tokens)), -(-len(tokens) // 16))])
    found, first = list(searched(network, statistics)), len(STARTS)
    (folder / "unfinished").mkdir()
    for recipe in (*found[:first], *found[first:-1:3], found[-1]):
        save_model(quantized_graph(network, statistics, recipe), folder / "unfinished" / f"{recipe.name}.onnx")
    (folder / "unfinished").rename(folder / "recipes")


CONVERSIONS: dict[str, tuple[Callable[[Path, Path], None], str]] = {  # what is made, and the file or folder that it leaves
    "openvino": (openvino, "openvino.xml"),
    "openvino-int8": (openvino_int8, "openvino-int8.xml"),
    "ctranslate2": (ctranslate2, "ctranslate2"),
    "ctranslate2-int8": (ctranslate2_int8, "ctranslate2-int8"),
    "onnxruntime-dynamic": (onnxruntime_dynamic, "dynamic.onnx"),
    "optimum": (optimum, "optimum"),
    "bundle": (bundle, "bundle"),
    "recipes": (recipes, "recipes"),
}


def main() -> int:
    name, checkpoint, folder = sys.argv[1:]
    CONVERSIONS[name][0](Path(checkpoint), Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
