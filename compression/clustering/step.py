"""Weight sharing in an ONNX graph."""

from __future__ import annotations

import math
import zlib

import numpy as np
import onnx

from compression.clustering import kmeans
from compression.clustering.spec import Cluster
from compression.context import Context
from compression.graph.weights import Array, Weight, find_weights, read, replace, select


def cluster(
    model: onnx.ModelProto, spec: Cluster, context: Context, seed: int
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Let the weights of each layer, embeddings included, share at most `spec.clusters` values.

    Returns:
        The clustered model (the argument is not changed), and per weight the distinct values, the mean squared error
        and the bits a weight takes with its share of the table of values.

    Raises:
        StepFailed: `unknown_name`, `no_weights` or `non_finite_weights`.
    """
    chosen = select(find_weights(model), spec.include, spec.exclude)
    shared = onnx.ModelProto()
    shared.CopyFrom(model)
    report: list[dict[str, object]] = []
    total_bits = total = 0
    for done, (weight, values) in enumerate(read(model, chosen)):
        context.check_cancelled()
        context.progress("clustering", done / len(chosen), weight.name)
        results = _share(weight, values, spec, seed, context)
        joined = results[0].values if spec.scope == "tensor" else _stack(weight, results)
        replace(shared, {weight.name: joined})
        bits = _bits(values.size, [result.centroids for result in results], values.dtype.itemsize)
        report.append(
            {
                "name": weight.name,
                "shape": list(weight.shape),
                "clusters": max(result.centroids for result in results),
                "mean_squared_error": sum(result.mean_squared_error for result in results) / len(results),
                "bits_per_weight": bits / values.size,
                "iterations": max(result.iterations for result in results),
            }
        )
        total_bits, total = total_bits + bits, total + values.size
    return shared, {"bits_per_weight": total_bits / total, "weights": report}


def _share(weight: Weight, values: Array, spec: Cluster, seed: int, context: Context) -> list[kmeans.Clustering]:
    """One clustering for the tensor, or one for each output channel."""
    # Seeded by name, so that a weight's clusters do not depend on which others take part.
    rng = np.random.default_rng([seed, zlib.crc32(weight.name.encode())])
    results = []
    for part in [values] if spec.scope == "tensor" else np.moveaxis(values, weight.output_axis, 0):
        context.check_cancelled()
        results.append(
            kmeans.share(
                part,
                spec.clusters,
                init=spec.init,
                keep_zeros=spec.keep_zeros,
                max_iterations=spec.max_iterations,
                rng=rng,
            )
        )
    return results


def _stack(weight: Weight, results: list[kmeans.Clustering]) -> Array:
    return np.stack([result.values for result in results], axis=weight.output_axis)


def _bits(elements: int, centroids: list[int], itemsize: int) -> int:
    """Bits of the indices and of the tables of values (Han et al. 2015, equation 1)."""
    indices = sum(elements // len(centroids) * math.ceil(math.log2(max(count, 1))) for count in centroids)
    return indices + 8 * itemsize * sum(centroids)
