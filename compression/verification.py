"""The last check before a file is handed out: a process that has never seen it loads and runs it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from compression.errors import ModelRejected, StepFailed
from compression.fresh_process import Array, FreshProcess, ProcessDied, load_arrays, save_arrays, serve
from compression.runtime import DoesNotRun, Model

_TOLERANCE = 1e-5
_READY_SECONDS = 60.0


class Verifier:
    """A process that is started at once and later asked whether a file gives the expected outputs.

    Args:
        workdir: An existing folder; arrays pass through a temporary folder inside it.
        threads: Intra-operator threads; 0 lets the runtime choose.
        timeout: Seconds that loading and running the file may take.
    """

    def __init__(self, workdir: Path, *, threads: int = 0, timeout: float = 600.0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="verification-", dir=workdir)).resolve()
        self._threads = threads
        self._timeout = timeout
        try:
            self._process = FreshProcess("compression.verification", self._folder)
        except OSError:
            shutil.rmtree(self._folder)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        """Wait until the process has imported what it needs.

        Raises:
            StepFailed: `verification_failed`.
        """
        try:
            self._process.ready(_READY_SECONDS)
        except (ProcessDied, TimeoutError) as error:
            raise _failed(f"The process that verifies results did not start: it {_reason(error)}.") from None

    def verify(
        self,
        model_path: Path,
        inputs: Mapping[str, Array],
        expected: Mapping[str, Array],
        *,
        mapped: bool = False,
    ) -> None:
        """Have the file loaded anew and run, and its outputs compared.

        An output may differ by 1e-5 of its range, zero included in the range, or by twice the resolution of its
        element type where that is coarser.

        Args:
            model_path: The file.
            inputs: What to feed, by input name.
            expected: What must come out, by output name.
            mapped: Leave weights that lie beside the graph in their files.

        Raises:
            StepFailed: `verification_failed`, naming the output and its largest difference.
        """
        self.ready()
        request = self._request(model_path, inputs, mapped=mapped)
        request["expected"] = save_arrays(self._folder / "expected.npz", expected)
        self._ask(request, f"loaded and ran '{model_path.name}'")

    def outputs(self, model_path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Have a file loaded and run; its outputs by name, as of `reference_outputs`.

        Weights that lie beside the graph stay there, mapped into memory.

        Raises:
            StepFailed: `verification_failed`.
        """
        self.ready()
        request = self._request(model_path, inputs, mapped=True)
        answer = self._ask(request, f"loaded and ran '{model_path.name}'")
        return load_arrays(self._folder / "outputs.npz", answer["outputs"])

    def verify_coded(self, coded: Path, model_path: Path) -> None:
        """Have a `.levity` file decoded, and what comes out compared byte for byte.

        Args:
            coded: The file.
            model_path: The ONNX file that it must give.

        Raises:
            StepFailed: `verification_failed`.
        """
        self.ready()
        request = {"coded": str(coded.resolve()), "model": str(model_path.resolve())}
        self._ask(request, f"decoded '{coded.name}'")

    def _request(self, model_path: Path, inputs: Mapping[str, Array], *, mapped: bool) -> dict[str, Any]:
        return {
            "model": str(model_path.resolve()),
            "threads": self._threads,
            "inputs": save_arrays(self._folder / "inputs.npz", inputs),
            "folder": str(self._folder),
            "mapped": mapped,
        }

    def _ask(self, request: dict[str, Any], what: str) -> dict[str, Any]:
        try:
            answer = self._process.ask(request, self._timeout)
        except (ProcessDied, TimeoutError) as error:
            raise _failed(f"A fresh process that {what} {_reason(error)}.") from None
        if answer["problem"] is not None:
            raise _failed(answer["problem"])
        return answer


def reference_outputs(
    model_path: Path, inputs: Mapping[str, Array], threads: int = 0, *, mapped: bool = False
) -> dict[str, Array]:
    """What a file gives for `inputs`, by output name; outputs that are no tensors are left out.

    Args:
        model_path: The file.
        inputs: What to feed, by input name.
        threads: Intra-operator threads; 0 lets the runtime choose.
        mapped: Leave weights that lie beside the graph in their files.

    Raises:
        StepFailed: `verification_failed` when the runtime refuses the file or stops with an error.
    """
    try:
        outputs = Model(model_path, threads, mapped=mapped).tensors(inputs)
    except DoesNotRun as error:
        raise _failed(f"The runtime refuses '{model_path.name}': {error}") from None
    # Strings come as Python objects, which are never written to a file.
    return {name: value.astype(str) if value.dtype == object else value for name, value in outputs.items()}


def difference(name: str, found: Array, expected: Array) -> str | None:
    """Why `found` is not what is expected of the output `name`, in words; None when it is."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return (
            f"output '{name}' is {found.dtype} {list(found.shape)} "
            f"and should be {expected.dtype} {list(expected.shape)}."
        )
    if expected.dtype.kind not in "fiub":
        return None if np.array_equal(found, expected) else f"output '{name}' differs."
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True) or not np.isfinite(ours[finite]).all():
        return f"output '{name}' has NaN or infinity in other places than expected."
    ours, theirs = ours[finite], theirs[finite]
    largest = float(np.abs(ours - theirs).max(initial=0))
    spread = float(theirs.max(initial=0) - theirs.min(initial=0))
    resolution = 2 * float(np.finfo(expected.dtype).eps) if expected.dtype.kind == "f" else 0.0
    if largest <= max(_TOLERANCE, resolution) * spread:
        return None
    return f"output '{name}' differs by up to {largest:.3g} over a range of {spread:.3g}."


def _reason(error: ProcessDied | TimeoutError) -> str:
    return str(error) if isinstance(error, ProcessDied) else f"gave {error}"


def _failed(message: str) -> StepFailed:
    return StepFailed("verification_failed", message)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    return _decoded(request) if "coded" in request else _run(request)


def _decoded(request: dict[str, Any]) -> dict[str, Any]:
    # Most runs verify no such file, and their process should be ready at once.
    from compression.coding.decode import decode  # noqa: PLC0415

    path = Path(request["coded"])
    try:
        same = decode(path.read_bytes()) == Path(request["model"]).read_bytes()
    except ModelRejected as error:
        return {"problem": error.message}
    return {"problem": None if same else f"'{path.name}' decodes to another file."}


def _run(request: dict[str, Any]) -> dict[str, Any]:
    folder = Path(request["folder"])
    inputs = load_arrays(folder / "inputs.npz", request["inputs"])
    path = Path(request["model"])
    try:
        found = reference_outputs(path, inputs, request["threads"], mapped=request["mapped"])
    except StepFailed as error:
        return {"problem": error.message}
    if "expected" not in request:
        return {"problem": None, "outputs": save_arrays(folder / "outputs.npz", found)}
    expected = load_arrays(folder / "expected.npz", request["expected"])
    for name, value in expected.items():
        problem = difference(name, found[name], value) if name in found else f"there is no output '{name}'."
        if problem is not None:
            return {"problem": f"'{path.name}', loaded anew: {problem}"}
    return {"problem": None}


if __name__ == "__main__":
    serve(_answer)
