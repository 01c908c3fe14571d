import itertools
import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin.dtypes import DTYPES
from ckptlin.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    IncompleteCheckpointError,
    InputError,
    MemoryBudgetError,
    SelectionError,
    StepConflictError,
)
from ckptlin.fit import fit
from ckptlin.ingest import ingest
from ckptlin.ingest_plan import plan_ingest
from ckptlin.memory import FIXED_BYTES
from ckptlin.store.store import TrajectoryStore, block_key
from ckptlin.verify import verify
from tests.runs import CONFIG, MODEL, assert_holds, file_contents, save_checkpoint, stored_bits, weights_at
from tests.strategies import special_bits, tensor_names
from tests.tiny_models import load_weights, save_model_run

STEPS = (0, 10, 20)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Notes:
    """A `Progress` that remembers what it is told."""

    def __init__(self):
        self.notes, self.phases = [], []

    def phase(self, title, num_bytes):
        self.phases.append([title, num_bytes, 0])
        return self

    def __enter__(self):
        def advance(num_bytes):
            self.phases[-1][2] += num_bytes

        return advance

    def __exit__(self, *_):
        pass

    def note(self, message):
        self.notes.append(message)


def expected(steps, model=MODEL):
    return {step: weights_at(step, model) for step in steps}


def contents(store):
    """All files of a store but the root's, which names paths and times, and the lock."""
    return {k: v for k, v in file_contents(store.path).items() if k not in (".lock", "zarr.json")}


# What trainers save


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("save_options", [{}, {"max_shard_size": "1KB"}], ids=["one file", "shards"])
def test_a_run_of_transformers_is_stored_bit_for_bit(tmp_path, is_tied, save_options):
    run = save_model_run(tmp_path / "run", "qwen2", is_tied=is_tied, **save_options)
    result = ingest(run, tmp_path / "store")
    assert result.added == (0, 100, 200, 300)
    assert_holds(result.store, {s: load_weights(run / f"checkpoint-{s}") for s in result.added})
    assert result.store.tied == ({HEAD: EMBEDDING} if is_tied else {})
    sidecars = result.store.sidecars(200)
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(sidecars)
    assert ("model.safetensors.index.json" in sidecars) == bool(save_options)
    for name, data in sidecars.items():
        assert data == (run / "checkpoint-200" / name).read_bytes()
    assert result.store.record.config == json.loads((run / "checkpoint-300/config.json").read_text())
    assert verify(result.store).problems == ()


def test_a_run_laid_out_as_verl_does_is_found(tmp_path):
    for step in STEPS:
        directory = tmp_path / f"run/global_step_{step}/actor/huggingface"
        save_checkpoint(directory, weights_at(step))
        (directory.parent / "model_world_size_1_rank_0.pt").touch()
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("20")
    store = ingest(tmp_path / "run", tmp_path / "store").store
    assert_holds(store, expected(STEPS))
    assert store.checkpoints[1].source == str(tmp_path / "run/global_step_10/actor/huggingface")


def test_the_model_that_training_began_from_is_step_zero(make_run, tmp_path):
    base = save_checkpoint(tmp_path / "base-model", weights_at(0))
    store = ingest(make_run((10, 20)), tmp_path / "store", base=base).store
    assert_holds(store, expected(STEPS))
    assert store.checkpoints[0].source == str(base)


def test_checkpoints_may_be_given_one_by_one(make_run, tmp_path):
    run = make_run(STEPS)
    shutil.move(run / "checkpoint-20", tmp_path / "somewhere")
    store = ingest([run / "checkpoint-10", f"20={tmp_path / 'somewhere'}"], tmp_path / "store").store
    assert_holds(store, expected((10, 20)))


def test_a_single_file_is_a_run_of_one(make_run, tmp_path):
    file = make_run((7,)) / "checkpoint-7/model.safetensors"
    assert_holds(ingest([f"7={file}"], tmp_path / "store").store, expected((7,)))


