"""Peak memory of every command that reads weights, each in a process of its own.

    python -m benchmarks.memory --model 0.5b --scale 1 --scratch /scratch

makes the synthetic run there (13.8 GB for 0.5b), measures at the default budget and with ``--memory 512MB``,
and removes everything. The peak is the process's resident memory as the kernel counts it, files that it maps
included.
"""

import shutil

from benchmarks.command import Settings, main_of
from benchmarks.measure import ckptlin, core_commands, run_measured
from benchmarks.report import Figure, Section
from benchmarks.scratch import num_params

__all__ = ["memory_figures"]


def memory_figures(settings: Settings) -> Section:
    """Measure the peak of each command at two budgets."""
    scratch = settings.scratch
    scratch.compile_kernels()
    arch = scratch.largest(settings.model, settings.scale)
    path = scratch.run(arch)
    run, store, out = str(path), str(path.with_name("store")), str(path.with_name("out"))
    predict = ["--step", "2000", "--out", out, "--overwrite"]
    commands = {
        **core_commands(run, store, out),
        "extrapolate the run": ["extrapolate", run, *predict],
        "export": ["export", store, "--step", "1300", "--out", out, "--overwrite"],
        "verify": ["verify", store],
    }
    figures = []
    for label, budget, bar in (("default", [], 1536), ("512MB", ["--memory", "512MB"], 700)):
        shutil.rmtree(store, ignore_errors=True)
        for name, arguments in commands.items():
            measured = run_measured(ckptlin(*arguments, *budget), check=False)
            figures.append(
                Figure(
                    f"{name}, {label}",
                    None if measured.exit_status else measured.peak_bytes / 2**20,
                    bar,
                    unit="MiB",
                    note=measured.error or f"{measured.elapsed_s:.1f} s",
                )
            )
    shutil.rmtree(store)
    shutil.rmtree(out)
    return Section(f"Peak memory: {num_params(arch):,} parameters in bfloat16, 14 checkpoints", figures)


def main() -> None:
    """Measure, print and save."""
    main_of({"memory": memory_figures}, __doc__)


if __name__ == "__main__":
    main()
