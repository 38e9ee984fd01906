"""Quantize one ONNX file with NNCF's defaults; runs in a Python environment that has `nncf` and knows nothing of us.

python benchmarks/peer_nncf.py MODEL.onnx CALIBRATION.npz RESULT.onnx [--transformer]
"""

from __future__ import annotations

import argparse

import numpy as np
import onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("result")
    parser.add_argument("--transformer", action="store_true")
    arguments = parser.parse_args()
    import nncf

    with np.load(arguments.calibration) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(inputs.values())))
    samples = [{name: values[at : at + 1] for name, values in inputs.items()} for at in range(count)]
    kind = nncf.ModelType.TRANSFORMER if arguments.transformer else None
    result = nncf.quantize(onnx.load(arguments.model), nncf.Dataset(samples), model_type=kind)
    onnx.save(result, arguments.result)


if __name__ == "__main__":
    main()
