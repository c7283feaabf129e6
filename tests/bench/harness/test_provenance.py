"""bench.harness.provenance: a row says where it comes from."""

from bench.bench_data import PACKAGES
from bench.harness.provenance import provenance


def test_rows_say_where_they_come_from(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench_data.py", "--data", "/some/where/glue", "--rows", "5"])
    facts = provenance("bench.bench_data", [*PACKAGES, "no-such-package"])
    assert facts["command"] == "python -m bench.bench_data --data glue --rows 5"
    assert facts["versions"].pop("no-such-package") is None
    assert (
        facts["clocks"]["load"] >= 0
        and facts["device"].endswith(" cores")
        and set(facts["versions"]) > {"python", "torch", "transformers", "tokenizers"}
    )
