"""k-means against scikit-learn and by hand, and the step on small graphs."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.clustering import kmeans
from compression.clustering.step import cluster
from compression.context import Context
from compression.errors import Cancelled
from compression.pruning.step import prune
from compression.spec import Cluster, Prune
from tests.compression import models


@pytest.fixture
def context(tmp_path):
    return Context(workdir=tmp_path)


def share(weight, clusters, **options):
    settings = {"init": "linear", "keep_zeros": True, "max_iterations": 300, "rng": np.random.default_rng(0)}
    return kmeans.share(weight, clusters, **(settings | options))


@pytest.mark.parametrize("init", ["density", "random"])
def test_lloyd_equals_scikit_learn_from_the_same_start(init):
    from sklearn.cluster import KMeans

    values = np.sort(np.random.default_rng(0).standard_normal(3000))
    begin = kmeans.start(values, 16, init, np.random.default_rng(1))
    ours, _ = kmeans.lloyd(values, begin, 300)
    theirs = KMeans(16, init=begin[:, None], n_init=1, algorithm="lloyd", tol=0).fit(values[:, None])
    np.testing.assert_allclose(ours, np.sort(theirs.cluster_centers_[:, 0]), rtol=1e-9)


def test_centroids_left_without_values_are_put_to_use():
    # Evenly spaced over 0..100 all but the first and the last of 8 centroids begin without a value.
    values = np.sort(np.concatenate([np.arange(8.0) / 8, [100.0]]))
    centroids, _ = kmeans.lloyd(values, np.linspace(0, 100, 8), 300)
    assert len(np.unique(values[:, None] - centroids, axis=1)) == 9
    error = np.square(values - centroids[np.searchsorted(kmeans.midpoints(centroids), values)]).sum()
    assert error == pytest.approx(2 * (1 / 16) ** 2)  # the best there is: 9 values, 8 clusters, one pair at 1/8


def test_two_clusters_by_hand():
    result = share(np.array([[0.0, 1.0], [9.0, 11.0]], np.float32), 2, keep_zeros=False)
    assert result.values.tolist() == [[0.5, 0.5], [10.0, 10.0]]
    assert result.mean_squared_error == pytest.approx((0.25 + 0.25 + 1 + 1) / 4)
    assert result.centroids == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.sampled_from(["linear", "density", "random"]), st.booleans())
def test_every_weight_gets_its_nearest_centroid(seed, clusters, init, keep_zeros):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((13, 17)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.3] = 0
    result = share(weight, clusters, init=init, keep_zeros=keep_zeros, rng=rng)
    distinct = np.unique(result.values)
    assert len(distinct) == result.centroids <= clusters
    assert result.mean_squared_error == pytest.approx(np.square(weight - result.values).mean(), rel=1e-5)
    if keep_zeros:
        assert (result.values[weight == 0] == 0).all()
        weight, replaced = weight[weight != 0], result.values[weight != 0]
        distinct = np.unique(replaced)
    else:
        weight, replaced = weight.reshape(-1), result.values.reshape(-1)
    nearest = np.abs(weight[:, None] - distinct).min(axis=1)
    np.testing.assert_allclose(np.abs(weight - replaced), nearest, atol=1e-6)


def test_density_start_is_even_over_the_ranks():
    values = np.sort(np.random.default_rng(0).exponential(size=1000))
    begin = kmeans.start(values, 4, "density", np.random.default_rng(0))
    np.testing.assert_array_equal(begin, values[[125, 375, 625, 875]])


def test_random_start_takes_distinct_values():
    values = np.repeat([1.0, 2.0, 3.0], [1000, 1, 1])
    assert kmeans.start(values, 3, "random", np.random.default_rng(0)).tolist() == [1, 2, 3]


def test_fewer_distinct_values_than_clusters_change_nothing():
    weight = np.array([0, 1, 1, -2], np.float32)
    result = share(weight, 8)
    assert result.values.tolist() == weight.tolist()
    assert (result.centroids, result.mean_squared_error, result.iterations) == (3, 0.0, 0)


@pytest.mark.parametrize("weight", [np.zeros((4, 4), np.float32), np.zeros((0, 3), np.float32)])
def test_nothing_to_cluster(weight):
    assert share(weight, 2).values.tolist() == weight.tolist()


def test_half_precision_stays_within_the_count():
    weight = np.random.default_rng(0).standard_normal(500).astype(np.float16)
    result = share(weight, 16)
    assert result.values.dtype == np.float16
    assert len(np.unique(result.values)) <= 16


def test_step_on_a_pruned_graph_keeps_it_pruned(context):
    pruned, _ = prune(models.cnn(), Prune(amount=0.6), context)
    shared, details = cluster(pruned, Cluster(clusters=8), context, 0)
    before, after = models.weights_of(pruned), models.weights_of(shared)
    for name in ("conv1.weight", "conv2.weight", "fc.weight"):
        np.testing.assert_array_equal(after[name] == 0, before[name] == 0)
        assert len(np.unique(after[name])) == 8
    np.testing.assert_array_equal(after["fc.bias"], before["fc.bias"])
    fc = details["weights"][2]
    assert fc["clusters"] == 8
    assert fc["bits_per_weight"] == (2560 * 3 + 8 * 32) / 2560  # 3-bit indices and 8 float32 values
    assert fc["mean_squared_error"] == pytest.approx(
        np.square(before["fc.weight"] - after["fc.weight"]).mean(), rel=1e-5
    )


def test_one_set_of_values_for_each_output_channel(context):
    model = models.mlp()  # w1 is stored (64 in, 128 out)
    shared, details = cluster(model, Cluster(clusters=4, scope="channel", include=("w1",)), context, 0)
    columns = models.weights_of(shared)["w1"].T
    assert all(len(np.unique(column)) == 4 for column in columns)
    assert len(np.unique(columns)) > 100
    assert details["weights"][0]["bits_per_weight"] == (64 * 128 * 2 + 128 * 4 * 32) / (64 * 128)


def test_embeddings_are_clustered(context):
    shared, _ = cluster(models.embedding(), Cluster(clusters=4, include=("lookup",)), context, 0)
    assert len(np.unique(models.weights_of(shared)["table"])) == 4


def test_same_seed_same_bytes(context):
    spec = Cluster(clusters=8, init="random")
    first, second, other = (cluster(models.cnn(), spec, context, seed)[0] for seed in (1, 1, 2))
    assert first.SerializeToString() == second.SerializeToString()
    assert first.SerializeToString() != other.SerializeToString()


def test_stops_when_asked(tmp_path):
    with pytest.raises(Cancelled):
        cluster(models.cnn(), Cluster(), Context(workdir=tmp_path, is_cancelled=lambda: True), 0)


def test_examples():
    found = doctest.testmod(kmeans)
    assert (found.failed, found.attempted > 0) == (0, True)
