"""Random changes of inputs against plain loops."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from compression.training import augmentation
from compression.training.augmentation import augment, shifted
from compression.training.spec import Augmentation


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def by_loop(pictures, offsets):
    count, _, height, width = pictures.shape
    moved = np.zeros_like(pictures)
    for index in range(count):
        down, right = offsets[index]
        for row in range(height):
            for column in range(width):
                if 0 <= row - down < height and 0 <= column - right < width:
                    moved[index, :, row, column] = pictures[index, :, row - down, column - right]
    return moved


@pytest.mark.parametrize("reach", [0, 1, 3, 9])
def test_shifted_pictures(reach):
    rng = np.random.default_rng(reach)
    pictures = rng.standard_normal((12, 2, 4, 6)).astype(np.float32)
    offsets = rng.integers(-reach, reach + 1, (12, 2))
    found = shifted(torch.from_numpy(pictures), torch.from_numpy(offsets))
    np.testing.assert_array_equal(found.numpy(), by_loop(pictures, offsets))


def test_shifts_are_within_reach_along_both_axes():
    pictures = torch.zeros(400, 1, 7, 7)
    pictures[:, :, 3, 3] = 1
    (found,) = augment((pictures,), Augmentation(shift=2), chance())
    places = found.flatten(1).argmax(1)
    assert set((places // 7).tolist()) == set((places % 7).tolist()) == {1, 2, 3, 4, 5}
    assert found.sum() == 400


def test_about_half_of_the_pictures_are_mirrored_as_wholes():
    pictures = torch.arange(200 * 2 * 2 * 3, dtype=torch.float32).reshape(200, 2, 2, 3)
    (found,) = augment((pictures,), Augmentation(flip=True), chance())
    mirrored = (found == pictures.flip(3)).flatten(1).all(1)
    same = (found == pictures).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 70 < int(mirrored.sum()) < 130


def test_noise_has_the_deviation_that_was_asked_for():
    (found,) = augment((torch.full((100, 1000), 5.0),), Augmentation(noise=0.25), chance())
    assert found.mean().item() == pytest.approx(5.0, abs=0.01)
    assert found.std().item() == pytest.approx(0.25, abs=0.01)


def test_only_what_can_change_does():
    ids, table = torch.arange(12).reshape(3, 4), torch.ones(3, 4)
    tokens, kept = augment((ids, table), Augmentation(flip=True, shift=2), chance())
    assert torch.equal(tokens, ids)
    assert torch.equal(kept, table)
    tokens, changed = augment((ids, table), Augmentation(noise=0.1), chance())
    assert torch.equal(tokens, ids)
    assert not torch.equal(changed, table)
    half = augment((torch.ones(3, 1, 2, 2, dtype=torch.float16),), Augmentation(noise=0.1), chance())[0]
    assert half.dtype == torch.float16


def test_the_same_generator_gives_the_same():
    pictures = torch.rand(8, 1, 5, 5)
    spec = Augmentation(flip=True, shift=2, noise=0.1)
    (first,), (again,), (other,) = (augment((pictures,), spec, chance(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("fields", "active"), [({}, False), ({"flip": True}, True), ({"shift": 1}, True), ({"noise": 0.1}, True)]
)
def test_whether_anything_changes(fields, active):
    assert Augmentation(**fields).is_active is active


def test_doctests():
    assert doctest.testmod(augmentation).failed == 0
