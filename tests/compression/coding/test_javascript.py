"""The decoder for browsers against the one in Python."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import compression.coding
from compression.coding.dictionary import DICTIONARY
from compression.coding.encode import encode
from tests.compression import models
from tests.compression.coding import files

DECODER = Path(compression.coding.__path__[0]) / "levity.mjs"
NODE = shutil.which("node")
SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import { decode } from "%s";
const report = {};
for (const path of process.argv.slice(2)) {
  try {
    const { onnx, tensors } = await decode(readFileSync(path));
    writeFileSync(path + ".onnx", onnx);
    const hex = (data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("hex");
    report[path] = [...tensors].map(
      ([name, { dtype, dims, data }]) => [name, dtype, dims, data.constructor.name, hex(data)]);
  } catch (error) { report[path] = error.message; }
}
console.log(JSON.stringify(report));
"""


def run(folder, paths):
    (folder / "run.mjs").write_text(SCRIPT % DECODER.as_uri())
    command = [NODE, str(folder / "run.mjs"), *map(str, paths)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)


@pytest.mark.skipif(NODE is None, reason="there is no node on this machine to run JavaScript")
def test_same_bytes_names_and_shapes(tmp_path):
    rng = np.random.default_rng(0)
    cnn = models.cnn()
    books = rng.standard_normal((30, 12)).astype(np.float32)
    shared = np.take_along_axis(books, rng.integers(0, 12, (30, 200)), 1)
    cases = {
        "types": files.every_type(rng),
        "near": files.arrays_file(w=files.receptive(rng), t=np.ascontiguousarray(files.receptive(rng).T)),
        "sparse": files.arrays_file(a=files.pruned(rng, (60, 80), 0.03, 7), b=files.pruned(rng, (60, 80), 0.03, None)),
        "scaled": files.arrays_file(w=np.rint(rng.laplace(0, 9, (64, 90)) * rng.random((64, 1))).astype(np.int8)),
        "rows": files.arrays_file(w=shared, t=np.ascontiguousarray(shared.T), s=np.where(shared > 0.2, shared, 0)),
        "cnn": cnn.SerializeToString(),
    }
    expected = {}
    for name, model in cases.items():
        for coder in ("rans", "huffman"):
            path = tmp_path / f"{name}-{coder}.levity"
            path.write_bytes(encode(model, coder=coder).data)
            expected[str(path)] = model
    report = run(tmp_path, expected)
    for path, model in expected.items():
        assert isinstance(report[path], list), report[path]
        assert Path(path + ".onnx").read_bytes() == model
    for name, dtype, dims, kind, data in report[str(tmp_path / "cnn-rans.levity")]:
        array = models.weights_of(cnn)[name]
        assert (dtype, dims, kind) == ("float32", list(array.shape), "Float32Array")
        assert bytes.fromhex(data) == array.tobytes()


@pytest.mark.skipif(NODE is None, reason="there is no node on this machine to run JavaScript")
def test_damage_is_refused(tmp_path):
    data = encode(models.cnn().SerializeToString()).data
    cases = {"cut": data[:-9], "changed": data[:-20] + bytes([data[-20] ^ 1]) + data[-19:], "other": b"\x08\x07" + data}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    report = run(tmp_path, [tmp_path / name for name in cases])
    assert all("The .levity file is damaged in its " in report[str(tmp_path / name)] for name in cases)
    assert "stream" in report[str(tmp_path / "changed")]


def test_both_have_the_same_dictionary():
    text = DECODER.read_text()
    literal = text[text.index("const DICTIONARY =") : text.index(";", text.index("const DICTIONARY ="))]
    assert base64.b64decode("".join(re.findall(r'"([^"]*)"', literal))) == DICTIONARY
