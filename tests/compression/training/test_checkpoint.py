"""A training that was stopped goes on as if nothing had happened."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compression.cache import checkpoint_key
from compression.context import Context
from compression.errors import Cancelled
from compression.training import checkpoint
from compression.training.checkpoint import Checkpoints
from compression.training.constraints import NoConstraint
from compression.training.objectives import Supervised
from compression.training.spec import Augmentation, Training
from tests.compression.training.loops import MemoryCache, blobs, network, same, taught, values

KEY = "a" * 64


@pytest.fixture(autouse=True)
def at_every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN", 0.0)


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return MemoryCache(folder)


class Counting(NoConstraint):
    """Shrinks a weight by what it has counted: without its state the values differ."""

    def __init__(self, weight):
        self.weight = weight
        self.steps = torch.zeros(1)

    @torch.no_grad()
    def after_step(self):
        self.steps += 1
        self.weight.mul_(1 - 1e-3 * self.steps)

    def state(self):
        return {"steps": self.steps, "nested": {"name": [self.steps, "text", 3, None]}}

    def restore(self, state):
        assert state["nested"]["name"][1:] == ["text", 3, None]
        self.steps = state["steps"]


class Projecting(Supervised):
    """Has a parameter of its own."""

    def __init__(self, spec):
        super().__init__(spec, normalized=False)
        torch.manual_seed(7)
        self.projection = nn.Linear(3, 3)

    def parameters(self):
        return self.projection.parameters()

    def loss_of(self, outputs, batch):
        return super().loss_of((self.projection(outputs[0]),), batch)


def attempt(tmp_path, cache, spec, *, stop_before=None):
    """One attempt at the training; cancelled before an epoch, or left alone."""
    epochs_begun = 0

    class Stop(NoConstraint):
        def before_step(self, progress):
            nonlocal epochs_begun
            epochs_begun = int(progress * spec.epochs + 1e-9)

    module = network(norm=True, dropout=0.25)
    objective = Projecting(spec)
    constraint = Counting(module[0].weight)
    context = Context(
        workdir=tmp_path,
        step_cache=cache,
        is_cancelled=lambda: stop_before is not None and epochs_begun >= stop_before,
    )
    lesson = {"objective": objective, "constraints": [constraint, Stop()], "key": KEY, "samples": blobs()}
    report = taught(module, tmp_path, spec, context=context, **lesson)
    return report, values(module), values(objective.projection)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize("stop_before", [1, 3])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path, cache, optimizer, share, stop_before):
    spec = Training(
        epochs=5,
        batch_size=24,
        optimizer=optimizer,
        learning_rate=0.02,
        validation_share=share,
        augmentation=Augmentation(noise=0.05),
        reestimate_batch_norm=True,
    )
    whole = attempt(tmp_path, None, spec)
    with pytest.raises(Cancelled):
        attempt(tmp_path, cache, spec, stop_before=stop_before)
    assert set(cache.kept) == {checkpoint_key(KEY)}
    resumed = attempt(tmp_path, cache, spec)
    assert resumed[0] == whole[0]
    assert same(resumed[1], whole[1])
    assert same(resumed[2], whole[2])


def test_resuming_really_starts_at_the_checkpoint(tmp_path, cache, monkeypatch):
    spec = Training(epochs=4)
    with pytest.raises(Cancelled):
        attempt(tmp_path, cache, spec, stop_before=2)
    epochs = []
    plain = checkpoint.Checkpoints.save_when_due

    def noted(self, state):
        epochs.append(state["epochs_done"])
        plain(self, state)

    monkeypatch.setattr(checkpoint.Checkpoints, "save_when_due", noted)
    attempt(tmp_path, cache, spec)
    assert epochs == [3, 4]


def damage_json(folder):
    (folder / "state.json").write_text("{")


def damage_tensors(folder):
    path = folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove_tensors(folder):
    (folder / "checkpoint.safetensors").unlink()


def other_tensors(folder):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, folder / "checkpoint.safetensors")


def other_json(folder):
    (folder / "state.json").write_text('{"$items": [1, 2]}')


@pytest.mark.parametrize("damage", [damage_json, damage_tensors, remove_tensors, other_tensors, other_json])
def test_a_damaged_checkpoint_is_as_good_as_none(tmp_path, cache, damage):
    spec = Training(epochs=3)
    whole = attempt(tmp_path, None, spec)
    with pytest.raises(Cancelled):
        attempt(tmp_path, cache, spec, stop_before=2)
    damage(cache.kept[checkpoint_key(KEY)])
    resumed = attempt(tmp_path, cache, spec)
    assert resumed[0] == whole[0]
    assert same(resumed[1], whole[1])


def test_nothing_is_kept_before_it_is_due(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN", 3600.0)
    attempt(tmp_path, cache, Training(epochs=2))
    assert cache.kept == {}


def test_without_a_key_nothing_is_kept(tmp_path, cache):
    context = Context(workdir=tmp_path, step_cache=cache)
    taught(network(), tmp_path, Training(epochs=2), context=context)
    assert cache.kept == {}


def test_what_comes_back_is_what_was_kept(tmp_path, cache):
    state = {
        "half": torch.tensor([1.5], dtype=torch.float16),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "by number": {0: {"step": 1.5}, 1: None},
        "list": [0.1, float("inf"), "x", [torch.zeros(0)]],
    }
    context = Context(workdir=tmp_path, step_cache=cache)
    for count in range(4):
        Checkpoints(context, KEY).save_when_due(state | {"count": count})
    found = Checkpoints(context, KEY).load()
    assert found["count"] == 3
    for name in ("half", "transposed", "mask", "scalar"):
        assert torch.equal(found[name], state[name])
        assert found[name].dtype == state[name].dtype
    assert found["by number"] == state["by number"]
    assert found["list"][:3] == state["list"][:3]
    assert Checkpoints(context, "b" * 64).load() is None