def test_what_was_done_is_reported(make_run, tmp_path):
    run = make_run(STEPS)
    progress = Notes()
    result = ingest(run, tmp_path / "store", progress=progress)
    raw = 3 * sum(w.nbytes for w in weights_at(0).values())
    assert progress.phases == [["ingest", raw, raw]]
    found = result.to_dict()
    assert found.pop("elapsed_s") >= 0
    assert found.pop("ratio") == raw / result.stored_bytes
    assert found == {
        "store": str(tmp_path / "store"),
        "steps": list(STEPS),
        "steps_added": list(STEPS),
        "steps_present": [],
        "skipped": [],
        "jumps": [],
        "jumps_added": [],
        "tensors": len(MODEL),
        "params": sum(w.size for w in weights_at(0).values()),
        "raw_bytes": raw,
        "stored_bytes": sum(len(d) for k, d in file_contents(tmp_path / "store/weights").items()),
        "resumed_chunks": 0,
    }


# Again, and more


def test_the_same_command_again_adds_what_is_new(make_run, tmp_path):
    path = tmp_path / "store"
    ingest(make_run(STEPS), path)
    before = file_contents(path)
    again = ingest(tmp_path / "run", path)
    assert (again.added, again.present) == ((), STEPS)
    assert file_contents(path) == before
    result = ingest(make_run((30, 40)), path)
    assert (result.added, result.present) == ((30, 40), STEPS)
    assert_holds(result.store, expected((*STEPS, 30, 40)))


@settings(max_examples=12)
@given(cuts=st.lists(st.integers(1, 29), max_size=4), data=st.data())
def test_however_it_was_appended_a_store_holds_the_same(tmp_path_factory, cuts, data):
    """Steps may come in any number of ingests and in any order; those before the last rebuild the store."""
    root = tmp_path_factory.mktemp("appended")
    steps = list(range(30))
    if data.draw(st.booleans()):
        steps = data.draw(st.permutations(steps))
    model = {"w": ((3, 2), ml_dtypes.bfloat16), "scale": ((), np.float32)}
    for step in steps:
        save_checkpoint(root / f"run/checkpoint-{step}", weights_at(step, model))
    for lo, hi in zip([0, *sorted(cuts)], [*sorted(cuts), 30], strict=True):
        if steps[lo:hi]:
            now = [root / f"run/checkpoint-{step}" for step in steps[lo:hi]]
            store = ingest(now, root / "store", num_workers=1).store
    assert_holds(store, expected(range(30), model))
    at_once = ingest(root / "run", root / "at-once", num_workers=1).store
    assert [c.fingerprint for c in store.checkpoints] == [c.fingerprint for c in at_once.checkpoints]
    assert store.record.blobs == at_once.record.blobs


def test_checkpoints_that_the_trainer_has_since_deleted_stay_in_the_store(make_run, tmp_path):
    run = make_run(STEPS)
    ingest(run, tmp_path / "store")
    shutil.rmtree(run / "checkpoint-0")
    shutil.rmtree(run / "checkpoint-10")
    result = ingest(make_run((30,)), tmp_path / "store")
    assert (result.added, result.present) == ((30,), (20,))
    assert_holds(result.store, expected((*STEPS, 30)))


@pytest.mark.parametrize(
    "added", [(5,), (0,), (0, 7, 40)], ids=["inserted", "earlier", "before, between, after"]
)
def test_a_step_before_the_last_one_builds_the_store_anew(make_run, tmp_path, added):
    ingest(make_run((3, 10, 20)), tmp_path / "store")
    plan = plan_ingest(make_run(added), tmp_path / "store")
    assert plan.rebuild
    result = ingest(tmp_path / "run", tmp_path / "store")
    assert (result.added, result.present) == (tuple(sorted(added)), (3, 10, 20))
    assert_holds(result.store, expected((3, 10, 20, *added)))
    assert verify(result.store).problems == ()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run", "store"]


def test_a_base_may_be_added_later(make_run, tmp_path):
    ingest(make_run((10, 20)), tmp_path / "store")
    base = save_checkpoint(tmp_path / "base", weights_at(0))
    assert_holds(ingest(tmp_path / "run", tmp_path / "store", base=base).store, expected(STEPS))


# The same step


