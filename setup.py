"""How bertfast is packaged: which folder holds which import package, what it needs, and the command it installs.

`kernels/` and `export/` are folders that each hold one import package. They are no packages themselves: transformers looks for a package
of the name `kernels`, which is on PyPI, and would take ours for it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "bertfast" / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1]
README = ROOT / "README.md"

PACKAGE_FOLDERS = {"bertfast": "bertfast", "bertfast_kernels": "kernels/bertfast_kernels", "bertfast_export": "export/bertfast_export"}
PACKAGE_FOLDERS = {package: folder for package, folder in PACKAGE_FOLDERS.items() if (ROOT / folder / "__init__.py").is_file()}
PACKAGES = [
    name
    for package, folder in PACKAGE_FOLDERS.items()
    for name in (package, *(f"{package}.{inner}" for inner in find_packages(str(ROOT / folder))))
]

LINT = ["deptry", "import-linter", "mypy", "ruff"]
TEST = ["hypothesis", "packaging", "pandas", "pytest", "pytest-xdist", "scikit-learn", "scipy", *LINT]
BENCH = ["accelerate", "ctranslate2", "matplotlib", "nncf", "openvino", "pytest-benchmark"]
MONITOR = ["tensorboard", "wandb"]
SWEEP = ["matplotlib", "optuna"]
OPENVINO = ["onnx", "openvino"]
EXPORT = ["onnx", "onnxruntime"]  # not of every install: beside onnxruntime-gpu, which has the same import name, neither works

setup(
    name="bertfast",
    version=VERSION,
    description="Fine-tune BERT classifiers on packed sequences, and ship them",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=[*PACKAGES, "bertfast.configs"],
    package_dir={**PACKAGE_FOLDERS, "bertfast.configs": "configs"},  # installed, the shipped configs lie in bertfast/configs
    package_data={"": ["*.pyi", "py.typed"], "bertfast_kernels.cpu": ["source/*"], "bertfast.configs": ["*.json", "*.yaml"]},
    include_package_data=False,
    install_requires=[
        "datasets",
        "deepspeed",
        "google-crc32c",
        "huggingface_hub",
        "lazy-loader",
        "numpy",
        "pyarrow",
        "pydantic>=2",
        "pyyaml",
        "rich",
        "safetensors",
        "scikit-learn",  # isotonic regression, of `bertfast calibrate`
        "scipy",
        "tokenizers",
        "torch>=2.11",
        "transformers>=5.17",  # those before 5.10.1 trip over any folder called kernels; `make oldest` tests with 5.17
        'triton>=3.6; sys_platform == "linux"',  # torch's CUDA build asks for one release, 2.13 for 3.7.1; its CPU build brings none
    ],
    extras_require={"test": TEST, "bench": BENCH, "monitor": MONITOR, "export": EXPORT, "openvino": OPENVINO, "sweep": SWEEP},
    entry_points={"console_scripts": ["bertfast = bertfast.cli:main"]},
    classifiers=["Programming Language :: Python :: 3.11", "Programming Language :: Python :: 3.12"],
)
