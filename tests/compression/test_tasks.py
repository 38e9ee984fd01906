"""Task metrics against scikit-learn, torch, scipy and hand-computed numbers."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference

from compression.benchmarking import embeddings, tasks
from compression.benchmarking.embeddings import Embeddings
from compression.benchmarking.quality import Comparison
from compression.benchmarking.tasks import Regression, Tokens, Transcripts, best_path, edit_distance, judge
from compression.data import Batch


def batch(count, labels=None, targets=None):
    return Batch({"x": np.zeros((count, 1), np.float32)}, labels, targets)


def judged(original, result, *, labels=None, targets=None, task="auto", size=None):
    """What a comparison of two first outputs says, taken in batches of `size`."""
    comparison = Comparison(task)
    count = len(original)
    for begin in range(0, count, size or count):
        part = slice(begin, begin + (size or count))
        comparison.add(
            [original[part]],
            [result[part]],
            batch(
                len(original[part]),
                None if labels is None else labels[part],
                None if targets is None else targets[part],
            ),
        )
    assert not isinstance(comparison.score, str), comparison.score
    return {metric.name: metric for metric in comparison.judged(seed=0)}


def test_regression_is_scikit_learns():
    rng = np.random.default_rng(0)
    targets = (rng.normal(size=(300, 3)) * [1, 5, 0.1] + [100, 0, 7]).astype(np.float32)
    before = targets + rng.normal(0, 0.1, targets.shape).astype(np.float32)
    after = before + rng.normal(0, 0.2, targets.shape).astype(np.float32)
    found = judged(before, after, targets=targets, size=64)
    for name, side in (("original", before), ("result", after)):
        assert getattr(found["mse"], name) == pytest.approx(reference.mean_squared_error(targets, side), rel=1e-5)
        assert getattr(found["mae"], name) == pytest.approx(reference.mean_absolute_error(targets, side), rel=1e-5)
        expected = reference.r2_score(targets, side, multioutput="variance_weighted")
        assert getattr(found["r2"], name) == pytest.approx(expected, rel=1e-5)
    assert found["mse"].verdict.startswith("worse, +")
    assert found["r2"].verdict.startswith("worse, -")
    low, high = found["mse"].interval
    squared = [np.square(side.astype(np.float64) - targets).mean(axis=1) for side in (before, after)]
    wanted = stats.ttest_rel(squared[1], squared[0]).confidence_interval()
    assert (low, high) == pytest.approx((wanted.low, wanted.high), rel=0.1)
    assert (found["mse"].unit, found["mse"].direction) == ("squared output units", "lower_is_better")
    assert found["mae"].samples == 300


def test_regression_takes_a_column_for_single_numbers_and_constant_targets_have_no_r2():
    found = judged(np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]]), targets=np.array([1.0, 1.0], np.float32))
    assert set(found) == {"mse", "mae"}
    assert (found["mse"].original, found["mse"].result, found["mae"].result) == (0.5, 4.5, 1.5)


@pytest.mark.parametrize("normalized", [False, True])
def test_perplexity_is_torchs(normalized):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(40, 6, 11)).astype(np.float32)
    worse = logits + rng.normal(size=logits.shape).astype(np.float32)
    targets = logits.argmax(axis=2)
    targets[rng.random(targets.shape) < 0.3] = 3
    targets[:, 4:] = -100
    targets[::2, 3] = -1
    sides = [torch.tensor(side) for side in (logits, worse)]
    given = [(side.softmax(-1) if normalized else side).numpy() for side in sides]
    found = judged(*given, targets=targets, size=16)
    wanted = torch.tensor(np.where(targets < 0, -100, targets)).flatten()
    losses = [torch.nn.functional.cross_entropy(side.flatten(0, 1), wanted).exp().item() for side in sides]
    assert (found["perplexity"].original, found["perplexity"].result) == pytest.approx(losses, rel=1e-4)
    assert found["perplexity"].ratio == pytest.approx(losses[0] / losses[1], rel=1e-4)
    low, high = found["perplexity"].interval
    assert low < found["perplexity"].ratio < high < 1
    assert found["perplexity"].verdict.startswith("worse, 0.")
    known = targets >= 0
    right = (worse.argmax(axis=2) == targets)[known].mean()
    assert found["token_accuracy"].result == pytest.approx(right)


def test_texts_of_different_length_weigh_what_they_hold():
    targets = np.full((2, 10), -1)
    targets[0, 0] = 0
    targets[1] = 0
    logits = np.zeros((2, 10, 2), np.float32)
    better = logits.copy()
    better[1, :, 0] = 1
    found = judged(logits, better, targets=targets)
    # ln 2 at the one position, log(1 + e^-1) at the other ten.
    assert found["perplexity"].result == pytest.approx(np.exp((np.log(2) + 10 * np.log1p(np.exp(-1))) / 11))


def test_nothing_known_has_no_perplexity():
    assert judged(np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), targets=np.full((2, 3), -1)) == {}


def test_transcripts_by_hand():
    def frames(*tokens):
        return np.eye(4, dtype=np.float32)[list(tokens)]

    assert best_path(frames(0, 1, 1, 0, 1, 2, 2, 0)).tolist() == [1, 1, 2]
    right, wrong = frames(1, 1, 0, 2, 3), frames(1, 0, 0, 0, 3)
    targets = np.array([[1, 2, 3, -1], [1, 2, 3, -1]])
    found = judged(np.stack([right, right]), np.stack([wrong, right]), targets=targets, task="ctc")
    # One of six tokens is missing.
    assert found["token_error_rate"].original == 0
    assert found["token_error_rate"].result == pytest.approx(1 / 6)
    assert found["token_error_rate"].direction == "lower_is_better"


def test_edit_distance_is_that_of_the_plain_recursion():
    def plain(a, b):
        rows = [list(range(len(b) + 1))]
        for i, one in enumerate(a):
            row = [i + 1]
            for j, other in enumerate(b):
                row.append(min(row[-1] + 1, rows[-1][j + 1] + 1, rows[-1][j] + (one != other)))
            rows.append(row)
        return rows[-1][-1]

    rng = np.random.default_rng(2)
    for _ in range(200):
        a, b = (rng.integers(0, 3, rng.integers(0, 8)) for _ in range(2))
        assert edit_distance(a, b) == plain(a.tolist(), b.tolist())
    assert edit_distance(np.array([1, 2]), np.array([], np.int64)) == 2


def test_top_5_is_scikit_learns():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 30, 200)
    before = rng.normal(size=(200, 30)) + 1.5 * np.eye(30)[labels]
    after = before + rng.normal(0, 0.7, before.shape)
    found = judged(before, after, labels=labels, size=50)
    for name, side in (("original", before), ("result", after)):
        expected = reference.top_k_accuracy_score(labels, side, k=5, labels=np.arange(30))
        assert getattr(found["accuracy_top5"], name) == pytest.approx(expected)
    assert "accuracy_top5" not in judged(before[:, :19], after[:, :19], labels=labels % 19)


def test_accuracy_comes_with_mcnemars_test():
    labels = np.zeros(40, np.int64)
    before, after = np.tile([1.0, 0.0], (40, 1)), np.tile([1.0, 0.0], (40, 1))
    after[:9] = [0, 1]
    before[20:22] = [0, 1]
    found = judged(before, after, labels=labels)["accuracy"]
    assert found.p_value == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert judged(before, before, labels=labels)["accuracy"].p_value == 1.0


def test_nearest_neighbours_of_embeddings_are_scikit_learns():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 5, 150)
    before = (rng.normal(size=(150, 8)) + 1.2 * rng.normal(size=(5, 8))[labels]).astype(np.float32)
    after = (before + rng.normal(0, 0.5, before.shape)).astype(np.float32)
    found = judged(before, after, labels=labels, task="embedding", size=40)
    from sklearn.neighbors import NearestNeighbors

    order = [
        NearestNeighbors(n_neighbors=11, metric="cosine").fit(side).kneighbors(side, return_distance=False)[:, 1:]
        for side in (before, after)
    ]
    for name, near in zip(("original", "result"), order, strict=True):
        assert getattr(found["retrieval_at_1"], name) == pytest.approx((labels[near[:, 0]] == labels).mean())
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*order, strict=True)]
    assert found["neighbor_agreement"].result == pytest.approx(np.mean(shared))
    assert found["neighbor_agreement"].interval_of == "result"


def test_embeddings_are_compared_with_their_targets():
    rng = np.random.default_rng(5)
    targets = rng.normal(size=(60, 4)).astype(np.float32)
    before, after = targets * 3, targets + rng.normal(0, 0.5, targets.shape).astype(np.float32)
    found = judged(before, after, targets=targets, task="embedding")
    assert found["target_cosine"].original == pytest.approx(1.0)
    expected = torch.nn.functional.cosine_similarity(torch.tensor(after), torch.tensor(targets)).mean().item()
    assert found["target_cosine"].result == pytest.approx(expected, rel=1e-5)
    assert found["retrieval_at_1"].original == 1.0
    nearest = (after / np.linalg.norm(after, axis=1)[:, None]) @ (targets / np.linalg.norm(targets, axis=1)[:, None]).T
    assert found["retrieval_at_1"].result == pytest.approx((nearest.argmax(1) == np.arange(60)).mean())


def test_large_embeddings_are_cut_and_it_is_said(monkeypatch):
    monkeypatch.setattr(embeddings, "_MOST_BYTES", 3 * 320)
    score = Embeddings()
    for _ in range(3):
        score.add(np.ones((10, 4), np.float32), np.ones((10, 4), np.float32), batch(10))
    assert score.notes() == []
    score.add(np.ones((10, 4), np.float32), np.ones((10, 4), np.float32), batch(10))
    assert score.notes() == ["Embeddings were compared on the first 30 samples, which fill the memory for that."]
    assert score.metrics(0)[0].samples == 30


FLOATS, TOKENS = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.int64)


@pytest.mark.parametrize(
    ("task", "output", "labels", "targets", "reason"),
    [
        ("auto", (4, 3), None, None, "the evaluation data has neither labels nor targets"),
        ("classification", (4, 3), None, FLOATS, "the evaluation data has no labels"),
        ("auto", (4, 3, 3), np.zeros(4, np.int64), None, "the first output does not hold a score for each of several"),
        ("regression", (4, 3), None, TOKENS, "the evaluation data has no floats in 'targets'"),
        ("auto", (4, 2), None, FLOATS, "'targets' has samples of shape [3], the model's first output [2]"),
        ("auto", (4, 2, 9), None, TOKENS, "'targets' has samples of shape [3], the model's first output [2, 9]"),
        ("tokens", (4, 3), None, FLOATS, "the evaluation data has no whole numbers in 'targets'"),
        ("ctc", (4, 3), None, TOKENS, "transcripts need targets (samples, length) and an output"),
        ("auto", (3, 3), None, FLOATS, "the first output does not hold floats for each sample"),
    ],
)
def test_what_cannot_be_judged_is_said(task, output, labels, targets, reason):
    found = judge(task, np.zeros(output, np.float32), batch(4, labels, targets))
    assert isinstance(found, str)
    assert found.startswith(reason)


@pytest.mark.parametrize(
    ("output", "labels", "targets", "kind"),
    [
        ((4, 3), None, FLOATS, Regression),
        ((4, 3, 7), None, TOKENS, Tokens),
        ((4, 3), np.zeros(4, np.int64), FLOATS, tasks.Classes),
    ],
)
def test_what_the_data_holds_decides(output, labels, targets, kind):
    assert isinstance(judge("auto", np.zeros(output, np.float32), batch(4, labels, targets)), kind)
    assert isinstance(judge("ctc", np.zeros((4, 9, 5), np.float32), batch(4, None, TOKENS)), Transcripts)


def test_nan_has_no_error():
    targets = np.zeros(3, np.float32)
    assert judged(np.zeros(3), np.array([0, np.nan, 0]), targets=targets) == {}


def test_examples_hold():
    assert doctest.testmod(tasks, extraglobs={"np": np}).failed == 0
