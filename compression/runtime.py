"""Models in ONNX Runtime, all under the same conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from compression.providers import RUNTIME_NAMES, Provider

Array = npt.NDArray[Any]
Outputs = list[Any]


class DoesNotRun(Exception):
    """The runtime cannot load a file or run it on given inputs; the message says why."""


class Model:
    """A file loaded and ready to run.

    Args:
        path: The file.
        threads: Intra-operator threads; 0 lets the runtime choose.
        cores: One for each thread, to pin the runtime's own threads to all but the first, which is the caller's.
        provider: What runs it; what that cannot run falls to the CPU.
        mapped: Leave weights that lie beside the graph there, instead of packing copies of them for speed.
        profile: Have the runtime write down how long each node takes, into a file whose name begins like this.

    Raises:
        DoesNotRun: The runtime refuses the file.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        cores: Sequence[int] = (),
        *,
        provider: Provider = "cpu",
        mapped: bool = False,
        profile: Path | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(cores) or threads
        if len(cores) > 1:
            # The runtime counts logical processors from 1.
            pinned = ";".join(str(core + 1) for core in cores[1:])
            options.add_session_config_entry("session.intra_op_thread_affinities", pinned)
        options.log_severity_level = 3
        if mapped:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        # Idle threads of one model would otherwise spin on, and take the cores from the model whose turn it is.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = start(str(path), provider, options)
        self._dtypes = {node.name: numpy_dtype(node.type) for node in self._session.get_inputs()}

    def feeds(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name, in this model's element types: half precision may have changed them.

        A single array goes to a single input whatever the two are called.
        """
        if len(arrays) == 1 and len(self._dtypes) == 1:
            arrays = dict(zip(self._dtypes, arrays.values(), strict=True))
        return {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in self._dtypes.items()}

    def run(self, arrays: Mapping[str, Array]) -> Outputs:
        """All outputs, in the model's order.

        Raises:
            DoesNotRun: The runtime stops with an error.
        """
        with _refusals():
            outputs: Outputs = self._session.run(None, self.feeds(arrays))
        return outputs

    def tensors(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; those that are no tensors are left out.

        Raises:
            DoesNotRun: The runtime stops with an error.
        """
        named = zip(self._session.get_outputs(), self.run(arrays), strict=True)
        return {node.name: value for node, value in named if isinstance(value, np.ndarray)}

    def end_profile(self) -> Path:
        """The file with what was written down."""
        return Path(self._session.end_profiling())

    def bind(self, arrays: Mapping[str, Array]) -> Callable[[], object]:
        """A call that runs the model once on `arrays`, with nothing else in it."""
        feeds = self.feeds(arrays)
        run = self._session.run

        def call() -> object:
            return run(None, feeds)

        return call


def start(
    model: str | bytes, provider: Provider, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """A session on the provider and no other.

    Args:
        model: Path or content.
        provider: What is to run it.
        options: Of the session.

    Raises:
        DoesNotRun: The runtime refuses the model, or would run it on the CPU instead.
    """
    names = RUNTIME_NAMES[provider]
    with _refusals():
        if provider != "cpu":
            # Libraries that came as packages are found only by whoever knows where they lie.
            onnxruntime.preload_dlls()
        session = onnxruntime.InferenceSession(model, options, providers=list(names))
    if names[0] not in session.get_providers():
        raise DoesNotRun(f"the runtime could not start its provider '{provider}'")
    return session


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The runtime's exceptions have no base class of their own.
        raise DoesNotRun(str(error)[:500]) from error


def numpy_dtype(onnx_type: str) -> np.dtype[Any] | None:
    """NumPy's element type for the runtime's, such as `tensor(float16)`; None where it is not known."""
    element = onnx_type.removeprefix("tensor(").removesuffix(")")
    element = {"float": "float32", "double": "float64"}.get(element, element)
    try:
        return np.dtype(element)
    except TypeError:
        return None