def test_a_run_that_was_moved_is_recognised_by_its_content(make_run, tmp_path):
    run = make_run(STEPS)
    ingest(run, tmp_path / "store")
    run.rename(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*"):
        os.utime(path, ns=(1, 1))
    progress = Notes()
    result = ingest(tmp_path / "moved", tmp_path / "store", progress=progress)
    assert (result.added, result.present) == ((), STEPS)
    num_bytes = sum(w.nbytes for w in weights_at(0).values())
    assert progress.phases == [[f"check step {step}", num_bytes, num_bytes] for step in STEPS]


def test_a_step_is_recognised_however_its_files_are_cut(tmp_path):
    for name, options in (("whole", {}), ("shards", {"max_shard_size": "1KB"})):
        save_model_run(tmp_path / name, "qwen2", is_tied=False, **options)
    ingest(tmp_path / "whole", tmp_path / "store")
    assert ingest(tmp_path / "shards", tmp_path / "store").added == ()


@pytest.mark.parametrize("tensor", [name for name in MODEL if name != "model.nothing"])
def test_a_step_with_one_weight_changed_is_a_conflict(make_run, tmp_path, tensor):
    store = ingest(make_run(STEPS), tmp_path / "store").store
    weights = weights_at(10)
    flat = weights[tensor].reshape(-1)
    flat.view(store.tensors[tensor].dtype.bits)[-1] ^= 1
    run = save_checkpoint(tmp_path / "other/checkpoint-10", weights).parent
    before = file_contents(tmp_path / "store")
    with pytest.raises(StepConflictError) as caught:
        ingest(run, tmp_path / "store")
    for part in ("step 10 is in", f"{tmp_path}/store", f"{run}/checkpoint-10", f"{tmp_path}/run/", "--replace"):
        assert part in str(caught.value)
    assert file_contents(tmp_path / "store") == before

    result = ingest(run, tmp_path / "store", replace_steps=True)
    assert (result.added, result.present) == ((10,), ())
    assert_holds(result.store, expected(STEPS) | {10: weights})
    assert result.store.checkpoints[1].source == f"{run}/checkpoint-10"
    assert verify(result.store).problems == ()


def test_replacing_leaves_steps_alone_that_are_the_same(make_run, tmp_path):
    ingest(make_run(STEPS), tmp_path / "store")
    before = file_contents(tmp_path / "store")
    assert ingest(tmp_path / "run", tmp_path / "store", replace_steps=True).added == ()
    assert file_contents(tmp_path / "store") == before


def test_a_rebuild_says_that_fits_go(make_run, tmp_path):
    model = {"w": ((4, 3), ml_dtypes.bfloat16)}
    store = ingest(make_run(range(0, 30, 5), model=model), tmp_path / "store").store
    fit(store)
    progress = Notes()
    ingest(make_run((32,), model=model), tmp_path / "store", progress=progress)
    assert progress.notes == []
    assert TrajectoryStore(store.path).record.fits
    result = ingest(make_run((31,), model=model), tmp_path / "store", progress=progress)
    of_fits, of_gram = progress.notes
    assert "its fits (default) go: run `ckptlin fit` again" in of_fits
    assert "with it go the Gram matrices" in of_gram
    assert result.store.record.fits == {}
    assert result.store.record.gram is None
    assert not (store.path / "fits").exists()


# Tied weights


def tied_run(tmp_path, change=None, config=CONFIG | {"tie_word_embeddings": True}, name="run"):
    for step in STEPS:
        weights = weights_at(step)
        weights[HEAD] = weights[EMBEDDING].copy()
        if change == step:
            weights[HEAD].view(np.uint16)[0, 0] ^= 1
        save_checkpoint(tmp_path / name / f"checkpoint-{step}", weights, config)
    return tmp_path / name


def test_a_head_without_bytes_of_its_own_is_tied(make_run, tmp_path):
    store = ingest(make_run(STEPS, config=CONFIG | {"tie_word_embeddings": True}), tmp_path / "store").store
    assert store.tied == {HEAD: EMBEDDING}
    assert HEAD not in store.tensors


@pytest.mark.parametrize("place", ["top", "text_config"])
def test_a_head_with_the_embedding_s_bytes_is_tied_if_the_configuration_says_so(tmp_path, place):
    says = {"tie_word_embeddings": True}
    config = {**CONFIG, **says} if place == "top" else {"model_type": "tiny", "text_config": says}
    store = ingest(tied_run(tmp_path, config=config), tmp_path / "store").store
    assert store.tied == {HEAD: EMBEDDING}
    np.testing.assert_array_equal(stored_bits(store, HEAD), stored_bits(store, EMBEDDING))


@pytest.mark.parametrize("changed", STEPS)
def test_a_head_that_differs_in_one_bit_of_one_step_is_not_tied(tmp_path, changed):
    store = ingest(tied_run(tmp_path, change=changed), tmp_path / "store").store
    assert store.tied == {}


@pytest.mark.parametrize("config", [CONFIG, None], ids=["says untied", "no configuration"])
def test_the_same_bytes_alone_tie_nothing(tmp_path, config):
    assert ingest(tied_run(tmp_path, config=config), tmp_path / "store").store.tied == {}


def test_a_step_that_is_appended_may_untie_and_never_ties_again(tmp_path):
    run = tied_run(tmp_path, change=20)
    first = ingest([run / "checkpoint-0", run / "checkpoint-10"], tmp_path / "store")
    assert first.store.tied == {HEAD: EMBEDDING}
    assert ingest(run, tmp_path / "store").store.tied == {}
    same = {**weights_at(30), HEAD: weights_at(30)[EMBEDDING]}
    save_checkpoint(run / "checkpoint-30", same, CONFIG | {"tie_word_embeddings": True})
    assert ingest(run, tmp_path / "store").store.tied == {}


# Bits, bytes, names


@pytest.mark.parametrize("num_workers", [2, 5])
@pytest.mark.parametrize("compressor", ["pack", "lz4", "zstd", "archive"])
def test_bytes_do_not_depend_on_the_number_of_workers(make_run, tmp_path, num_workers, compressor):
    model = {f"w{i}": ((300, 1000), ml_dtypes.bfloat16) for i in range(4)}
    model |= {f"b{i}": ((9,), np.float32) for i in range(20)}
    run = make_run(range(17), model=model)
    one = ingest(run, tmp_path / "one", num_workers=1, compressor=compressor)
    many = ingest(run, tmp_path / "many", num_workers=num_workers, compressor=compressor)
    assert file_contents(one.store.path) == file_contents(many.store.path)
    assert one.store.record.compressor.name == compressor


def test_zstd_takes_less_room_than_lz4_and_an_archive_less_than_zstd(make_run, tmp_path):
    run = make_run(range(14), model={"w": ((256, 1024), ml_dtypes.bfloat16)})
    sizes = {c: ingest(run, tmp_path / c, compressor=c).stored_bytes for c in ("lz4", "zstd", "archive")}
    assert sizes["zstd"] < 0.9 * sizes["lz4"]
    assert sizes["archive"] < 0.9 * sizes["zstd"]


@pytest.mark.parametrize("appended", [20, 5], ids=["appended", "built anew"])
def test_an_archive_stays_one_when_it_is_appended_to_or_built_anew(make_run, tmp_path, appended):
    store = ingest(make_run((0, 10)), tmp_path / "store", compressor="archive").store
    again = ingest(make_run((*store.steps, appended)), tmp_path / "store").store
    assert again.record.compressor == store.record.compressor
    assert_holds(again, expected(sorted((*store.steps, appended))))
    for block in itertools.chain(*map(again.blocks, again.tensors)):
        assert (again.path / block_key(block, 0)).read_bytes().startswith(b"pco!")
    assert fit(again, include=["experts"]).summary.steps == again.steps
    assert verify(again).problems == ()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.zarr)
