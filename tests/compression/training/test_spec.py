"""What can be asked of training, and which data that needs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from compression._spec_base import Spec
from compression.clustering.spec import Cluster
from compression.pruning.spec import Prune
from compression.spec import PipelineSpec, missing_data
from compression.training.spec import Augmentation, Finetune, Training


@pytest.mark.parametrize("spec", [Training, Augmentation, Finetune, Prune, Cluster])
def test_every_field_is_documented(spec: type[Spec]):
    undocumented = [name for name, field in spec.model_fields.items() if name != "type" and not field.description]
    assert undocumented == []


def test_patience_needs_validation():
    with pytest.raises(ValidationError, match="patience compares validation scores"):
        Training(patience=2, validation_share=0)
    assert Training(patience=2).patience == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": 0},
        {"l1": float("inf")},
        {"clip_norm": 0},
        {"clip_norm": float("nan")},
        {"momentum": float("nan")},
        {"temperature": float("nan")},
        {"teacher_weight": 1.5},
        {"label_smoothing": 1},
        {"validation_share": 0.6},
        {"validation_share": float("nan")},
        {"warmup_epochs": float("nan")},
        {"warmup_epochs": float("inf")},
        {"samples": 1},
        {"augmentation": {"noise": float("inf")}},
        {"augmentation": {"shift": -1}},
        {"epoch": 3},
    ],
)
def test_bounds(fields):
    with pytest.raises(ValidationError):
        Training.model_validate(fields)


TRAINING = {"training": {}}


@pytest.mark.parametrize(
    ("step", "needed"),
    [
        ({"type": "finetune"}, {"training"}),
        ({"type": "prune", "amount": 0.5}, set()),
        ({"type": "prune", "amount": 0.5, **TRAINING}, {"training"}),
        ({"type": "prune", "amount": 0.5, "criterion": "wanda"}, {"calibration"}),
        ({"type": "prune", "amount": 0.5, "criterion": "wanda", **TRAINING}, {"calibration", "training"}),
        ({"type": "prune_channels", "amount": 0.5}, set()),
        ({"type": "prune_channels", "amount": 0.5, "importance": "taylor"}, {"training"}),
        ({"type": "cluster"}, set()),
        ({"type": "cluster", **TRAINING}, {"training"}),
    ],
)
def test_which_data_a_step_needs(step, needed):
    assert set(PipelineSpec(steps=[step]).data_needed) == needed


def test_the_first_step_that_needs_a_dataset_is_named():
    steps = [
        {"type": "prune", "amount": 0.5},
        {"type": "finetune"},
        {"type": "cluster", **TRAINING},
        {"type": "quantize", "mode": "static"},
    ]
    needed = PipelineSpec(steps=steps).data_needed
    assert needed == {"training": "finetune", "calibration": "quantize"}
    assert missing_data("training", "finetune") == "A 'finetune' step learns from samples: give a training dataset."
    assert "calibration dataset" in missing_data("calibration", "quantize")


def test_a_spec_survives_json():
    spec = PipelineSpec(
        steps=[Prune(amount=0.5, training=Training(epochs=3, augmentation=Augmentation(flip=True))), Finetune()]
    )
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "exactly one of amount, threshold and pattern, not none"),
        ({"amount": 0.5, "pattern": "2:4"}, "not amount and pattern"),
        ({"pattern": "2"}, "must look like n:m"),
        ({"pattern": "4:2"}, "needs 1 <= n < m <= 64"),
        ({"pattern": "2:4", "scope": "global"}, "scope 'global' ranks by amount; pattern acts within a layer"),
        ({"threshold": 0.1, "scope": "output"}, "scope 'output' ranks by amount; threshold acts within a layer"),
        ({"pattern": "2:4", "block": [4, 1]}, "block goes with amount"),
        ({"amount": 0.5, "scope": "output", "block": [4, 1]}, "block goes with amount, and with scope"),
        ({"threshold": 0.1, "criterion": "wanda"}, "threshold compares absolute values"),
        ({"amount": 0.5, "criterion": "taylor"}, "criterion 'taylor' is measured in training"),
        ({"amount": 0.5, "criterion": "movement"}, "criterion 'movement' is measured in training"),
        ({"amount": 0.5, "schedule": "gradual"}, "schedule 'gradual' prunes in training"),
        ({"amount": 0.5, "schedule": "iterative"}, "schedule 'iterative' prunes in training"),
        ({"amount": 0.5, "criterion": "wanda", "schedule": "gradual", **TRAINING}, "looks at the network once"),
        ({"amount": 0.5, "schedule": "gradual", "begin": 0.7, **TRAINING}, r"end \(0.7\) must lie after begin \(0.7\)"),
        ({"amount": 0.5, "schedule": "iterative", "begin": 0.5, "end": 0.2, **TRAINING}, "must lie after begin"),
        ({"amount": 0.5, "block": [0, 1]}, "greater than or equal to 1"),
        ({"amount": 1.0}, "less than 1"),
    ],
)
def test_what_cannot_be_pruned(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Prune.model_validate(fields)


def test_what_can_be_pruned():
    assert Prune(amount=0.5, begin=0.9).end == 0.7  # one shot has no end
    assert Prune(pattern="2:4").kept_of_group == (2, 4)
    assert Prune(amount=0.5).kept_of_group is None
    assert Prune(amount=0.5, criterion="wanda", training=Training()).schedule == "one_shot"
    assert Prune(pattern="2:4", schedule="gradual", training=Training()).end == 0.7
