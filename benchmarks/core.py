"""Ingest, fit and extrapolate beside reading the same bytes: ratios within one run on one machine.

    python -m benchmarks.core --model 1.5b --scale 0.1 --scratch /scratch

Each figure is the median of ``--repeats`` runs, cold (the files have left the page cache), and is divided by
what it is compared with in the same round, so that a noisy disk slows both.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure import cat_cold, ckptlin, copy_cold, drop_cache, read_cold, run_measured
from benchmarks.report import Figure, print_figures, save_figures
from benchmarks.synthetic import MODELS, make_run, tensor_specs
from ckptlin.info import info
from ckptlin.store.store import TrajectoryStore

__all__ = ["core_figures"]


def core_figures(scratch: Path, model: str, scale: float, repeats: int) -> list[Figure]:
    """Measure everything on one synthetic run per rate of change; leaves nothing behind."""
    arch = MODELS[model].scaled(scale) if scale != 1.0 else MODELS[model]
    figures: list[Figure] = []
    for changed, ratio_bar in ((0.2, 4.0), (0.4, 3.0)):
        root = Path(tempfile.mkdtemp(prefix="ckptlin-bench-", dir=scratch))
        try:
            make_run(root / "run", arch, changed=changed)
            if changed == 0.2:
                figures += _timed(root, repeats)
            else:
                run_measured(ckptlin("ingest", str(root / "run"), str(root / "store")))
            found = info(TrajectoryStore(root / "store"))
            ratio = found.raw_bytes / found.stored_bytes
            figures.append(Figure(f"raw / store bytes, {changed:.0%} changed", ratio, ratio_bar, at_least=True))
        finally:
            shutil.rmtree(root)
    return figures


def _timed(root: Path, repeats: int) -> list[Figure]:
    run, store, out = root / "run", root / "store", root / "out"
    raw_bytes = sum(f.stat().st_size for f in run.rglob("*.safetensors"))
    times: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}

    def note(name: str, elapsed_s: float) -> None:
        times.setdefault(name, []).append(elapsed_s)

    def timed(name: str, *arguments: str) -> None:
        measured = run_measured(ckptlin(*arguments))
        note(name, measured.elapsed_s)
        peaks[name] = max(peaks.get(name, 0), measured.peak_bytes)

    for _ in range(repeats):
        note("cat", cat_cold(run))
        shutil.rmtree(store, ignore_errors=True)
        drop_cache(run)
        timed("ingest", "ingest", str(run), str(store))
        note("read store", read_cold(store))
        drop_cache(store)
        timed("fit", "fit", str(store))
        drop_cache(run)
        timed("fit of the run", "fit", str(run))
        timed("fit of the run, warm", "fit", str(run))
        note("cp", copy_cold(run / "checkpoint-1300", out))
        drop_cache(store)
        timed("extrapolate", "extrapolate", str(store), "--step", "2000", "--out", str(out), "--overwrite")
        shutil.rmtree(out)
    seconds = {name: median(values) for name, values in times.items()}

    def ratio(name: str, *against: str) -> float:
        rounds = zip(times[name], *(times[a] for a in against), strict=True)
        return median(t / sum(others) for t, *others in rounds)

    return [
        Figure("cat, cold", raw_bytes / seconds["cat"] / 1e9, None, unit="GB/s"),
        Figure("ingest / cat", ratio("ingest", "cat"), 1.4),
        Figure("fit / cat", ratio("fit", "cat"), 0.7),
        Figure("fit of the run / cat", ratio("fit of the run", "cat"), 1.15),
        Figure(
            "fit of the run, warm",
            raw_bytes / seconds["fit of the run, warm"] / 1e9,
            3.0,
            at_least=True,
            unit="GB/s",
        ),
        Figure("extrapolate / (cp + reading the store)", ratio("extrapolate", "cp", "read store"), 1.3),
        *(Figure(f"peak of {name}", peak / 2**20, 1536, unit="MiB") for name, peak in peaks.items()),
    ]


def main() -> None:
    """Parse the command line, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="1.5b")
    parser.add_argument("--scale", type=float, default=0.1, help="share of the layers and the vocabulary")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="directory for the runs; default the system's")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    arch = MODELS[args.model].scaled(args.scale) if args.scale != 1.0 else MODELS[args.model]
    title = f"{sum(t.num_params for t in tensor_specs(arch)):,} parameters in bfloat16, 14 checkpoints"
    figures = core_figures(args.scratch, args.model, args.scale, args.repeats)
    print_figures(title, figures)
    if args.json:
        save_figures(args.json, title, figures)


if __name__ == "__main__":
    main()
