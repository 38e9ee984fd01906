"""Minimum cuts against trying every labelling."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compression.quantization.choice.cut import Labels

COSTS = st.integers(0, 6).map(float)


@st.composite
def problems(draw):
    count = draw(st.integers(1, 6))
    costs = draw(st.lists(st.tuples(COSTS, COSTS), min_size=count, max_size=count))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] != pair[1])
    links = draw(st.dictionaries(pairs, COSTS, max_size=12)) if count > 1 else {}
    return costs, links


def total(costs, links, chosen):
    own = sum(cost[0] if thing in chosen else cost[1] for thing, cost in enumerate(costs))
    return own + sum(cost for (one, other), cost in links.items() if one in chosen and other not in chosen)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(problems())
def test_no_labelling_is_cheaper(problem):
    costs, links = problem
    labels = Labels()
    for thing, (if_chosen, if_not) in enumerate(costs):
        labels.cost(thing, if_chosen=if_chosen, if_not=if_not)
    for (one, other), cost in links.items():
        labels.separate(one, other, cost)
    every = [set(some) for size in range(len(costs) + 1) for some in itertools.combinations(range(len(costs)), size)]
    assert total(costs, links, labels.chosen()) == min(total(costs, links, some) for some in every)


def test_infinite_costs_forbid():
    labels = Labels()
    labels.cost("a", if_chosen=0.0, if_not=100.0)
    labels.cost("b", if_chosen=float("inf"), if_not=0.0)
    labels.separate("a", "b", float("inf"))
    assert labels.chosen() == set()


def test_what_cannot_be_labelled_is_refused():
    labels = Labels()
    labels.cost("a", if_chosen=float("inf"), if_not=float("inf"))
    with pytest.raises(ValueError, match="forbid every labelling"):
        labels.chosen()


def test_a_long_chain_needs_no_recursion():
    labels = Labels()
    for place in range(2000):
        labels.cost(place, if_chosen=0.0, if_not=1.0 if place == 0 else 0.0)
        labels.separate(place, place + 1, 0.5)
    labels.cost(2000, if_chosen=2.0, if_not=0.0)
    # One cut of 0.5 anywhere is cheaper than not to choose the first; the least is chosen.
    assert labels.chosen() == {0}
