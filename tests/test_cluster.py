"""The same results and the same bytes from the workers of a cluster as from threads."""

import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import pytest

from ckptlin.errors import InputError, NonFiniteError
from ckptlin.extrapolate import extrapolate
from ckptlin.fit import fit, read_summary
from ckptlin.gram import gram, read_gram
from ckptlin.ingest import ingest
from ckptlin.source import open_source
from ckptlin.store.store import TrajectoryStore
from tests.runs import MODEL, file_contents, save_checkpoint, weights_at
from tests.s3 import upload
from tests.test_gram import assert_same

# Tensors that are large enough to be tasks of their own.
LAYERS = {f"model.layers.{i}.mlp.up_proj.weight": ((600, 1000), ml_dtypes.bfloat16) for i in range(10)}
STEPS = (0, 10, 20, 30, 40)


@pytest.fixture(scope="module")
def cluster():
    """Two workers in processes of their own; a lost one is started again."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    ) as started:
        yield started


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("cluster") / "run"
    for step in STEPS:
        save_checkpoint(path / f"checkpoint-{step}", weights_at(step, {**MODEL, **LAYERS}))
    return path


@pytest.fixture(scope="module")
def stores(run, cluster):
    """The same run ingested by threads and by the cluster."""
    local, remote = run.with_name("local"), run.with_name("remote")
    ingest(run, local)
    ingest(run, remote, scheduler=cluster.scheduler_address)
    return local, remote


class Interrupting:
    """A progress display that does something once, when the first of the work is done."""

    def __init__(self, action):
        self._action = action
        self.total = 0

    @contextmanager
    def phase(self, title, num_bytes):
        def advance(done):
            self.total += done
            action, self._action = self._action, None
            if action is not None:
                action()

        yield advance

    def note(self, message):
        raise AssertionError(message)


def weights_of(store):
    return {key: data for key, data in file_contents(store).items() if key.startswith("weights/")}


def maps_of(store):
    return {key: data for key, data in file_contents(store).items() if "/c/" in key and key.startswith("fits/")}


def test_an_ingest_writes_the_same_bytes(stores):
    local, remote = stores
    assert weights_of(remote) == weights_of(local)
    assert TrajectoryStore(remote).checkpoints == TrajectoryStore(local).checkpoints


def test_an_append_writes_the_same_bytes(run, cluster, tmp_path):
    early = [f"{step}={run}/checkpoint-{step}" for step in STEPS[:2]]
    for name, options in {"local": {}, "remote": {"scheduler": cluster.scheduler_address}}.items():
        ingest(early, tmp_path / name)
        ingest(run, tmp_path / name, **options)
    assert weights_of(tmp_path / "remote") == weights_of(tmp_path / "local")


def test_a_fit_that_loses_a_worker_has_the_right_result(stores, cluster):
    """Killed, not asked to leave: what it was doing is done by the other one."""
    local, remote = stores
    fit(TrajectoryStore(local))

    def kill_a_worker():
        nanny = next(iter(cluster.workers.values()))
        os.kill(nanny.process.pid, signal.SIGKILL)

    fit(TrajectoryStore(remote), scheduler=cluster.scheduler_address, progress=Interrupting(kill_a_worker))
    here, there = TrajectoryStore(local), TrajectoryStore(remote)
    assert read_summary(there).to_dict() == read_summary(here).to_dict()
    assert maps_of(remote) == maps_of(local)
    assert len(maps_of(remote)) > 2 * len(LAYERS)


def test_gram_matrices_are_the_same_to_the_last_bit(run, cluster, tmp_path):
    local = gram(open_source(str(run)))
    # A store of its own: in one that was fitted, the regression has summed what rounding adds, in its order.
    remote = tmp_path / "remote"
    ingest(str(run), remote)
    for path, options in ((run, {}), (remote, {"num_workers": 1})):
        source = open_source(str(path))
        assert_same(gram(source, scheduler=cluster.scheduler_address, **options), local)
    assert_same(read_gram(TrajectoryStore(remote)), local)


def test_a_fit_of_the_run_itself_has_the_same_figures(run, cluster):
    local = fit(open_source(str(run)))
    remote = fit(open_source(str(run)), scheduler=cluster.scheduler_address)
    assert remote.summary.to_dict() == local.summary.to_dict()


@pytest.mark.parametrize("source", ["store", "run"])
@pytest.mark.parametrize(
    "options",
    [
        {"method": "ols"},
        {"method": "ols", "min_r2": 0.5, "dtype": "float32"},
        {"method": "damped", "dtype": "float32"},
        {"method": "rank1-matrix", "min_r2": 0.5},
    ],
    ids=["plain", "gated", "damped", "rank1"],
)
def test_an_extrapolated_checkpoint_has_the_same_bytes(run, stores, cluster, tmp_path, source, options):
    path = stores[0] if source == "store" else run
    done = {}
    for name, where in {"local": {}, "remote": {"scheduler": cluster.scheduler_address}}.items():
        result = extrapolate(open_source(str(path)), 60, tmp_path / name, **options, **where)
        done[name] = (result.num_lost, result.num_gated, (tmp_path / name / "model.safetensors").read_bytes())
    assert done["remote"] == done["local"]


def test_an_error_in_a_task_is_the_error_of_the_command_and_leaves_nothing(run, cluster, tmp_path):
    weights = weights_at(50, {**MODEL, **LAYERS})
    weights["model.norm.weight"][1] = float("nan")
    bad = save_checkpoint(tmp_path / "bad", weights)
    source = open_source([*(f"{step}={run}/checkpoint-{step}" for step in STEPS), f"50={bad}"])
    with pytest.raises(NonFiniteError, match=r"`model\.norm\.weight` .* has 1 NaN weight at step 50"):
        extrapolate(source, 70, tmp_path / "out", method="ols", scheduler=cluster.scheduler_address)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad"]


def test_processes_of_its_own(run, tmp_path):
    """From the command line, where Python starts processes by running the program's main module again."""
    for name, options in {"local": [], "remote": ["--processes", "--workers", "2"]}.items():
        for arguments in (["ingest", run, tmp_path / name], ["fit", tmp_path / name]):
            command = [Path(sys.executable).with_name("ckptlin"), *arguments, "-q", *options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert weights_of(tmp_path / "remote") == weights_of(tmp_path / "local")
    assert maps_of(tmp_path / "remote") == maps_of(tmp_path / "local")


def test_run_and_store_in_an_object_store(make_run, tmp_path, s3_bucket):
    """Workers read the run from there and write the store's chunks there, with the credentials they inherit."""
    run = make_run(STEPS[:3], model=dict(list(LAYERS.items())[:3]))
    local, remote = tmp_path / "local", f"{s3_bucket}/store"
    for where, source, options in (
        (local, run, {}),
        (remote, upload(run, f"{s3_bucket}/run"), {"processes": True, "num_workers": 2}),
    ):
        ingest(source, where, **options)
        fit(TrajectoryStore(where), **options)
    here, there = TrajectoryStore(local), TrajectoryStore(remote)
    assert read_summary(there).to_dict() == read_summary(here).to_dict()
    assert_same(read_gram(there), read_gram(here))  # with the fit, to the last bit as well
    written = {**weights_of(local), **maps_of(local)}
    assert {key: there.files.read(key) for key in written} == written


def test_a_scheduler_that_is_not_there_is_said_so(run, tmp_path):
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9; start one with"):
        ingest(run, tmp_path / "store", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="leave it out where --scheduler is given"):
        ingest(run, tmp_path / "store", scheduler="tcp://127.0.0.1:9", processes=True)
    assert list(tmp_path.iterdir()) == []
