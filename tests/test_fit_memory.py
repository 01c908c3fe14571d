"""Peak memory of a fit, in processes of their own: it keeps to the plan, and does not grow with the run."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ckptlin.fit import plan_fit
from ckptlin.gram import plan_gram
from ckptlin.ingest import ingest
from ckptlin.source import open_source
from ckptlin.store.store import TrajectoryStore

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")

MIB = 1 << 20
# Not ru_maxrss: a process begins with that of its parent, these tests, which outlives exec.
PROGRAM = r"""
import json, re, sys
from pathlib import Path
from ckptlin import fit, gram
from ckptlin.source import open_source

source, options = open_source(sys.argv[1]), json.loads(sys.argv[2])
module = {"fit": fit, "gram": gram}[sys.argv[3]]
planned = getattr(module, "plan_" + sys.argv[3])(source, **options).memory.peak_bytes
getattr(module, sys.argv[3])(source, **options)
status = Path("/proc/self/status").read_text()
print(json.dumps([planned, int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024]))
"""


def make_run(root, num_steps, shapes, dtype=ml_dtypes.bfloat16):
    """Checkpoints whose files are links to one of four, so that a long run takes no room."""
    rng = np.random.default_rng(0)
    for k in range(4):
        weights = {name: rng.normal(0, 0.02, shape).astype(dtype) for name, shape in shapes.items()}
        (root / "files").mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(weights, root / f"files/{k}.safetensors")
    for step in range(num_steps):
        checkpoint = root / f"run/checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").symlink_to(root / f"files/{step % 4}.safetensors")
    return root / "run"


def peak_of_fit(source, operation="fit", **options):
    """Return the planned and the measured peak of a fit, or of a Gram pass, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), json.dumps(options), operation],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    planned, measured = json.loads(done.stdout)
    return planned, measured


def blocks(number):
    return {f"model.layers.{i}.w": (1024, 1024) for i in range(number)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that differ in their number of steps or of tensors; a block of each is as large as blocks get."""
    shapes = {"short": (16, 6), "many tensors": (16, 24), "two rows": (32, 6), "many steps": (64, 6)}
    made = {}
    for name, (num_steps, num_tensors) in shapes.items():
        root = tmp_path_factory.mktemp(name.replace(" ", "-"))
        run = make_run(root, num_steps, blocks(num_tensors))
        made[name] = (run, ingest(run, root / "store").store.path)
    return made


@pytest.mark.parametrize("kind", ["run", "store"])
def test_peak_memory_does_not_grow_with_the_tensors_or_the_steps(runs, kind):
    index = ["run", "store"].index(kind)
    planned, measured = {}, {}
    for name, sources in runs.items():
        # With one worker: whether the peaks of several coincide is a matter of luck.
        # Gram matrices, which need all rows of a block at once, are left out where memory does not hold them.
        planned[name], measured[name] = peak_of_fit(sources[index], num_workers=1, gram=False)
        assert measured[name] <= planned[name], f"{name}: {measured[name]} of {planned[name]} bytes"
    # More steps than one row of chunks holds take a state between the rows, once and for all.
    for large, small in (("many tensors", "short"), ("many steps", "two rows")):
        assert planned[large] <= 1.03 * planned[small]
        assert measured[large] <= 1.15 * measured[small]


@pytest.mark.parametrize(
    ("dtype", "num_workers", "num_steps", "shapes"),
    [
        ("float32", 1, 20, blocks(4)),
        ("float64", 3, 20, blocks(4)),
        ("float16", 2, 9, blocks(4)),
        ("bfloat16", 3, 300, {"w": (300, 300)}),
        ("float32", 2, 40, {f"w{i}": (64,) for i in range(200)}),
    ],
    ids=["float32", "float64", "float16", "300 steps", "200 tensors"],
)
def test_a_fit_keeps_to_its_planned_peak(tmp_path, dtype, num_steps, shapes, num_workers):
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    run = make_run(tmp_path, num_steps, shapes, numpy_dtype)
    every_map = {"r2": "float64", "slope": "float64", "intercept": "float64"}
    for source, options in ((run, {}), (ingest(run, tmp_path / "store").store.path, {"maps": every_map})):
        planned, measured = peak_of_fit(source, num_workers=num_workers, memory_bytes=1 << 32, **options)
        assert measured <= planned, f"{measured / MIB:.0f} of {planned / MIB:.0f} MiB"


def test_a_fit_that_is_done_again_carefully_keeps_to_its_planned_peak(tmp_path):
    run = make_run(tmp_path, 20, blocks(2))
    for k in range(4):
        path = tmp_path / f"files/{k}.safetensors"
        weights = safetensors.numpy.load_file(path)
        for tensor in weights.values():
            tensor[0, :2] = 1e30 * k
        safetensors.numpy.save_file(weights, path)
    planned, measured = peak_of_fit(ingest(run, tmp_path / "store").store.path, num_workers=1)
    assert measured <= planned, f"{measured / MIB:.0f} of {planned / MIB:.0f} MiB"


@pytest.mark.parametrize("num_held", [4, 1])
@pytest.mark.parametrize("kind", ["run", "store"])
def test_a_gram_pass_keeps_to_its_planned_peak(runs, kind, num_held):
    source = runs["many steps"][["run", "store"].index(kind)]
    opened = open_source(source)
    budget = plan_gram(opened, num_workers=1, keep=False).memory.peak_bytes
    while plan_gram(opened, num_workers=1, keep=False, memory_bytes=budget).num_held > num_held:
        budget -= MIB
    options = {"num_workers": 1, "keep": False, "memory_bytes": budget}
    planned, measured = peak_of_fit(source, operation="gram", **options)
    assert planned <= budget
    assert measured <= planned, f"{measured / MIB:.0f} of {planned / MIB:.0f} MiB"


def test_a_budget_is_kept_with_fewer_workers(runs):
    _, store = runs["short"]
    planned = plan_fit(TrajectoryStore(store), num_workers=1).memory.peak_bytes
    within, measured = peak_of_fit(store, num_workers=8, memory_bytes=planned + MIB)
    assert within == planned
    assert measured <= planned
