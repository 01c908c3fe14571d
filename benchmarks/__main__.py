"""Run the benchmarks at a small scale: the kernels alone, then the core path beside reading the same bytes.

python -m benchmarks                        0.15 B parameters, 4 GB of scratch space
python -m benchmarks.core --scale 1         1.54 B parameters, 43 GB and the store
python -m benchmarks.memory                 peak memory at 0.5 B
"""

from benchmarks import core, kernel


def main() -> None:
    """Run what `make bench` runs."""
    kernel.main()
    print()
    core.main()


if __name__ == "__main__":
    main()
