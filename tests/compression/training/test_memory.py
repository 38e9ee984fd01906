"""What a training says of the memory that it could not get."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

from compression.context import Context
from compression.errors import StepFailed
from compression.training import memory
from compression.training.loop import Lesson, train
from compression.training.objectives import Supervised
from compression.training.spec import Training
from tests.compression.training.loops import blobs, network


def test_activations_of_a_small_network_are_counted_as_by_hand():
    net, spec = network(), Training()
    batch = blobs().batch(np.arange(20))
    # The first layer keeps its input (6), the ReLU its output (8), which the second layer shares, the loss the log
    # probabilities (3), all float32; then the labels (int64), and a few single numbers of the loss's own.
    by_hand = 20 * 4 * (6 + 8 + 3) + 20 * 8
    assert 0 <= memory.activation_bytes(net, Supervised(spec, normalized=False), batch) - by_hand <= 16


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 4), ("adamw", 5)])
def test_weights_count_with_gradients_moments_and_the_best_epoch(optimizer, copies):
    net = network()
    numbers = 6 * 8 + 8 + 8 * 3 + 3
    assert memory.weight_bytes(net.parameters(), Training(optimizer=optimizer)) == copies * 4 * numbers


class Greedy(Supervised):
    """Asks for more memory than any machine has, as soon as the batch is a large one."""

    def loss(self, module, batch):
        if len(batch) > 2:
            torch.empty(1 << 52, dtype=torch.uint8)
        return super().loss(module, batch)


def test_a_training_without_memory_says_what_it_needs_and_what_is_allowed(tmp_path):
    spec = Training(batch_size=32)
    lesson = Lesson(blobs(), Greedy(spec, normalized=False))
    with pytest.raises(StepFailed) as failed:
        train(network(), lesson, spec, Context(tmp_path), seed=0)
    assert failed.value.code == "out_of_memory"
    limit = memory.limit_bytes("cpu") / 2**30
    assert "batches of 32" in failed.value.message
    assert f"the limit is {limit:.2f} GiB" in failed.value.message


def test_other_errors_of_torch_stay_what_they_are(tmp_path):
    class Wrong(Supervised):
        def loss(self, module, batch):
            raise RuntimeError("shapes do not match")

    spec = Training()
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(network(), Lesson(blobs(), Wrong(spec, normalized=False)), spec, Context(tmp_path), seed=0)


def test_the_batch_that_fits_is_named():
    error = memory.out_of_memory(fixed=2**30, each=2**20, batch_size=4096, limit=2 * 2**30)
    # 1 GiB + 4096 MiB = 5 GiB; of 2 GiB 80 % are usable, less 1 GiB for weights: 614 samples of 1 MiB.
    assert "about 5.00 GiB" in error.message
    assert "Lower training.batch_size to 614 or less" in error.message
    assert "machine with more memory" in memory.out_of_memory(2 * 2**30, None, 1, 2**30).message


def test_a_gpu_has_a_code_and_words_of_its_own(tmp_path, monkeypatch):
    class OnFullGpu(Supervised):
        def loss(self, module, batch):
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return super().loss(module, batch)

    spec = Training(batch_size=32)
    monkeypatch.setattr(memory, "limit_bytes", lambda device: 8 * 2**30 if device == "cuda" else 2**40)
    lesson = Lesson(blobs(), OnFullGpu(spec, normalized=False))
    with pytest.raises(StepFailed) as failed:
        train(network(), lesson, spec, Context(tmp_path), seed=0)
    # The run is on a CPU here; the error alone says whose memory it was.
    assert failed.value.code == "gpu_out_of_memory"
    error = memory.out_of_memory(fixed=2**30, each=2**20, batch_size=4096, limit=2 * 2**30, device="cuda")
    assert error.code == "gpu_out_of_memory"
    assert "the GPU has 2.00 GiB" in error.message
    assert "614 or less" in error.message
    assert "GPU with more memory" in memory.out_of_memory(2 * 2**30, None, 1, 2**30, device="cuda").message


def test_the_limit_is_the_address_space_where_it_is_lowered(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**30, 2**31))
    assert memory.limit_bytes("cpu") == 2**30
