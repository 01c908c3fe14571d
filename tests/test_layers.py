"""Imports point down the layers only, and what is heavy is imported on first use."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up.  A name imports from layers below its own; inside a package anything that makes no cycle.
LAYERS = (
    {"_version", "errors", "dtypes", "interrupts", "populations", "progress", "quiet"},
    {"segments"},
    {"ckptlin", "atomic", "directory_lock", "memory", "naming", "student_t", "trajectory", "urls", "versions"},
    {"problems"},
    {"grading"},
    {"kernels"},
    {"checkpoints", "store"},
    {"execution", "finite", "gram_matrices", "null", "selection", "source", "summary", "template"},
    {"methods", "rank_one"},
    {"block_gram", "scores"},
    {"verdict"},
    {"backtest", "ingest_plan", "block_fit", "coefficients", "extrapolate_memory", "gram_sums"},
    {"block_extrapolate", "block_ingest", "expectation", "gram", "gram_statistics", "intervals"},
    {"block_rank_one", "fit"},
    {"extrapolate_plan"},
    {"model_card"},
    {"ingest", "extrapolate", "export", "info", "verify"},
    {"report"},
    {"logits"},
    {"evaluate"},
    {"outputs"},
    {"rl"},
    {"demo"},
    {"ckptlin_cli"},
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
# `import ckptlin` and `ckptlin --help` are to take under 0.3 s; each of these is slow, or brings one that is.
HEAVY = {
    "accelerate", "dask", "datasets", "distributed", "fsspec", "hypothesis", "math_verify", "matplotlib",
    "numba", "pcodec", "pyarrow", "s3fs", "safetensors", "sympy", "tensorstore", "torch", "transformers", "trl",
    "vllm", "xarray", "zarr",
}  # fmt: skip


def modules():
    """Every module of the two packages, by its dotted name."""
    found = {}
    for package in (ROOT / "ckptlin", ROOT / "cli/ckptlin_cli"):
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path):
    """The modules of ours that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            module = name if name in MODULES else name.rpartition(".")[0]
            if module in MODULES:
                yield module
            else:
                assert name.split(".")[0] not in ("ckptlin", "ckptlin_cli"), f"{path} imports {name}, not there"


def unit(module):
    """What a module belongs to in `LAYERS`: a package, or a module right below ``ckptlin``."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ckptlin" and len(parts) > 1 else parts[0]


def test_every_module_has_its_layer():
    units = {unit(module) for module in MODULES}
    assert units == set(LAYER_OF), "say in LAYERS where a new module belongs, and drop one that has gone"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    here = unit(module)
    for imported in imports(MODULES[module]):
        there = unit(imported)
        assert there == here or LAYER_OF[there] < LAYER_OF[here], f"{module} imports {imported}"


def test_nothing_imports_in_a_circle():
    graph = {module: set(imports(path)) - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_only_tests_use_the_oracle():
    users = [module for module, path in MODULES.items() if "ckptlin.kernels.oracle" in imports(path)]
    assert users == []


@pytest.mark.parametrize(
    "program",
    [
        "import ckptlin",
        "import ckptlin_cli.main",
        "from ckptlin_cli.main import cli; cli(['--help'], standalone_mode=False)",
        "from ckptlin_cli.main import cli; cli(['fit', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(program):
    code = f"import sys\n{program}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stderr.split()} & HEAVY == set()
