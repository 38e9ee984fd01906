"""Bits within a mean, noise within a target: by hand."""

from __future__ import annotations

from compression.quantization.choice.budget import Item, Option, lowered, mean_bits, noise, raised


def item(name, parameters, four, eight):
    """4 bits and 8 bits with that much noise, and float without."""
    options = zip((4, 8, 32), (four, eight, 0.0), strict=True)
    return Item(name, parameters, tuple(Option(bits, own, bits) for bits, own in options))


ITEMS = [item("small", 100, 0.09, 0.001), item("large", 1000, 0.1, 0.001), item("deaf", 500, 0.002, 0.0015)]
EIGHT = dict.fromkeys(("small", "large", "deaf"), 1)


def test_sums():
    assert mean_bits(ITEMS, {"small": 0, "large": 1, "deaf": 2}) == (400 + 8000 + 16000) / 1600
    assert noise(ITEMS, {"small": 0, "large": 1, "deaf": 2}) == 0.09 + 0.001


def test_bits_are_taken_where_they_serve_least():
    # A bit of `deaf` costs 0.0005 / 2000 of noise, of `large` 0.099 / 4000, of `small` 0.089 / 400.
    assert lowered(ITEMS, EIGHT, 7.0) == EIGHT | {"deaf": 0}
    assert lowered(ITEMS, EIGHT, 6.0) == EIGHT | {"deaf": 0, "large": 0}
    assert lowered(ITEMS, EIGHT, 1.0) == dict.fromkeys(EIGHT, 0)
    assert lowered(ITEMS, EIGHT, 8.0) == EIGHT


def test_bits_are_given_where_they_serve_most():
    four = dict.fromkeys(EIGHT, 0)
    # 0.089 for 400 bits before 0.099 for 4,000.
    assert raised(ITEMS, four, 0.15, None) == four | {"small": 1}
    assert raised(ITEMS, four, 0.05, None) == four | {"small": 1, "large": 1}
    assert raised(ITEMS, four, 0.0, None) == dict.fromkeys(EIGHT, 2)
    # Of 4.5 bits on average 800 are free, which `small` needs 400 of and `large` 4,000.
    assert raised(ITEMS, four, 0.0, 4.5) == four | {"small": 1}
    assert raised(ITEMS, four, 1.0, None) == four