def test_awkward_bits_survive(tmp_path, dtype):
    """NaN payloads; a tensor of minus zeros alone, and one of zeros, which zarr would not even write."""
    special = np.array(special_bits(dtype), dtype.bits)
    minus_zero = dtype.bits.type(1 << (8 * dtype.itemsize - 1)) if dtype.zarr != "bool" else dtype.bits.type(1)
    runs = {}
    for step in STEPS:
        bits = {
            "special": np.roll(special, step // 10),
            "minus_zeros": np.full((4, 5), minus_zero),
            "zeros": np.zeros((2, 3), dtype.bits),
            "one": special[:1].reshape(()).copy(),
            "none": np.zeros((3, 0, 2), dtype.bits),
        }
        runs[step] = {name: value.view(dtype.numpy) for name, value in bits.items()}
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", runs[step])
    store = ingest(tmp_path / "run", tmp_path / "store").store
    assert_holds(store, runs)
    assert all((store.path / f"weights/{name}/c").exists() for name in ("zeros", "minus_zeros"))


def test_a_model_without_a_single_element_can_be_stored(make_run, tmp_path):
    store = ingest(make_run(STEPS, model={"nothing": ((0, 7), np.float32)}), tmp_path / "store").store
    assert_holds(store, expected(STEPS, {"nothing": ((0, 7), np.float32)}))
    assert verify(store).problems == ()


@settings(max_examples=40)
@given(st.lists(tensor_names().filter(lambda n: n != "__metadata__"), min_size=1, max_size=12, unique=True))
def test_tensors_may_have_any_name(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("names")
    weights = {step: {name: np.array([i, step], np.float32) for i, name in enumerate(names)} for step in (1, 2)}
    for step in weights:
        save_checkpoint(root / f"run/checkpoint-{step}", weights[step])
    store = ingest(root / "run", root / "store", num_workers=1).store
    assert_holds(store, weights)
    assert sorted(path.name for path in root.iterdir()) == ["run", "store"]


def test_a_name_that_no_file_can_have_is_refused_before_anything_is_written(make_run, tmp_path):
    with pytest.raises(SelectionError, match="too long for a file name"):
        ingest(make_run(STEPS, model={"é" * 128: ((2,), np.float32)}), tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


# What does not fit together


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.scale"), "has no tensor `model.scale`"),
        (lambda w: w.update(extra=np.zeros(2)), "tensor `extra` in checkpoint step 30 .* is not in the store"),
        (
            lambda w: w.update({"model.scale": np.zeros(2)}),
            r"tensor `model.scale` .* has shape \(2,\), but .* \(\)",
        ),
        (
            lambda w: w.update({"model.scale": np.zeros((), np.float32)}),
            "tensor `model.scale` .* has dtype float32, but .* has float64",
        ),
    ],
    ids=["missing", "new", "shape", "dtype"],
)
def test_another_model_is_not_added_to_a_store(make_run, tmp_path, change, message):
    ingest(make_run(STEPS), tmp_path / "store")
    before = file_contents(tmp_path / "store")
    weights = weights_at(30)
    change(weights)
    other = save_checkpoint(tmp_path / "other/checkpoint-30", weights)
    with pytest.raises(CheckpointMismatchError, match=message):
        ingest(other, tmp_path / "store")
    assert file_contents(tmp_path / "store") == before


def test_an_incomplete_checkpoint_is_refused_or_skipped_and_said(make_run, tmp_path):
    run = make_run(STEPS)
    (run / "checkpoint-20/model.safetensors").unlink()
    with pytest.raises(IncompleteCheckpointError, match="checkpoint step 20"):
        ingest(run, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    result = ingest(run, tmp_path / "store", skip_incomplete=True)
    assert result.added == (0, 10)
    assert [s.step for s in result.skipped] == [20]
    assert result.to_dict()["skipped"][0]["path"] == str(run / "checkpoint-20")
    assert ingest(make_run((20,)), tmp_path / "store").added == (20,)


class ChangesTheSource(Notes):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def __exit__(self, *_):
        pass

    def __enter__(self):
        done = []

        def advance(num_bytes):
            if not done:
                done.append(self.change())

        return advance


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda file: os.utime(file, ns=(1, 1)), CheckpointError, "was changed while it was read; wait"),
        (
            lambda file: file.write_bytes(file.read_bytes() + b"x"),
            CheckpointError,
            "was changed while it was read; wait",
        ),
        (lambda file: file.unlink(), IncompleteCheckpointError, "was deleted"),
    ],
    ids=["touched", "longer", "deleted"],
)
def test_a_checkpoint_that_changes_while_it_is_read_is_not_stored(make_run, tmp_path, change, error, message):
    run = make_run(STEPS)
    file = run / "checkpoint-10/model.safetensors"
    with pytest.raises(error, match=message):
        ingest(run, tmp_path / "store", num_workers=1, progress=ChangesTheSource(lambda: change(file)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_options_that_make_no_sense_are_refused(make_run, tmp_path):
    run = make_run(STEPS)
    with pytest.raises(InputError, match="there is no codec 'gzip'; choose one of archive, lz4, pack, zstd"):
        ingest(run, tmp_path / "store", compressor="gzip")
    with pytest.raises(InputError, match="--workers must be at least 1, not 0"):
        ingest(run, tmp_path / "store", num_workers=0)
    with pytest.raises(CheckpointNotFoundError):
        ingest(tmp_path / "nowhere", tmp_path / "store")
    assert not (tmp_path / "store").exists()


# The plan, and memory


def test_a_plan_writes_nothing_and_says_what_would_be_done(make_run, tmp_path):
    run = make_run(STEPS)
    plan = plan_ingest(run, tmp_path / "store", num_workers=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert plan.to_dict() == {
        "store": str(tmp_path / "store"),
        "steps_added": list(STEPS),
        "steps_present": [],
        "rebuild": False,
        "jumps_added": [],
        "tensors": len(MODEL),
        "params": 140,
        "bytes_in": 3 * sum(w.nbytes for w in weights_at(0).values()),
        "workers": 3,
        "peak_memory_bytes": plan.memory.peak_bytes,
    }
    ingest(run, tmp_path / "store")
    plan = plan_ingest(make_run((30,)), tmp_path / "store")
    assert (plan.added, plan.present, plan.rebuild) == ((30,), STEPS, False)


def test_little_memory_means_fewer_workers_and_too_little_is_refused_with_what_would_do(make_run, tmp_path):
    run = make_run(STEPS, model={"w": ((1 << 19,), ml_dtypes.bfloat16)})
    chunk = 16 << 20
    plan = plan_ingest(run, tmp_path / "store", memory_bytes=FIXED_BYTES + 5 * chunk, num_workers=8)
    assert 1 <= plan.memory.num_workers < 8
    assert plan.memory.peak_bytes <= FIXED_BYTES + 5 * chunk
    with pytest.raises(MemoryBudgetError, match=r"ingest needs at least .* give --memory \d+MB or more"):
        plan_ingest(run, tmp_path / "store", memory_bytes=FIXED_BYTES + chunk // 2)


def save_noise(root, num_steps, num_tensors, num_params=1 << 17, dtype=ml_dtypes.bfloat16):
    """Save a run of bits that do not compress."""
    bits = np.random.default_rng(0).bytes(np.dtype(dtype).itemsize * num_params)
    for step in range(num_steps):
        values = np.roll(np.frombuffer(bits, np.uint8), 977 * step).view(dtype)
        save_checkpoint(root / f"checkpoint-{step}", {f"w{i}": values for i in range(num_tensors)})
    return root


@pytest.mark.parametrize("then", ["append", "new"])
def test_peak_memory_does_not_grow_with_steps_or_tensors(tmp_path, forked, then):
    """Weights of 16, 48 and 64 MiB, cut into chunks of 4 MiB, of which one worker has one in flight.

    4 MiB of tolerance are for the allocator and the interpreter; all weights would be 32 or 48 MiB more.
    """
    runs = {
        "few": save_noise(tmp_path / "few", 16, 4),
        "steps": save_noise(tmp_path / "steps", 48, 4),
        "tensors": save_noise(tmp_path / "tensors", 16, 16),
    }
    peaks = {}
    for name, run in runs.items():
        if then == "append":
            ingest([run / f"checkpoint-{step}" for step in range(4)], tmp_path / f"{name}-store")
        outcome = forked.call("ckptlin.ingest:ingest", run, tmp_path / f"{name}-store", num_workers=1)
        assert outcome.error == ""
        peaks[name] = outcome.peak_bytes
    assert peaks["steps"] - peaks["few"] < 4 << 20, peaks
    assert peaks["tensors"] - peaks["few"] < 4 << 20, peaks


@pytest.mark.parametrize("compressor", ["pack", "lz4", "archive"])
def test_the_projected_peak_holds_for_weights_that_do_not_compress(tmp_path, forked, compressor):
    run = save_noise(tmp_path / "run", 16, 3, num_params=(1 << 19) + 1, dtype=np.float32)
    plan = plan_ingest(run, tmp_path / "store", num_workers=2)
    idle = forked.call("ckptlin.memory:format_bytes", 1).peak_bytes
    options = {"num_workers": 2, "compressor": compressor}
    # The process that compiles a kernel takes 65 MiB for it, and keeps the result for others, which take up to
    # 17 MiB for loading it and what else the compressor needs: the second time, that is all there is.
    small = save_noise(tmp_path / "small", 16, 3, num_params=64, dtype=np.float32)
    for store in ("compiles.store", "loads.store"):
        loaded = forked.call("ckptlin.ingest:ingest", small, tmp_path / store, **options).peak_bytes
    outcome = forked.call("ckptlin.ingest:ingest", run, tmp_path / "store", **options)
    assert outcome.value["ratio"] < 1.01
    assert outcome.peak_bytes <= plan.memory.peak_bytes
    assert outcome.peak_bytes - loaded <= 2 * plan.memory.worker_bytes + (8 << 20)
    assert idle <= loaded <= plan.memory.fixed_bytes
