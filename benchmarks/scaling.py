"""What a checkpoint, a parameter and a second worker cost as a run grows.

    python -m benchmarks.scaling --scale 1 --scratch /scratch

Checkpoints: one run of 192, of which the first 4, 16 and 48 are runs of their own (links). Parameters: models
of 0.05, 0.5 and 1.5 B times ``--scale``, 14 checkpoints each. Both cold. Workers: one and two of them on a
run in the page cache. Each command takes about a second to start, which small sizes would count as cost: that
start, measured on a run of a few thousand weights, is subtracted for the verdicts, and the raw figures stand
beside.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.command import Settings, main_of
from benchmarks.measure import ckptlin, drop_cache, run_measured, weight_files
from benchmarks.report import Figure, Section
from benchmarks.scratch import num_params
from benchmarks.synthetic import MODELS

__all__ = ["checkpoint_figures", "parameter_figures", "worker_figures"]

_CHECKPOINTS = (4, 16, 48, 192)
_COMMANDS = ("ingest", "fit", "extrapolate")
_FLAT, _SPEEDUP, _MAX_PEAK_MIB = 1.15, 1.7, 1536
_TOO_SMALL = "too small to judge: starting takes more than half of the time"
_STARTED = "verdicts are on times from which the time that the same command takes on a tiny run is subtracted"


def checkpoint_figures(settings: Settings) -> Section:
    """Measure the cost per checkpoint from 4 to 192 of them; the verdict is from 16 on."""
    scratch, last = settings.scratch, _CHECKPOINTS[-1]
    start_s = scratch.start_s
    model, scale = _sized(max(0.1 * settings.scale, min(0.02, 0.2 * settings.scale)) * 1e9)
    arch = scratch.largest(model, scale, last)
    whole = scratch.run(arch, checkpoints=last)
    costs: dict[int, dict[str, float]] = {}
    for count in _CHECKPOINTS:
        part = whole.with_name("part")
        part.mkdir()
        for i in range(count):
            checkpoint = whole / f"checkpoint-{i * 100}"
            (part / checkpoint.name).symlink_to(checkpoint)
        costs[count], _ = _cold(part, settings.repeats)
        shutil.rmtree(part)
    figures = []
    for name in _COMMANDS:
        figures += _flatness(
            name, {f"T={n}": (costs[n][name], n) for n in _CHECKPOINTS}, start_s[name], 1e3, "ms", ("T=4",)
        )
    title = f"Cost per checkpoint, cold: {num_params(arch):,} parameters, {_CHECKPOINTS} checkpoints"
    return Section(title, figures, [_STARTED, "flat: largest / smallest from 16 to 192 checkpoints"])


def parameter_figures(settings: Settings) -> Section:
    """Measure the cost per parameter from 0.05 to 1.5 B of them, times the scale."""
    scratch, scale = settings.scratch, settings.scale
    start_s = scratch.start_s
    times: dict[int, dict[str, float]] = {}
    peaks: dict[int, dict[str, int]] = {}
    # At a small scale the smallest would be all start.
    for billions in (max(0.05 * scale, min(0.03, 0.3 * scale)), 0.5 * scale, 1.5 * scale):
        arch = scratch.largest(*_sized(billions * 1e9))
        if num_params(arch) not in times:
            times[num_params(arch)], peaks[num_params(arch)] = _cold(scratch.run(arch), settings.repeats)
    figures = []
    for name in _COMMANDS:
        measured = {f"{n / 1e9:.3g} B": (times[n][name], n / 1e9) for n in times}
        figures += _flatness(name, measured, start_s[name], 1.0, "s/B", ())
        for n, of_run in peaks.items():
            label = f"peak of {name}, {n / 1e9:.3g} B"
            figures.append(Figure(label, of_run[name] / 2**20, _MAX_PEAK_MIB, unit="MiB"))
    title = f"Cost per parameter, cold: {', '.join(f'{n:,}' for n in times)} parameters, 14 checkpoints"
    return Section(title, figures, [_STARTED, "flat: largest / smallest"])


def worker_figures(settings: Settings) -> Section:
    """Measure what a second worker gains where the files are in the page cache."""
    scratch = settings.scratch
    start_s = scratch.start_s
    arch = scratch.largest(settings.model, min(settings.scale, 0.1))
    run = scratch.run(arch)
    store, out = run.with_name("store"), run.with_name("out")
    predict = ["extrapolate", str(store), "--method", "ols", "--step", "2000", "--out", str(out), "--overwrite"]
    commands = {
        "ingest": ["ingest", str(run), str(store)],
        "fit": ["fit", str(store), "--no-keep"],
        "fit of the run": ["fit", str(run)],
        "extrapolate": predict,
    }
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(settings.repeats):
        for name, arguments in commands.items():
            run_measured(["sh", "-c", 'cat "$@" > /dev/null', "sh", *weight_files(run)])
            for workers in (1, 2):
                if name == "ingest":
                    shutil.rmtree(store, ignore_errors=True)
                elapsed_s = run_measured(ckptlin(*arguments, "--workers", str(workers))).elapsed_s
                times.setdefault((name, workers), []).append(elapsed_s)
    shutil.rmtree(store)
    shutil.rmtree(out)
    figures = []
    for name in commands:
        one, two = (median(times[name, workers]) for workers in (1, 2))
        bar = _SPEEDUP if name.startswith("fit") else None
        net = _net(one, start_s[name]) / _net(two, start_s[name]) if two > 2 * start_s[name] else None
        why = "" if net else _TOO_SMALL
        figures.append(Figure(f"{name}, 1 -> 2 workers, less start", net, bar, True, "x", why))
        figures.append(
            Figure(f"{name}, 1 -> 2 workers, raw", one / two, unit="x", note=f"{one:.2f} -> {two:.2f} s")
        )
    title = f"Workers, warm: {num_params(arch):,} parameters, 14 checkpoints"
    return Section(
        title, figures, [_STARTED, "fit with --no-keep: ingest and extrapolate write, and wait for the disk"]
    )


def _sized(wanted: float) -> tuple[str, float]:
    """Return the smallest model with at least so many parameters, or the largest, and the share of it."""
    sizes = sorted((num_params(arch), name) for name, arch in MODELS.items())
    size, name = next(((size, name) for size, name in sizes if size >= 0.95 * wanted), sizes[-1])
    return name, min(1.0, wanted / size) if wanted < 0.95 * size else 1.0


def _cold(run: Path, repeats: int) -> tuple[dict[str, float], dict[str, int]]:
    """Time each command on a run, cold and with a sync, in seconds, and take its peak in bytes.

    What it wrote is removed.
    """
    store, out = run.with_name("store"), run.with_name("out")
    times: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    peaks = dict.fromkeys(_COMMANDS, 0)

    def timed(name: str, source: Path, wrote: Path, *arguments: str) -> None:
        drop_cache(source)
        measured = run_measured(ckptlin(name, str(source), *arguments), sync=wrote)
        times[name].append(measured.elapsed_s)
        peaks[name] = max(peaks[name], measured.peak_bytes)

    while len(times["ingest"]) < repeats or (len(times["ingest"]) < 2 * repeats and times["ingest"][-1] < 4):
        timed("ingest", run, store, str(store))
        # Gram matrices are not flat: each checkpoint is multiplied with all others.
        timed("fit", store, store, "--no-gram")
        timed("extrapolate", store, out, "--method", "ols", "--step", "2000", "--out", str(out))
        shutil.rmtree(store)
        shutil.rmtree(out)
    return {name: median(values) for name, values in times.items()}, peaks


def _net(elapsed_s: float, start_s: float) -> float:
    return max(elapsed_s - start_s, 1e-3)


def _flatness(
    name: str,
    measured: dict[str, tuple[float, float]],
    start_s: float,
    factor: float,
    unit: str,
    aside: Sequence[str],
) -> list[Figure]:
    """Return the spread of the cost of one command, and the costs; ``measured`` has seconds and divisors."""
    net = {label: factor * _net(elapsed_s, start_s) / by for label, (elapsed_s, by) in measured.items()}
    judged = [label for label in measured if label not in aside]
    if any(measured[label][0] < 2 * start_s for label in judged):
        figures = [Figure(f"{name}: flat, less start", None, _FLAT, note=_TOO_SMALL)]
    else:
        costs = [net[label] for label in judged]
        figures = [Figure(f"{name}: flat, less start", max(costs) / min(costs), _FLAT)]
    for label, (elapsed_s, by) in measured.items():
        note = f"raw {factor * elapsed_s / by:.2f} {unit}; {elapsed_s:.2f} s, {start_s:.2f} s of them start"
        figures.append(Figure(f"{name}, {label}", net[label], unit=unit, note=note))
    return figures


def main() -> None:
    """Measure, print and save."""
    topics = {"checkpoints": checkpoint_figures, "parameters": parameter_figures, "workers": worker_figures}
    main_of(topics, __doc__)


if __name__ == "__main__":
    main()
