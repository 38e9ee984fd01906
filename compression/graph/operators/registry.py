"""Which function imports which operator, by version of the operator set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from compression.graph.operators.call import OperatorCall, Value

# Returns the outputs in order; a single value stands for a single output.
Import = Callable[["OperatorCall"], "Value | Sequence[Value | None]"]
_F = TypeVar("_F", bound=Import)


class _Version(NamedTuple):
    since: int
    convert: Import


_REGISTRY: dict[tuple[str, str], list[_Version]] = {}


def operator(*names: str, since: int = 1, domain: str = "") -> Callable[[_F], _F]:
    """Register a function for operators from an operator set version on, until a later registration takes over."""

    def register(convert: _F) -> _F:
        for name in names:
            versions = _REGISTRY.setdefault((domain, name), [])
            versions.append(_Version(since, convert))
            versions.sort(key=lambda version: version.since, reverse=True)
        return convert

    return register


def find(domain: str, name: str, opset: int) -> Import | None:
    """The function that imports an operator at a version of its operator set, None where there is none."""
    versions = _REGISTRY.get(("" if domain == "ai.onnx" else domain, name), [])
    return next((version.convert for version in versions if version.since <= opset), None)
