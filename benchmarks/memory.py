"""Peak memory of ingest, fit and extrapolate, each in a process of its own.

    python -m benchmarks.memory --model 0.5b --checkpoints 14 --scratch /scratch

makes the synthetic run there (13.8 GB for 0.5b), measures, and removes everything.  The peak is ``ru_maxrss``
of the command ``ckptlin``, as the kernel counts it.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import ckptlin, run_measured
from benchmarks.synthetic import MODELS, make_run, tensor_specs

_BAR_BYTES = 3 << 29  # 1.5 GiB


def main() -> None:
    """Parse the command line, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="0.5b")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--checkpoints", type=int, default=14)
    parser.add_argument("--memory", help="passed on to ckptlin, such as 512MB")
    parser.add_argument("--scratch", type=Path, help="directory for the run; default the system's")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    arch = MODELS[args.model].scaled(args.scale) if args.scale != 1.0 else MODELS[args.model]
    num_params = sum(t.num_params for t in tensor_specs(arch))
    scratch = Path(tempfile.mkdtemp(prefix="ckptlin-bench-", dir=args.scratch))
    budget = ["--memory", args.memory] if args.memory else []
    figures = {}
    try:
        make_run(scratch / "run", arch, checkpoints=args.checkpoints)
        run, store, out = (str(scratch / name) for name in ("run", "store", "out"))
        print(
            f"{args.checkpoints} bfloat16 checkpoints of {num_params:,} parameters, "
            f"--memory {args.memory or 'default'}; {os.cpu_count()} processors, "
            f"Python {platform.python_version()}"
        )
        predict = ["extrapolate", store, "--step", "2000", "--out", out]
        for name, arguments in {
            "ingest": ["ingest", run, store],
            "fit": ["fit", store],
            "extrapolate": predict,
            "extrapolate, gated": [*predict, "--overwrite", "--min-r2", "0.5"],
            "fit of the run": ["fit", run],
        }.items():
            measured = run_measured(ckptlin(*arguments, *budget))
            figures[name] = asdict(measured)
            verdict = "ok" if measured.peak_bytes <= _BAR_BYTES else "over 1.5 GiB"
            peak_mib = measured.peak_bytes / 2**20
            print(f"{name:<20} {measured.elapsed_s:7.1f} s  peak {peak_mib:7.0f} MiB  {verdict}")
    finally:
        shutil.rmtree(scratch)
    if args.json:
        args.json.write_text(json.dumps({"params": num_params, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
