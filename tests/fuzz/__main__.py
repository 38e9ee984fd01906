"""`make fuzz`: damaged files of every format to the functions that read uploads, and a table of what came of them.

python -m tests.fuzz [--files 100000] [--seed 0] [--kind onnx] [--only 1234]
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz import seeds
from tests.fuzz.formats import KINDS
from tests.fuzz.harness import ACCEPTED, Tally, fuzz

SHARES = {"onnx": 0.4, "levity": 0.08, "safetensors": 0.16, "npz": 0.16, "zip": 0.12, "weights": 0.03, "pt": 0.05}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000, help="how many, over all formats")
    parser.add_argument("--seed", type=int, default=0, help="other files for another seed")
    parser.add_argument("--hang-seconds", type=float, default=120, help="a file that takes longer is a failure")
    parser.add_argument("--kind", choices=[*KINDS], help="this format alone")
    parser.add_argument("--only", type=int, help="this file alone")
    options = parser.parse_args()
    onnx_seeds = seeds.onnx_files() + seeds.node_tests()
    tallies: list[Tally] = []
    for kind in [options.kind] if options.kind else KINDS:
        count = options.files if options.kind else round(options.files * SHARES[kind])
        files = range(count) if options.only is None else range(options.only, options.only + 1)
        started = time.monotonic()
        tally = fuzz(kind, files, seed=options.seed, onnx_seeds=onnx_seeds, hang_seconds=options.hang_seconds)
        tallies.append(tally)
        _print(tally, time.monotonic() - started)
    total = sum(tally.files for tally in tallies)
    bad = [entry for tally in tallies for entry in tally.bad]
    sys.stdout.write(f"\n{total} files, {len(bad)} not answered as they should be\n")
    for entry in bad:
        sys.stdout.write(f"  {entry}\n")
    return 1 if bad else 0


def _print(tally: Tally, seconds: float) -> None:
    accepted = tally.outcomes[ACCEPTED]
    sys.stdout.write(
        f"\n{tally.kind}: {tally.files} files, {tally.files - accepted} refused, {accepted} accepted; "
        f"{seconds:.0f} s, slowest {tally.slowest[0]:.2f} s (number {tally.slowest[1]}), "
        f"peak {tally.peak_kib / 1024:.0f} MiB, {tally.restarts} children died\n"
    )
    for code, count in tally.outcomes.most_common():
        sys.stdout.write(f"  {count:7d} {code}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
