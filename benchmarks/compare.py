"""ckptlin beside what a user would do today (`benchmarks.rivals`), on the same checkpoints, in the page cache.

    python -m benchmarks.compare --rival-scale 0.1 --mergekit --scratch /scratch

``fit RUN --maps none`` reads the run as its rivals do, and ``fit STORE --maps none`` a store; both also
compute what the rivals leave out: the second population with its filter, histograms and the null. Two-point
extrapolation starts from the run. Each program is a process of its own, and its time includes starting and
importing.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.command import Settings, main_of
from benchmarks.measure import Measured, ckptlin, run_measured
from benchmarks.report import Figure, Section
from benchmarks.rivals.mergekit_linear import install_mergekit, merge_command
from benchmarks.rivals.xarray_dask import write_zarr
from benchmarks.scratch import num_params
from ckptlin.memory import available_memory

__all__ = ["rival_figures"]

_STEPS, _TARGET = (300, 600), 900
_ALPHA = (_TARGET - _STEPS[0]) / (_STEPS[1] - _STEPS[0])


def rival_figures(settings: Settings) -> Section:
    """Measure ckptlin and each rival; a rival that fails is a figure that is missing, and says why."""
    scratch = settings.scratch
    scratch.compile_kernels()
    scale = min(settings.scale, 0.1) if settings.rival_scale is None else settings.rival_scale
    arch = scratch.largest("1.5b", scale, space=2.5)
    run = scratch.run(arch)
    store, out, plain = (run.with_name(name) for name in ("store", "out", "plain.zarr"))
    notes = [
        "all warm, starting and importing included; ckptlin with as many workers as there are processors",
        "the 0.1% of the script: its whole time against ckptlin's for all weights",
    ]
    raw_bytes = num_params(arch) * 2 * 14
    if (available := available_memory()) and available < 2 * raw_bytes:
        notes.append(f"{raw_bytes >> 20} MiB of checkpoints, {available >> 20} MiB of memory: not all is warm")
    run_measured(ckptlin("ingest", str(run), str(store)))
    first, second = (run / f"checkpoint-{step}" for step in _STEPS)
    figures = []

    def timed(name: str, command: Sequence[str], *reads: Path) -> Measured:
        result = _warm(command, reads, out, settings.repeats)
        seconds = None if result.exit_status else result.elapsed_s
        note = f"peak {result.peak_bytes / 2**20:.0f} MiB"
        if result.stdout.startswith("{"):
            found = json.loads(result.stdout)
            found = found["model"]["moved"] if "model" in found else found
            note += f"; {found['count']:,.0f} weights" + (
                f", mean R² {found['mean']:.4f}" if found["count"] else ""
            )
        if result.exit_status:
            why = "out of memory" if result.is_memory_failure else f"exit status {result.exit_status}"
            note = f"{why}: {result.error}; {note}"
        figures.append(Figure(f"time of {name}", seconds, unit="s", note=note))
        return result

    def faster(name: str, rival: Measured, ours: Measured, bar: float | None, note: str = "") -> None:
        value = None if rival.exit_status else rival.elapsed_s / ours.elapsed_s
        figures.append(Figure(name, value, bar, at_least=True, unit="x", note=note or rival.error))

    from_run = timed("fit of the run", ckptlin("fit", str(run), "--maps", "none", "--json", "-q"), run)
    from_store = timed("fit of the store", ckptlin("fit", str(store), "--maps", "none", "--json", "-q"), store)
    script = timed("torch lstsq on 0.1%", _python("sampled_lstsq", run), run)
    numpy = timed("NumPy memory maps", _python("numpy_memmap", run), run)
    write_zarr(run, plain)
    xarray = timed("xarray + Dask", _python("xarray_dask", plain), plain)
    shutil.rmtree(plain)
    for source, ours in (("run", from_run), ("store", from_store)):
        faster(f"fit of the {source}, all weights / torch lstsq on 0.1%", script, ours, 50)
        faster(f"fit of the {source}, weight for weight / torch lstsq", _whole(script), ours, None)
        faster(f"fit of the {source} / NumPy memory maps", numpy, ours, 10)
        faster(f"fit of the {source} / xarray + Dask", xarray, ours, 10)

    predict = ["extrapolate", str(run), "--method", "two-point", "--steps", f"{_STEPS[0]},{_STEPS[1]}"]
    predict += ["--step", str(_TARGET), "--out", str(out)]
    ours = timed("two-point extrapolation", ckptlin(*predict), first, second)
    summed = timed(
        "transformers, sum of state dicts",
        _python("transformers_sum", first, second, _ALPHA, out),
        first,
        second,
    )
    faster("two-point extrapolation / transformers", summed, ours, None)
    figures.append(_memory("two-point extrapolation / transformers, memory", ours, summed, None))
    if settings.mergekit is None:
        merged = Measured(0.0, 0, 1, error="give --mergekit")
    elif problem := install_mergekit(settings.mergekit):
        merged = Measured(0.0, 0, 1, error=problem)
    else:
        command = merge_command(settings.mergekit, first, second, _ALPHA, out)
        merged = timed("mergekit, linear", command, first, second)
    faster("two-point extrapolation / mergekit", merged, ours, 3)
    figures.append(_memory("two-point extrapolation / mergekit, memory", ours, merged, 0.25))
    shutil.rmtree(store)
    title = f"Beside what a user would run today, warm: {num_params(arch):,} parameters, 14 checkpoints"
    return Section(title, figures, notes)


def _python(rival: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.rivals.{rival}", *map(str, arguments)]


def _whole(script: Measured) -> Measured:
    """Return what the script would take for all weights at its speed."""
    return Measured(1000 * script.elapsed_s, script.peak_bytes, script.exit_status, error=script.error)


def _memory(name: str, ours: Measured, rival: Measured, bar: float | None) -> Figure:
    value = None if rival.exit_status else ours.peak_bytes / rival.peak_bytes
    return Figure(name, value, bar, note=rival.error)


def _warm(command: Sequence[str], reads: Sequence[Path], out: Path, repeats: int) -> Measured:
    """Run a command with what it reads in the page cache; return the median time and the highest peak."""
    results = []
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        for path in reads:
            run_measured(["sh", "-c", f"find '{path}' -type f -exec cat {{}} + > /dev/null"])
        results.append(run_measured(command, check=False))
        if results[-1].exit_status:
            return results[-1]
    shutil.rmtree(out, ignore_errors=True)
    last = results[-1]
    return Measured(
        median(result.elapsed_s for result in results), max(r.peak_bytes for r in results), 0, last.stdout
    )


def main() -> None:
    """Measure, print and save."""
    main_of({"rivals": rival_figures}, __doc__)


if __name__ == "__main__":
    main()
