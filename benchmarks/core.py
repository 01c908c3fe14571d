"""Ingest, fit and extrapolate beside reading the same bytes: ratios within one run on one machine.

    python -m benchmarks.core --model 1.5b --scale 0.1 --scratch /scratch

Each figure is the median of ``--repeats`` rounds, cold (the files have left the page cache), and is divided by
what it is compared with in the same round, so that a noisy disk slows both.
"""

import shutil
from pathlib import Path
from statistics import median

from benchmarks.command import Settings, main_of
from benchmarks.measure import (
    cat_cold,
    ckptlin,
    copy_cold,
    drop_cache,
    read_cold,
    run_measured,
    weight_files,
)
from benchmarks.report import Figure, Section
from benchmarks.scratch import num_params
from ckptlin.info import info
from ckptlin.store.store import TrajectoryStore

__all__ = ["core_figures"]


def core_figures(settings: Settings) -> Section:
    """Measure size, times and peaks on one synthetic run per rate of change."""
    scratch = settings.scratch
    scratch.compile_kernels()
    arch = scratch.largest(settings.model, settings.scale)
    store = scratch.root / "store"
    run = scratch.run(arch, changed=0.4)
    run_measured(ckptlin("ingest", str(run), str(store)))
    figures = [_ratio_figure(store, "40% changed", 3.0)]
    run = scratch.run(arch, changed=0.2)
    times = _timed(run, settings.repeats)
    figures = [_ratio_figure(store, "20% changed", 4.0), *figures, _archive_figure(run), *times]
    shutil.rmtree(store)
    title = f"Core path, cold: {num_params(arch):,} parameters in bfloat16, 14 checkpoints"
    return Section(
        title, figures, ["ingest, fit, extrapolate and cp include syncing what they wrote to the disk"]
    )


def _ratio_figure(store: Path, name: str, bar: float) -> Figure:
    found = info(TrajectoryStore(store))
    return Figure(f"raw / store bytes, {name}", found.raw_bytes / found.stored_bytes, bar, at_least=True)


def _archive_figure(run: Path) -> Figure:
    name, bar, archive = "20% changed, --archive", 7.5, run.with_name("archive")
    measured = run_measured(ckptlin("ingest", "--archive", str(run), str(archive)), check=False)
    if measured.exit_status:
        return Figure(f"raw / store bytes, {name}", None, bar, at_least=True, note=measured.error)
    figure = _ratio_figure(archive, name, bar)
    shutil.rmtree(archive)
    return figure


def _timed(run: Path, repeats: int) -> list[Figure]:
    store, out = run.with_name("store"), run.with_name("out")
    raw_bytes = sum(Path(file).stat().st_size for file in weight_files(run))
    times: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}

    def note(name: str, elapsed_s: float) -> None:
        times.setdefault(name, []).append(elapsed_s)

    def timed(name: str, *arguments: str, sync: Path | None = None) -> None:
        measured = run_measured(ckptlin(*arguments), sync=sync)
        note(name, measured.elapsed_s)
        peaks[name] = max(peaks.get(name, 0), measured.peak_bytes)

    for _ in range(repeats):
        note("cat", cat_cold(run))
        shutil.rmtree(store, ignore_errors=True)
        drop_cache(run)
        timed("ingest", "ingest", str(run), str(store), sync=store)
        note("read store", read_cold(store))
        drop_cache(store)
        timed("fit", "fit", str(store), sync=store)
        drop_cache(run)
        timed("fit of the run", "fit", str(run))
        timed("fit of the run, warm", "fit", str(run))
        note("cp", copy_cold(run / "checkpoint-1300", out))
        drop_cache(store)
        timed(
            "extrapolate",
            "extrapolate",
            str(store),
            "--step",
            "2000",
            "--method",
            "ols",
            "--out",
            str(out),
            sync=out,
        )
        shutil.rmtree(out)
    seconds = {name: median(values) for name, values in times.items()}

    def ratio(name: str, *against: str) -> float:
        rounds = zip(times[name], *(times[a] for a in against), strict=True)
        return median(t / sum(others) for t, *others in rounds)

    warm = raw_bytes / seconds["fit of the run, warm"] / 1e9
    return [
        Figure("cat", raw_bytes / seconds["cat"] / 1e9, unit="GB/s"),
        Figure("ingest / cat", ratio("ingest", "cat"), 1.4),
        Figure("fit / cat", ratio("fit", "cat"), 0.7, note="moonshot: 0.5"),
        Figure("extrapolate / (cp + reading the store)", ratio("extrapolate", "cp", "read store"), 1.3),
        Figure("fit of the run / cat", ratio("fit of the run", "cat"), 1.15),
        Figure("fit of the run, warm", warm, 3.0, at_least=True, unit="GB/s"),
        *(Figure(f"time of {name}", elapsed_s, unit="s") for name, elapsed_s in seconds.items()),
        *(Figure(f"peak of {name}", peak / 2**20, 1536, unit="MiB") for name, peak in peaks.items()),
    ]


def main() -> None:
    """Measure, print and save."""
    main_of({"core": core_figures}, __doc__)


if __name__ == "__main__":
    main()
