"""The training loop against one written by hand, and what it promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from compression.context import Context
from compression.errors import Cancelled, DataRejected, StepFailed
from compression.training.constraints import NoConstraint
from compression.training.dataset import Split, TrainingBatch, TrainingSet, shuffled
from compression.training.objectives import Supervised
from compression.training.spec import Augmentation, Training
from tests.compression.training.loops import blobs, network, same, taught, values


def by_hand(module, samples, *, epochs, batch_size, rate, seed, share=0.0):
    """AdamW with a level learning rate and no validation, written out."""
    training = Split.of(len(samples), share, np.random.default_rng(seed)).training
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.0)
    losses = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        rng.integers(2**63, size=2)  # what augmentation and dropout are seeded by
        module.train()
        total = []
        for indices in shuffled(training, batch_size, rng):
            batch = samples.batch(indices)
            loss = functional.cross_entropy(module(*batch.inputs), batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total.append(loss.item())
        losses.append(sum(total) / len(total))
    module.eval()
    return losses


@pytest.mark.parametrize("norm", [False, True])
def test_training_equals_a_plain_loop(tmp_path, norm):
    spec = Training(epochs=3, batch_size=20, learning_rate=0.01, schedule="constant", validation_share=0)
    ours, theirs = network(norm=norm), network(norm=norm)
    report = taught(ours, tmp_path, spec, seed=5)
    losses = by_hand(theirs, blobs(), epochs=3, batch_size=20, rate=0.01, seed=5)
    for name, tensor in values(theirs).items():
        torch.testing.assert_close(values(ours)[name], tensor, rtol=1e-5, atol=1e-7)
    assert [epoch.loss for epoch in report.epochs] == pytest.approx(losses, rel=1e-5)
    assert (report.kept_epoch, report.stopped, report.notes) == (3, "finished", ())
    assert [epoch.epoch for epoch in report.epochs] == [1, 2, 3]
    assert {epoch.learning_rate for epoch in report.epochs} == {0.01}
    assert {(epoch.validation_loss, epoch.validation_accuracy) for epoch in report.epochs} == {(None, None)}


def test_the_seed_decides_everything(tmp_path):
    spec = Training(epochs=2, batch_size=16, augmentation=Augmentation(noise=0.1))
    networks = [network(dropout=0.2) for _ in range(3)]
    for module, seed in zip(networks, (1, 1, 2), strict=True):
        torch.rand(seed)  # what the caller drew before does not matter
        taught(module, tmp_path, spec, seed=seed)
    assert same(values(networks[0]), values(networks[1]))
    assert not same(values(networks[0]), values(networks[2]))


def test_the_callers_chance_is_untouched_and_the_module_is_left_in_evaluation(tmp_path):
    module = network(dropout=0.5)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what may not change
    taught(module, tmp_path, Training(epochs=1, augmentation=Augmentation(noise=0.1)))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert not any(layer.training for layer in module.modules())


def accuracy_and_loss(module, samples, indices):
    batch = samples.batch(indices)
    with torch.no_grad():
        scores = module(*batch.inputs)
    return (scores.argmax(1) == batch.target).double().mean().item(), functional.cross_entropy(
        scores, batch.target
    ).item()


def test_the_best_epoch_is_kept(tmp_path):
    """A learning rate that is too high makes scores jump, so that the best epoch is not the last."""
    spec = Training(epochs=12, batch_size=16, learning_rate=0.3, optimizer="adam", schedule="constant")
    spec = spec.model_copy(update={"validation_share": 0.5})
    module, samples = network(), blobs()
    report = taught(module, tmp_path, spec, samples=samples)
    scores = [(epoch.validation_accuracy, -epoch.validation_loss) for epoch in report.epochs]
    best = max(scores)
    assert report.kept_epoch == scores.index(best) + 1 < 12
    held_out = Split.of(len(samples), 0.5, np.random.default_rng(0)).validation
    accuracy, loss = accuracy_and_loss(module, samples, held_out)
    assert (accuracy, -loss) == (pytest.approx(best[0]), pytest.approx(best[1], rel=1e-5))


def test_values_from_before_training_stay_where_training_makes_them_worse(tmp_path):
    module, samples = network(), blobs()
    taught(module, tmp_path, Training(epochs=20, learning_rate=0.01, validation_share=0), samples=samples)
    before = values(module)
    # Wrong labels to train on, right ones to validate with.
    split = Split.of(len(samples), 0.25, np.random.default_rng(0))
    target = samples.batch(np.arange(len(samples))).target.numpy().copy()
    target[split.training] = (target[split.training] + 1) % 3
    wrong = TrainingSet((samples.batch(np.arange(len(samples))).inputs[0].numpy(),), target)
    spec = Training(epochs=10, validation_share=0.25, patience=3)
    report = taught(module, tmp_path, spec, samples=wrong)
    assert (report.kept_epoch, report.stopped, len(report.epochs)) == (0, "patience", 3)
    assert same(values(module), before)


class Settling(NoConstraint):
    """Settled from a share of the training on; notes when it is called."""

    def __init__(self, when):
        self.when = when
        self.calls = []

    def before_step(self, progress):
        self.calls.append(("before", progress))

    def penalty(self):
        self.calls.append(("penalty", None))

    def after_backward(self):
        self.calls.append(("backward", None))

    def after_step(self):
        self.calls.append(("after", None))

    def is_settled(self, progress):
        return progress >= self.when


def test_hooks_are_called_in_their_order_and_once_more_at_the_end(tmp_path):
    hooks = Settling(0.0)
    taught(network(), tmp_path, Training(epochs=2, batch_size=48, validation_share=0), constraints=[hooks])
    steps = [call for begun in (0, 0.25, 0.5, 0.75) for call in steps_of(begun)]
    assert hooks.calls == [*steps, ("before", 1.0)]


def steps_of(progress):
    return [("before", progress), ("penalty", None), ("backward", None), ("after", None)]


def test_no_epoch_counts_before_all_constraints_are_settled(tmp_path):
    spec = Training(epochs=6, learning_rate=1e-9, patience=1)
    report = taught(network(), tmp_path, spec, constraints=[Settling(0.6), Settling(0.0)])
    # Nothing changes at this rate: the first epoch that counts is the best, and patience runs from there.
    assert (report.kept_epoch, report.stopped, len(report.epochs)) == (4, "patience", 5)
    never = taught(network(), tmp_path, Training(epochs=2), constraints=[Settling(2.0)])
    assert (never.kept_epoch, len(never.epochs)) == (2, 2)


def test_penalties_are_part_of_the_loss(tmp_path):
    """One step of gradient descent with and without the square of a weight: they differ by rate * 2 * weight."""

    class Pull(NoConstraint):
        def __init__(self, weight):
            self.weight = weight

        def penalty(self):
            return self.weight.square().sum()

    spec = Training(epochs=1, batch_size=96, optimizer="sgd", momentum=0, learning_rate=0.25, validation_share=0)
    plain, pulled, before = network(), network(), network()[0].weight.detach()
    one = taught(plain, tmp_path, spec)
    two = taught(pulled, tmp_path, spec, constraints=[Pull(pulled[0].weight)])
    torch.testing.assert_close(plain[0].weight - pulled[0].weight, 0.5 * before)
    assert two.epochs[0].loss - one.epochs[0].loss == pytest.approx(before.square().sum().item(), rel=1e-5)


def test_clipping_bounds_the_norm_of_all_gradients(tmp_path):
    """One step of plain gradient descent at rate 1 is as long as the gradient."""
    spec = Training(epochs=1, optimizer="sgd", momentum=0, learning_rate=1.0, schedule="constant", validation_share=0)
    lengths = {}
    for bound in (None, 0.01):
        module = network()
        before = values(module)
        taught(module, tmp_path, spec.model_copy(update={"clip_norm": bound, "batch_size": 96}))
        lengths[bound] = sum((values(module)[name] - before[name]).square().sum() for name in before).sqrt().item()
    assert lengths[None] > 0.05
    assert lengths[0.01] == pytest.approx(0.01, rel=1e-3)


def test_a_dataset_smaller_than_a_batch(tmp_path):
    module = network()
    before = values(module)
    report = taught(module, tmp_path, Training(epochs=2, validation_share=0), samples=blobs(5))
    assert len(report.epochs) == 2
    assert not same(values(module), before)


def test_a_model_that_takes_four_at_a_time(tmp_path):
    class FourAtATime(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            assert len(x) == 4
            return self.inner(x)

    report = taught(FourAtATime(), tmp_path, Training(epochs=1), samples=blobs(24), fixed_batch=4)
    assert report.epochs[0].validation_accuracy is not None
    with pytest.raises(DataRejected) as caught:
        taught(FourAtATime(), tmp_path, Training(epochs=1), samples=blobs(4), fixed_batch=4)
    assert caught.value.code == "dataset_too_small"


class Exploding(Supervised):
    """A loss that is no number from a call on."""

    def __init__(self, spec, at):
        super().__init__(spec, normalized=False)
        self.at = at
        self.calls = 0

    def loss(self, module, batch):
        self.calls += 1
        return super().loss(module, batch) * (torch.nan if self.calls >= self.at else 1.0)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_loss_that_is_no_number_before_any_epoch_was_kept(tmp_path, share):
    spec = Training(epochs=3, batch_size=24, validation_share=share)
    with pytest.raises(StepFailed, match="nan at step 2 of epoch 1") as caught:
        taught(network(), tmp_path, spec, objective=Exploding(spec, 2), constraints=[Settling(0.1)])
    assert caught.value.code == "loss_not_finite"
    assert "learning_rate" in caught.value.message


def test_a_loss_that_is_no_number_after_an_epoch_was_kept(tmp_path):
    spec = Training(epochs=5, batch_size=24, validation_share=0)
    module, reference = network(), network()
    report = taught(module, tmp_path, spec, objective=Exploding(spec, 4 + 4 + 3))
    assert (report.stopped, report.kept_epoch, len(report.epochs)) == ("loss_not_finite", 2, 2)
    assert "step 3 of epoch 3" in report.notes[0]
    assert all(tensor.isfinite().all() for tensor in values(module).values())
    taught(reference, tmp_path, spec, objective=Exploding(spec, 4 + 4 + 1))
    assert same(values(module), values(reference))


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_weights_that_become_no_numbers_in_the_last_step(tmp_path, share):
    """The loss before that step is finite, and without validation nobody looks again."""

    class Poison(Settling):
        def __init__(self, weight):
            super().__init__(0.1)
            self.weight = weight

        def after_step(self):
            self.weight.data[0, 0] = torch.nan

    module = network()
    spec = Training(epochs=1, batch_size=96, validation_share=share)
    with pytest.raises(StepFailed, match="NaN or infinite in the last step of epoch 1") as caught:
        taught(module, tmp_path, spec, constraints=[Poison(module[0].weight)])
    assert caught.value.code == "loss_not_finite"


def test_a_validation_loss_that_is_no_number(tmp_path):
    class OnlyInValidation(Supervised):
        def correct(self, module, batch):
            loss, right = super().correct(module, batch)
            return loss * torch.inf, right

    spec = Training(epochs=2)
    with pytest.raises(StepFailed, match="validation loss is inf after epoch 2") as caught:
        taught(network(), tmp_path, spec, objective=OnlyInValidation(spec, normalized=False))
    assert caught.value.code == "loss_not_finite"


def test_cancelling_stops_between_two_steps(tmp_path):
    asked = iter([False] * 3 + [True] * 9)
    counted = Settling(0.0)
    context = Context(workdir=tmp_path, is_cancelled=lambda: next(asked))
    spec = Training(epochs=1, batch_size=8, validation_share=0)
    with pytest.raises(Cancelled):
        taught(network(), tmp_path, spec, context=context, constraints=[counted])
    assert len([call for call in counted.calls if call[0] == "after"]) == 3


def test_nothing_to_train(tmp_path):
    frozen = network().requires_grad_(requires_grad=False)
    with pytest.raises(StepFailed) as caught:
        taught(frozen, tmp_path)
    assert caught.value.code == "nothing_to_train"

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x).detach()

    with pytest.raises(StepFailed) as caught:
        taught(Cut(), tmp_path)
    assert caught.value.code == "nothing_to_train"


def test_batch_norms_need_two_samples(tmp_path):
    with pytest.raises(StepFailed) as caught:
        taught(network(norm=True), tmp_path, Training(batch_size=1))
    assert caught.value.code == "batch_too_small"


def test_reestimated_statistics_are_means_over_the_training_batches(tmp_path):
    spec = Training(epochs=2, batch_size=30, validation_share=0, reestimate_batch_norm=True)
    module, samples = network(norm=True, dropout=0.5), blobs()
    taught(module, tmp_path, spec, samples=samples, seed=4)
    drawn = shuffled(np.arange(96), 30, np.random.default_rng([4, 2]))
    weight, bias = module[0].weight.detach().numpy(), module[0].bias.detach().numpy()
    hidden = [samples.batch(indices).inputs[0].numpy() @ weight.T + bias for indices in drawn]
    assert len(hidden) == 3
    np.testing.assert_allclose(
        module[1].running_mean, np.mean([one.mean(0) for one in hidden], 0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(module[1].running_var, np.mean([one.var(0, ddof=1) for one in hidden], 0), rtol=1e-4)
    assert module[1].momentum == 0.1
    assert not any(layer.training for layer in module.modules())


def test_reestimation_leaves_dropout_out(tmp_path):
    """Behind a dropout of a half the variance would be much larger than in inference."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    samples = blobs()
    spec = Training(epochs=1, batch_size=96, validation_share=0, reestimate_batch_norm=True)
    taught(module, tmp_path, spec, samples=samples)
    with torch.no_grad():
        hidden = module[1](samples.batch(np.arange(96)).inputs[0])
    torch.testing.assert_close(module[2].running_var, hidden.var(0), rtol=1e-4, atol=1e-6)


