"""`bertfast tune`: what it measures, what it writes, and what it says where it cannot."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("openvino")

from bertfast.cli.entry import main
from bertfast.errors import ExportError
from bertfast_export import OnnxClassifier, tuning
from bertfast_export.choice import TUNING_FILE, key_of, machine_kind, read_choice
from tests.export.test_classifier import TEXTS


@pytest.fixture()
def bundle(openvino_made, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_TOKENS", 200)
    monkeypatch.setattr(tuning, "_LAST_ROUNDS", 2)
    return shutil.copytree(openvino_made / "bundle", tmp_path / "bundle")


def test_the_fastest_is_written_with_what_was_measured(bundle, capsys):
    before = OnnxClassifier.from_bundle(bundle, "portable").logits(TEXTS)
    assert main(["tune", str(bundle)]) == 0
    said = capsys.readouterr().err
    assert "portable" in said and "the same answers" in said
    found = json.loads((bundle / TUNING_FILE).read_text())["machines"][key_of(machine_kind())]
    speeds = [row["texts_per_second"] for row in found["measured"] if row["what"] == "many texts"]
    assert speeds[0] == max(speeds) and {row["same_answers"] for row in found["measured"]} >= {1.0}
    assert {row["variant"] for row in found["measured"]} >= {"portable", "openvino"}
    choice = read_choice(bundle)
    assert found["measured"][0]["variant"] == choice.many.variant and choice.one.streams == 1
    assert np.abs(OnnxClassifier.from_bundle(bundle).logits(TEXTS) - before).max() <= 0.5
    assert main(["verify", str(bundle)]) == 0


def test_a_variant_that_is_wrong_on_this_machine_is_not_chosen(bundle, monkeypatch):
    right = tuning.open_variant

    class Wrong:
        def __init__(self, session):
            self._session = session

        def __getattr__(self, name):
            return getattr(self._session, name)

        def run(self, names, features):
            return [logits + 2.0 for logits in self._session.run(names, features)]

    def opened(files, variant, *rest):
        session, facts = right(files, variant, *rest)
        return (Wrong(session) if variant == "portable" else session), facts

    monkeypatch.setattr(tuning, "open_variant", opened)
    said = []
    choice = tuning.tune_bundle(str(bundle), say=said.append)
    assert "portable" not in (choice.many.variant, choice.one.variant)
    assert any(line.startswith("portable: not measured; batch") for line in said)


def test_texts_of_a_file_take_the_place_of_kept_lengths(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "_keeps_its_budget", lambda variant, *rest: variant == "portable")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:3]) + "\n")
    assert main(["tune", str(bundle), "--input", str(tmp_path / "texts.txt")]) == 0
    assert "3 texts of" in capsys.readouterr().err


def test_a_gpu_is_refused(bundle, capsys):
    assert main(["tune", "GPU", str(bundle)]) == 2
    assert "bertfast tune measures on a CPU, and GPU was given; leave it out" in capsys.readouterr().err
    assert not (bundle / TUNING_FILE).exists()


def test_without_lengths_it_asks_for_texts(bundle):
    with pytest.raises(ExportError, match="keeps no lengths of texts.*give texts with --input FILE"):
        tuning._kept_lengths(bundle, type("Kept", (), {"lengths": {}}))


def test_a_place_that_cannot_be_written_to_is_one_line(bundle, monkeypatch):
    def refuse(path, value):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("bertfast_export.choice.write_json", refuse)
    monkeypatch.setattr(tuning, "_keeps_its_budget", lambda variant, *rest: variant == "portable")
    with pytest.raises(ExportError, match=r"tuning\.json: cannot be written: Read-only file system; tune a copy of the bundle"):
        tuning.tune_bundle(str(bundle), np.array([4, 9]), say=lambda line: None)
