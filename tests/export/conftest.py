"""What several tests of the exporter share."""

import pytest

from tests.support.exported import write_classifier, write_config, write_data


@pytest.fixture(scope="session")
def openvino_made(tmp_path_factory):
    """A folder with a tiny `model` and its `bundle`, with files for OpenVINO."""
    from bertfast.cli.entry import main

    folder = tmp_path_factory.mktemp("openvino")
    model = write_classifier(folder / "model")
    config = write_config(folder, write_data(folder / "dev.tsv"), model)
    assert main(["export", str(model), "-o", str(folder / "bundle"), "--config", str(config), "--variants", "portable,openvino"]) == 0
    return folder