def test_progress_and_the_report_as_json(tmp_path, monkeypatch):
    monkeypatch.setattr("compression.training.loop._SECONDS_BETWEEN_REPORTS", 0.0)
    calls = []
    context = Context(workdir=tmp_path, progress=lambda *call: calls.append(call))
    spec = Training(epochs=2, batch_size=43)
    report = taught(network(), tmp_path, spec, context=context, phase="tuning")
    assert [call[:2] for call in calls] == [("tuning", 0.25), ("tuning", 0.5), ("tuning", 0.75), ("tuning", 1.0)]
    assert calls[0][2] == "epoch 1 of 2"
    last = report.epochs[0]
    assert calls[2][2] == (
        f"epoch 2 of 2; loss {last.loss:.4g} in the one before, {100 * last.validation_accuracy:.2f} % right"
    )
    details = report.details()
    assert details["epochs"][0] == dataclasses.asdict(last)
    assert (details["stopped"], details["notes"]) == ("finished", [])


class Recorded:
    """A teacher that notes what it is asked; teaches class 0."""

    def __init__(self):
        self.watched = 0
        self.seen = []

    def watch(self, samples, context, batch_size):
        self.watched += 1

    def teach(self, batch, indices):
        self.seen.append(batch.inputs[0])
        scores = torch.zeros(len(batch), 3)
        scores[:, 0] = 20
        return TrainingBatch(batch.inputs, batch.target, (scores,))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_teacher_sees_what_the_student_sees(tmp_path, noise):
    samples = TrainingSet((blobs().batch(np.arange(96)).inputs[0].numpy(),), None)
    teacher, module = Recorded(), network()
    spec = Training(epochs=30, learning_rate=0.02, batch_size=96, augmentation=Augmentation(noise=noise))
    spec = spec.model_copy(update={"validation_share": 0.0})
    taught(module, tmp_path, spec, samples=samples, teacher=teacher)
    with torch.no_grad():
        assert (module(samples.batch(np.arange(96)).inputs[0]).argmax(1) == 0).float().mean() > 0.9
    assert teacher.watched == (0 if noise else 1)  # outputs are kept where inputs are the same every time
    plain = samples.batch(np.arange(96)).inputs[0].sum()
    assert (abs(float(teacher.seen[0].sum() - plain)) > 1e-2) is bool(noise)
