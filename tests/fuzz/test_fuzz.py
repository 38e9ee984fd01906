"""A small sample of `make fuzz`, other files than it begins with."""

from __future__ import annotations

import pytest

from tests.fuzz import seeds
from tests.fuzz.formats import KINDS, make
from tests.fuzz.harness import ACCEPTED, fuzz

QUICK = ("levity", "safetensors", "npz")
SAMPLE = {"onnx": 400, "levity": 150, "safetensors": 300, "npz": 300, "zip": 300, "weights": 60, "pt": 60}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
)
def test_damaged_files_are_refused_with_a_code_or_work(kind):
    files = range(10_000_000, 10_000_000 + SAMPLE[kind])
    tally = fuzz(kind, files, seed=0, onnx_seeds=seeds.onnx_files())
    assert tally.bad == []
    assert tally.files == SAMPLE[kind]
    assert tally.peak_kib < 2 * 2**20
    # Neither are all of them refused by the first check, nor is the damage without effect.
    assert len(tally.outcomes) >= 3
    assert 0 < tally.outcomes[ACCEPTED] < tally.files


def test_a_number_gives_the_same_file_for_ever():
    onnx_seeds = seeds.onnx_files()
    for kind in ("onnx", "npz", "zip"):
        assert make(kind, 0, 7, onnx_seeds) == make(kind, 0, 7, onnx_seeds)
        assert make(kind, 0, 7, onnx_seeds) != make(kind, 0, 8, onnx_seeds)
