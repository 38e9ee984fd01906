"""What a teacher adds: the same small student with it and without, on MNIST and on scikit-learn's digits.

Both sides of a pair have the same architecture, first weights, training pictures, labels, order of the batches, epochs,
optimizer and learning rates, and the best epoch is chosen on the same held-out pictures. One learns from the labels
alone; the other one through the `distill` step with its defaults, from the labels and the teacher's outputs; a third
one from the outputs without any label. Teachers have seen the same training pictures and no more. Errors are those of
the exported ONNX graphs in ONNX Runtime, on pictures that neither teacher nor student has seen. The interval is that
of the mean difference over the seeds (Student's t, 95 %): it says how sure the gain is over trainings on these
pictures, not over other test sets.

    python benchmarks/distillation.py [--data mnist digits] [--seeds 5] [--samples 20000]
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import lenet
import mnist
import numpy as np
import onnx
import torch
from seeds import mean_interval
from torch import nn

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.data.feed import ModelFeed
from compression.distillation.interface import interface_of
from compression.distillation.pupils import NewPupil
from compression.distillation.spec import Distill
from compression.distillation.step import distill
from compression.graph.inspect import summarize
from compression.graph.to_torch import to_torch
from compression.training.constraints import NoConstraint
from compression.training.dataset import TrainingSet
from compression.training.loop import Lesson, train
from compression.training.objectives import Supervised
from compression.training.spec import Augmentation, Finetune, Training
from compression.training.step import TrainingMaterial, finetune

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
TEACHER_EPOCHS = 6
TEACHER_SHIFT = 2  # pixels
# Students and how they are trained; everything else is the step's default.
STUDENTS = {
    "mnist": ({"name": "mlp"}, Training(epochs=20, batch_size=128, learning_rate=2e-3)),
    "digits": ({"name": "mlp", "width": 0.25, "depth": 1}, Training(epochs=60, batch_size=64, learning_rate=2e-3)),
}


class Pictures(NamedTuple):
    """(n, 1, h, w) float32 and (n,) int64, for training and for the test."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


class Trained(NoConstraint):
    """As in the step: the random network before training is no result."""

    def is_settled(self, progress: float) -> bool:
        return progress > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20_000, help="training pictures of MNIST")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.data:
        compare(name, options.seeds, options.samples)


def compare(name: str, seeds: int, samples: int) -> None:
    pictures, teacher = mnist_pair(samples) if name == "mnist" else digits_pair()
    student, training = STUDENTS[name]
    summary = summarize(teacher, len(teacher.SerializeToString()), 0)
    print(f"{name}: {len(pictures.train)} training, {len(pictures.test)} test pictures")
    print(f"  teacher: error {error(teacher, pictures):.2f} %, {summary.parameters} parameters, {summary.macs} MACs")
    rows = []
    for seed in range(seeds):
        started = time.perf_counter()
        alone, with_teacher, unlabelled = one_seed(teacher, pictures, student, training, seed)
        rows.append([error(model, pictures) for model in (alone, with_teacher, unlabelled)])
        if seed == 0:
            small = summarize(with_teacher, len(with_teacher.SerializeToString()), 0)
            print(f"  student {student}: {small.parameters} parameters, {small.macs} MACs")
        took = time.perf_counter() - started
        print(
            "  seed {}: labels {:.2f} %, labels and teacher {:.2f} %, teacher {:.2f} % ({:.0f} s)".format(
                seed, *rows[-1], took
            )
        )
    errors = np.array(rows)
    print("  mean: labels {:.3f} %, labels and teacher {:.3f} %, teacher {:.3f} %".format(*errors.mean(0)))
    for column, what in ((1, "with teacher"), (2, "teacher without labels")):
        gain, low, high = mean_interval(errors[:, 0] - errors[:, column])
        print(f"  {what}: {gain:.3f} points better [{low:.3f}, {high:.3f}]")


def one_seed(
    teacher: onnx.ModelProto, pictures: Pictures, student: dict[str, object], training: Training, seed: int
) -> tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]:
    with tempfile.TemporaryDirectory() as folder:
        context = Context(workdir=Path(folder), threads=1)
        labelled = material(teacher, folder, {"image": pictures.train, "labels": pictures.labels}, seed)
        spec = Distill.model_validate({"student": student, "training": training.model_dump()})
        alone = from_labels(teacher, spec, context, labelled, seed)
        with_teacher, _ = distill(teacher, spec, context, labelled)
        unlabelled, _ = distill(teacher, spec, context, material(teacher, folder, {"image": pictures.train}, seed))
    return alone, with_teacher, unlabelled


def material(teacher: onnx.ModelProto, folder: str, arrays: dict[str, np.ndarray], seed: int) -> TrainingMaterial:
    path = Path(folder) / f"{len(arrays)}.npz"
    np.savez(path, **arrays)
    feed = ModelFeed(open_dataset(DataSource(path)), summarize(teacher, 0, 0), "training")
    return TrainingMaterial(feed, lambda: teacher, seed)


def from_labels(
    teacher: onnx.ModelProto, spec: Distill, context: Context, given: TrainingMaterial, seed: int
) -> onnx.ModelProto:
    """The student of the step, trained by the labels alone from the same first weights."""
    module = to_torch(teacher)
    samples = TrainingSet.read(given.feed, module.input_names, context, None)
    shown = samples.batch(np.arange(256))
    interface = interface_of(teacher, module, shown.inputs, (module(*shown.inputs),))
    torch.manual_seed(seed)
    pupil = NewPupil(spec.student, interface, teacher, "cpu")
    lesson = Lesson(samples, Supervised(spec.training, normalized=False), constraints=[Trained()])
    train(pupil.module, lesson, spec.training, context, seed)
    return pupil.finished(shown.inputs)[0]


def mnist_pair(samples: int) -> tuple[Pictures, onnx.ModelProto]:
    """The first pictures of the training set, and a LeNet-5 (Caffe's) trained on them."""
    images, labels, test, test_labels = mnist.load()
    pictures = Pictures(
        mnist.scaled(images[:samples]),
        labels[:samples].astype(np.int64),
        mnist.scaled(test),
        test_labels.astype(np.int64),
    )
    torch.manual_seed(0)
    return pictures, trained(lenet.lenet5(), pictures)


def trained(net: nn.Module, pictures: Pictures) -> onnx.ModelProto:
    model = lenet.exported(net)
    with tempfile.TemporaryDirectory() as folder:
        given = material(model, folder, {"image": pictures.train, "labels": pictures.labels}, 0)
        augmentation = Augmentation(shift=TEACHER_SHIFT)
        spec = Finetune(training=Training(epochs=TEACHER_EPOCHS, batch_size=128, augmentation=augmentation))
        return finetune(model, spec, Context(workdir=Path(folder), threads=1), given)[0]


def digits_pair() -> tuple[Pictures, onnx.ModelProto]:
    """scikit-learn's digits in the split of `examples/digits`, and the network trained there."""
    script = importlib.util.spec_from_file_location("digits", DIGITS / "train.py")
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    train_images, test_images, train_labels, test_labels = module.load()
    held_out = np.load(DIGITS / "evaluation.npz")["image"]
    if not np.array_equal(held_out, test_images):
        raise SystemExit("examples/digits/evaluation.npz holds other pictures than its script sets aside")
    pictures = Pictures(train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64))
    return pictures, onnx.load(DIGITS / "digits-cnn.onnx")


def error(model: onnx.ModelProto, pictures: Pictures) -> float:
    """Wrong answers on the test pictures, in percent."""
    return lenet.error_percent(model, pictures.test, pictures.test_labels)


if __name__ == "__main__":
    main()
