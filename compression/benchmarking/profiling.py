"""Where a model's time goes, by operator and by node, as the runtime's own profiler writes it down."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compression.benchmarking.subject import Subject
from compression.errors import StepFailed
from compression.fresh_process import Array
from compression.result import NodeTime, OperatorTime, Profile
from compression.runtime import DoesNotRun, Model

_MOST_NODES = 20
_SUFFIX = "_kernel_time"


def profile(subject: Subject, path: Path, sample: Mapping[str, Array], folder: Path) -> Profile:
    """Run a model under the profiler, once more than asked: the first run is dropped.

    Args:
        subject: Under whose conditions, and with how many `profile_runs`, at least one.
        path: The model, one of the subject's.
        sample: What to run it on.
        folder: For the profiler's file, which is removed again.

    Raises:
        StepFailed: `benchmark_failed` when the model does not run.
    """
    try:
        with subject.cores() as cores:
            prefix = folder / "profile"
            model = Model(path, cores.threads, cores.of(0), provider=subject.provider, profile=prefix)
            cores.pin(0)
            for _ in range(subject.spec.profile_runs + 1):
                model.run(sample)
    except DoesNotRun as error:
        raise StepFailed("benchmark_failed", f"'{path.name}' does not run under the profiler: {error}") from None
    written = model.end_profile()
    events = json.loads(written.read_bytes())
    written.unlink()
    return summarize(events)


def summarize(events: Iterable[Mapping[str, Any]]) -> Profile:
    """The profile of all runs but the first, from the events that the runtime wrote (times in microseconds).

    A node's time is its median over runs. What contains other nodes, such as a loop, has their time in its own too.
    """
    operators: dict[str, str] = {}
    runs: list[Counter[str]] = []
    current: Counter[str] = Counter()
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            node = name.removesuffix(_SUFFIX)
            operators[node] = str(event.get("args", {}).get("op_name", ""))
            current[node] += event["dur"]
        elif name == "model_run":  # written when the run is over
            runs.append(current)
            current = Counter()
    runs = runs[1:]
    nodes = {node: statistics.median(run[node] for run in runs) / 1e6 for node in operators} if runs else {}
    total = sum(nodes.values())
    by_operator: defaultdict[str, list[float]] = defaultdict(list)
    for node, seconds in nodes.items():
        by_operator[operators[node]].append(seconds)

    def share(seconds: float) -> float:
        return seconds / total if total else 0.0

    return Profile(
        runs=len(runs),
        seconds=total,
        operators=tuple(
            OperatorTime(operator=operator, nodes=len(times), seconds=sum(times), share=share(sum(times)))
            for operator, times in sorted(by_operator.items(), key=lambda item: (-sum(item[1]), item[0]))
        ),
        nodes=tuple(
            NodeTime(node=node, operator=operators[node], seconds=seconds, share=share(seconds))
            for node, seconds in sorted(nodes.items(), key=lambda item: (-item[1], item[0]))[:_MOST_NODES]
        ),
    )
