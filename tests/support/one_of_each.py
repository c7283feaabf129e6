"""A training step of a small network that launches every kernel: what compute-sanitizer is to watch.

    compute-sanitizer --tool memcheck --error-exitcode 3 python -m tests.support.one_of_each

On a GPU. The lengths take the kernels of short sequences, with four heads a program and with one, those of medium ones, and those of any length.
"""

import numpy as np
import torch
from transformers import BertConfig

from bertfast.model.bert import BertClassifier
from bertfast.model.layers import RandomBits
from bertfast.model.losses import loss_sum
from bertfast.packing.batch import PackedBatch

LENGTHS = ([3, 9, 20], [16, 50, 90], [100, 128, 70], [200, 5, 64], [300, 130])


def main() -> None:
    device = torch.device("cuda")
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 512}
    model = BertClassifier(BertConfig(vocab_size=500, num_labels=3, **sizes)).to(device).train()
    rng = np.random.default_rng(0)
    for dtype in (torch.bfloat16, torch.float16):
        model.to(dtype)
        for step, lengths in enumerate(LENGTHS):
            ids = rng.integers(0, 500, sum(lengths), dtype=np.int32)
            labels = rng.integers(0, 3, len(lengths), dtype=np.int32)
            batch = PackedBatch.from_ragged(ids, ids % 2, np.array(lengths, dtype=np.int32), labels, np.arange(len(lengths))).to(device)
            loss = loss_sum(model(batch, RandomBits.of_step(1, step, device)), batch.labels)
            loss.backward()
            assert loss.isfinite()
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    print("one of each: done")


if __name__ == "__main__":
    main()
