"""Compression of neural networks: tensors and local files. No HTTP, no SQL, no queues."""

import os

# From release 1.29 on, ONNX Runtime sends names and hashes of the models it loads to its maker unless this is set
# before it is imported. Models here belong to others.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
