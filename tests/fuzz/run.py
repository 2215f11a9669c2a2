"""Gives thousands of damaged images, tables, archives, recipes and run folders to the package.

    python tests/fuzz/run.py --count 5000 --seed 0
    python tests/fuzz/run.py --count 500 --kinds images archives --keep defects

Every input is made from a good one by a generator of its own, seeded by ``--seed``, its kind and its number.
A defect is: an exception other than `UserError` from the Python interface; from the command line a status
other than 0, 1 and 2, a traceback, or more than one line of error (lines ``skipped:`` aside); a call that
takes more than ``--seconds`` (five times that for a folder of 300 images) or more than 2 GB; a run that
cannot be resumed any more. Inputs with defects are copied to ``--keep``. The exit status is 1 where there
were any. Needs no network; memory is watched on Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def _print_table(rows: dict[str, Any], seconds: float) -> None:
    print(f"{'kind':28} {'calls':>7} {'refused':>8} {'defects':>8} {'slowest s':>10} {'peak MB':>8}")
    for kind, row in rows.items():
        print(
            f"{kind:28} {row.calls:7} {row.refused:8} {len(row.defects):8} "
            f"{row.slowest:10.2f} {row.peak >> 20:8}  {row.slowest_name}"
        )
    inputs = sum(row.calls for kind, row in rows.items() if not kind.startswith(" "))
    calls, defects = sum(row.calls for row in rows.values()), sum(len(row.defects) for row in rows.values())
    print(f"{inputs} inputs, {calls} calls, {defects} defects, {seconds:.0f} s")


def main() -> int:
    """Run; the status is 1 where there were defects."""
    parser = argparse.ArgumentParser(description="Damaged inputs for conformer-vision")
    parser.add_argument("--count", type=int, default=5000, help="damaged inputs, over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="seed of all damage")
    parser.add_argument("--kinds", nargs="+", help="only these kinds; --count is then for them alone")
    parser.add_argument("--keep", type=Path, help="folder for inputs with defects")
    parser.add_argument("--seconds", type=float, default=60.0, help="time that one call may take")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        work = Path(name)
        os.environ |= {
            "XDG_CACHE_HOME": str(work / "cache"),
            "HF_HOME": str(work / "cache" / "huggingface"),
            "HF_DATASETS_CACHE": str(work / "cache" / "datasets"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        import cases  # after the environment is set, which libraries read when they are imported
        from watch import Harness

        unknown = set(arguments.kinds or ()) - cases.SHARES.keys()
        if unknown:
            parser.error(f"unknown kinds {', '.join(sorted(unknown))}; there are {', '.join(cases.SHARES)}")
        harness = Harness(arguments.keep, seconds=arguments.seconds)
        start = time.perf_counter()
        fuzz = cases.Fuzz(harness, work, seed=arguments.seed)
        fuzz.run(cases.shares(arguments.count, arguments.kinds))
        _print_table(harness.rows, time.perf_counter() - start)
    return 1 if any(row.defects for row in harness.rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
