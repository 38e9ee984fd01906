"""Datasets in local files: what is in them, and their samples in batches."""

from compression.data.checks import check_labels, inspect_dataset
from compression.data.source import Batch, Dataset, DataSource, detect_format, open_dataset
from compression.data.synthetic import synthetic_batches

__all__ = [
    "Batch",
    "DataSource",
    "Dataset",
    "check_labels",
    "detect_format",
    "inspect_dataset",
    "open_dataset",
    "synthetic_batches",
]
