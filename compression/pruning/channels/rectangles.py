"""What is removed of a tensor has to be whole slices: joining channels until that holds for every tensor."""

from __future__ import annotations

import numpy as np

from compression.pruning.channels import label_arrays
from compression.pruning.channels.engine import Engine, GroupedLayer
from compression.pruning.channels.identities import FROZEN, Identities, Labels


def settle(engine: Engine) -> None:
    """Join channels until each tensor's labels differ along one axis at most, and grouped layers keep even groups.

    Where several axes would do, the one that leaves the most channels to choose from is taken: the channels of a
    group in a channel shuffle, the heads of attention where the products have tied their channels already.
    """
    while True:
        before = _state(engine)
        for layer in engine.grouped:
            _even(engine.ids, layer)
        for _, labels in engine.labelled():
            _one_axis(engine.ids, labels)
        if _state(engine) == before:
            return


def _state(engine: Engine) -> bytes:
    return engine.ids.everything().tobytes()


def _one_axis(ids: Identities, labels: Labels) -> None:
    labels = label_arrays.compress(ids.find(labels))
    axes = label_arrays.varying(labels)
    if len(axes) < 2:
        return
    counts = [_classes([np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)]) for axis in axes]
    kept = axes[int(np.argmax(counts))]
    label_arrays.unify(ids, labels, [axis for axis in axes if axis != kept])


def _even(ids: Identities, layer: GroupedLayer) -> None:
    inputs, outputs = ids.find(layer.inputs), ids.find(layer.outputs)
    if layer.by_group is None:
        by_group = _classes([np.concatenate([inputs, outputs], axis=1)])
        columns = [_classes([inputs.T])] + ([] if layer.weight is None else [_classes([outputs.T])])
        layer.by_group = by_group > max(columns)
    if layer.by_group:
        ids.union(np.concatenate([inputs, outputs], axis=1), inputs[:, :1])
    else:
        ids.union(inputs, inputs[:1])
        ids.union(outputs, outputs[:1])


def _classes(slices: list[Labels]) -> int:
    """How many sets are left, those that stay not counted, when each row of each array becomes one set."""
    total = 0
    for rows in slices:
        unique, places = np.unique(rows, return_inverse=True)
        places = places.reshape(rows.shape) + 1
        trial = Identities()
        trial.fresh(len(unique))
        trial.union(places, places[:, :1])
        if unique[0] == FROZEN:
            trial.freeze(np.ones(1, np.int64))
        roots = np.unique(trial.find(np.arange(1, len(unique) + 1)))
        total += int(np.count_nonzero(roots))
    return total


def connect_grouped_weights(engine: Engine) -> None:
    """Where channels go from within groups, the weight's axis of one group's input channels follows them."""
    for layer in engine.grouped:
        if layer.weight is not None and not layer.by_group:
            weight, axis = layer.weight
            engine.join_axis(weight, axis, layer.inputs[0])
