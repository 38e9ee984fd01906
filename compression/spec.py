"""What a caller can ask for. `Step` is the one list of techniques; everything else is derived from it.

Importing this module never imports torch, onnx, onnxruntime or numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, get_args

from pydantic import Discriminator, Field, Tag, field_validator

from compression._spec_base import DataRole, Spec, StepSpec
from compression.benchmarking.spec import BenchmarkSpec
from compression.clustering.spec import Cluster
from compression.coding.spec import Encode
from compression.distillation.spec import STUDENT_MISSING, Distill
from compression.factorization.spec import Factorize
from compression.pruning.channel_spec import PruneChannels
from compression.pruning.spec import Prune
from compression.quantization.spec import (
    Quantize,
    QuantizeAware,
    QuantizeBfloat16,
    QuantizeDynamic,
    QuantizeFloat16,
    QuantizeStatic,
    QuantizeWeightOnly,
)
from compression.training.spec import Finetune

__all__ = [
    "BenchmarkSpec",
    "Cluster",
    "Distill",
    "Encode",
    "Factorize",
    "Finetune",
    "PipelineSpec",
    "Prune",
    "PruneChannels",
    "Quantize",
    "QuantizeAware",
    "QuantizeBfloat16",
    "QuantizeDynamic",
    "QuantizeFloat16",
    "QuantizeStatic",
    "QuantizeWeightOnly",
    "Step",
    "StepSpec",
    "step_classes",
]


def _tag(value: object) -> str | None:
    """What tells the members of `Step` apart: the type, and for `quantize` the mode."""

    def field(name: str) -> object:
        return value.get(name) if isinstance(value, dict) else getattr(value, name, None)

    kind, mode = field("type"), field("mode")
    if kind == "quantize":
        return f"quantize {mode}"
    return kind if isinstance(kind, str) else None


_Member = (
    Annotated[Distill, Tag("distill")]
    | Annotated[Prune, Tag("prune")]
    | Annotated[PruneChannels, Tag("prune_channels")]
    | Annotated[Factorize, Tag("factorize")]
    | Annotated[Finetune, Tag("finetune")]
    | Annotated[Cluster, Tag("cluster")]
    | Annotated[QuantizeDynamic, Tag("quantize dynamic")]
    | Annotated[QuantizeStatic, Tag("quantize static")]
    | Annotated[QuantizeWeightOnly, Tag("quantize weight_only")]
    | Annotated[QuantizeFloat16, Tag("quantize float16")]
    | Annotated[QuantizeBfloat16, Tag("quantize bfloat16")]
    | Annotated[QuantizeAware, Tag("quantize qat")]
    | Annotated[Encode, Tag("encode")]
)


def _known_tags() -> str:
    """The tags of all members as an error message lists them: types, and the modes of `quantize`."""
    tags = [tag.tag for member in get_args(_Member) for tag in get_args(member) if isinstance(tag, Tag)]
    types = dict.fromkeys(tag.partition(" ")[0] for tag in tags)
    modes = [tag.partition(" ")[2] for tag in tags if " " in tag]
    return f"type must be {_listed(types)}; quantize needs mode {_listed(modes)}"


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


Step = Annotated[_Member, Discriminator(_tag, custom_error_type="unknown_step", custom_error_message=_known_tags())]
"""One technique. Adding one: a spec class, a function, a member above, a `case` in `dispatch`, a test."""

# What a later step would take away from an earlier one. Pruning after clustering pulls values out of their clusters,
# thinner factors have none of the zeros of the weight that they stand for, a student has nothing of its teacher's
# form, nothing that changes weights can follow quantization because the float weights are gone, and nothing at all can
# follow encoding because the coded file would be another model's.
_UNDOES: dict[str, frozenset[str]] = {
    "distill": frozenset({"prune", "prune_channels", "factorize", "cluster", "quantize", "encode"}),
    "prune": frozenset({"cluster", "quantize", "encode"}),
    "prune_channels": frozenset({"cluster", "quantize", "encode"}),
    "factorize": frozenset({"prune", "cluster", "quantize", "encode"}),
    "finetune": frozenset({"cluster", "quantize", "encode"}),
    "cluster": frozenset({"quantize", "encode"}),
    "quantize": frozenset({"encode"}),
    "encode": frozenset(),
}
_AT_MOST_ONCE = frozenset({"distill", "cluster", "quantize", "encode"})


class PipelineSpec(Spec):
    """Steps to apply to one model, in this order, and how to measure what comes out."""

    steps: tuple[Step, ...] = Field(max_length=32, json_schema_extra={"minItems": 1})
    """Techniques in the order in which they are applied."""
    benchmark: BenchmarkSpec = BenchmarkSpec()
    """How the result is measured."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random: same input, spec, seed and versions give the same bytes."""

    @field_validator("steps")
    @classmethod
    def _legal_order(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        cls.check_order(steps)
        return steps

    @staticmethod
    def check_order(steps: Sequence[Step]) -> None:
        """Raise ValueError when there is no step, or one would undo an earlier one."""
        # Not `min_length`: pydantic counts valid members only, and would call a list with one bad step empty.
        if not steps:
            msg = "name at least one step"
            raise ValueError(msg)
        for position, later in enumerate(steps):
            for earlier in steps[:position]:
                if earlier.type == later.type and later.type in _AT_MOST_ONCE:
                    msg = f"step {position}: '{later.type}' can be applied once"
                    raise ValueError(msg)
                if earlier.type in _UNDOES[later.type]:
                    msg = f"step {position}: '{later.type}' would undo '{earlier.type}'; put it before"
                    raise ValueError(msg)
                if earlier.type == "cluster" and later.type == "quantize" and later.mode == "qat":
                    msg = f"step {position}: 'quantize' in mode 'qat' trains the weights and would undo 'cluster'"
                    raise ValueError(msg)

    @property
    def data_needed(self) -> dict[DataRole, str]:
        """Datasets without which a step cannot run, each with the type of the first such step."""
        needed: dict[DataRole, str] = {}
        for step in self.steps:
            for role in sorted(step.data_needed):
                needed.setdefault(role, step.type)
        return needed

    @property
    def needs_student(self) -> bool:
        """True when a step works with a second uploaded model, the student."""
        return any(step.needs_student for step in self.steps)

    def student_problem(self, *, given: bool) -> tuple[str, str] | None:
        """Code and sentence where the steps and whether a student is given do not agree, else None."""
        if self.needs_student == given:
            return None
        return ("student_not_used", _STUDENT_NOT_USED) if given else ("student_missing", STUDENT_MISSING)


_MISSING_DATA: dict[DataRole, str] = {
    "calibration": "A '{step}' step runs samples through the model: give a calibration dataset, or choose a mode "
    "or method that needs none, such as 'dynamic'.",
    "training": "A '{step}' step learns from samples: give a training dataset.",
    "evaluation": "A '{step}' step measures accuracy: give an evaluation dataset.",
}
_STUDENT_NOT_USED = "No step works with the student; distill into it with student.kind 'model', or leave it out."


def missing_data(role: DataRole, step: str) -> str:
    """What to tell a caller who gave no dataset for a role that a step of that type needs."""
    return _MISSING_DATA[role].format(step=step)


def step_classes() -> tuple[type[StepSpec], ...]:
    """The members of `Step`, flattened, in the order in which they stand there."""

    def members(annotation: object) -> Iterator[type[StepSpec]]:
        if isinstance(annotation, type) and issubclass(annotation, StepSpec):
            yield annotation
            return
        for argument in get_args(annotation):
            yield from members(argument)

    return tuple(members(Step))
