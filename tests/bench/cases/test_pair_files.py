"""bench.cases.pair_files: made-up pairs as files."""

import numpy as np

from bench.cases.pair_files import write_pairs


def test_pairs_have_the_lengths_they_were_given(tmp_path):
    from transformers import AutoTokenizer

    lengths = np.array([5, 12, 40], dtype=np.int32)
    config = write_pairs(tmp_path, "tiny", lengths, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(config["bertfast"]["model"]["checkpoint"])
    lines = (tmp_path / "train.tsv").read_text().splitlines()[1:]
    assert [len(tokenizer(*line.split("\t")[:2])["input_ids"]) for line in lines] == lengths.tolist()
