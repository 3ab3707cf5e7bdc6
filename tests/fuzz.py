"""Hostile input by the thousand: what each kind did, as a table and as JSON.

    python tests/fuzz.py --inputs 10000 --seed 0 --json benchmarks/fuzz.json

The inputs follow from the seed alone. Nothing is asked of a network. The file is written kind by kind; where it has a
kind of the same command already, that is not run again. Exit code 1 if an input did not end as it should: taken, or
refused in one line, within bounds of time and memory.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("EXPTILT_DATA", None)

import hypothesis
import numpy
import PIL
import pyarrow
import safetensors
import torch
from hypothesis import HealthCheck, Phase, given, settings

from exptilt.provenance import commit
from exptilt.storage import read_json, write_json
from fuzzing.harness import MOST_MIB, MOST_SECONDS, Case, judge
from fuzzing.kinds import KINDS


def fuzz(name: str, count: int, seed: int) -> dict[str, Any]:
    """Judge so many inputs of a kind, and count how they ended."""
    faults: Counter[str] = Counter()
    examples: dict[str, str] = {}
    figures: dict[str, Any] = {"inputs": 0, "refused": 0, "taken": 0, "slowest_s": 0.0, "peak_mib": 0.0}

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[name][1])
    def try_one(case: Case) -> None:
        # A hang that no signal ends is told by where it hangs, and ends the whole.
        faulthandler.dump_traceback_later(3 * MOST_SECONDS, exit=True)
        outcome = judge(case)
        faulthandler.cancel_dump_traceback_later()
        figures["inputs"] += 1
        figures["refused" if outcome.refused else "taken"] += 1
        figures["peak_mib"] = max(figures["peak_mib"], round(outcome.mib, 1))
        if outcome.seconds > figures["slowest_s"]:
            figures["slowest_s"], figures["slowest"] = round(outcome.seconds, 3), case.note[:120]
        if outcome.fault:
            faults[outcome.fault] += 1
            examples.setdefault(outcome.fault, case.note[:300])

    began = time.process_time()
    try_one()
    figures |= {"seconds": round(time.process_time() - began, 1), "commit": commit()}
    figures["faults"] = [{"fault": f, "times": n, "example": examples[f]} for f, n in faults.most_common()]
    return figures


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of kinds; others are left out")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    chosen = {name: share for name, (share, _) in KINDS.items() if not args.only or any(o in name for o in args.only)}
    every = sum(share for share, _ in KINDS.values())
    command = f"python tests/fuzz.py --inputs {args.inputs} --seed {args.seed}"
    before = read_json(args.json) if args.json is not None and args.json.exists() else {}
    kinds = before["kinds"] if before.get("command") == command else {}
    for name, share in chosen.items():
        if name not in kinds:
            kinds[name] = fuzz(name, -(-args.inputs * share // every), args.seed)
            tell(name, kinds[name])
        total = total_of(kinds)
        if args.json is not None:
            versions = {m.__name__: m.__version__ for m in (hypothesis, numpy, PIL, pyarrow, safetensors, torch)}
            origin = {"command": command, "bounds": {"seconds": MOST_SECONDS, "mib": MOST_MIB}}
            origin |= {"versions": versions | {"python": platform.python_version()}}
            write_json(args.json, {**origin, "total": total, "kinds": kinds})
    print(f"{total['inputs']} inputs, {total['faults']} faults, {total['seconds']:.0f} s of processor time")
    return 1 if total["faults"] else 0


def tell(name: str, figures: dict[str, Any]) -> None:
    """Print the figures of a kind, and its faults."""
    print(
        f"{name:<45} {figures['inputs']:>6} inputs, {figures['refused']:>6} refused, {len(figures['faults']):>3} "
        f"kinds of fault, peak {figures['peak_mib']:>6.1f} MiB, slowest {figures['slowest_s']:.2f} s",
        flush=True,
    )
    for fault in figures["faults"]:
        print(f"    {fault['times']} × {fault['fault']}\n        {fault['example']}", flush=True)


def total_of(kinds: dict[str, Any]) -> dict[str, Any]:
    """The figures of all kinds together."""
    total = {key: sum(kind[key] for kind in kinds.values()) for key in ("inputs", "refused", "taken", "seconds")}
    total |= {key: max(kind[key] for kind in kinds.values()) for key in ("peak_mib", "slowest_s")}
    return total | {"faults": sum(fault["times"] for kind in kinds.values() for fault in kind["faults"])}


if __name__ == "__main__":
    sys.exit(main())
