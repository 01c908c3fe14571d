import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy
from s3fs import S3FileSystem

from ckptlin.checkpoints import RunTrajectories, discover
from ckptlin.errors import CheckpointError, CheckpointNotFoundError, IncompleteCheckpointError, InputError
from ckptlin.execution import Threads
from ckptlin.extrapolate import extrapolate
from ckptlin.fit import fit
from ckptlin.ingest import ingest
from ckptlin.source import open_source
from ckptlin.store.layout import blocks_of
from ckptlin.store.store import TrajectoryStore
from tests.command_line import call_json, refusal
from tests.runs import CONFIG, assert_holds, file_contents, save_checkpoint, weights_at
from tests.s3 import upload

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def save_sharded(directory, weights):
    directory.mkdir(parents=True)
    weight_map = {name: SHARDS[i % 2] for i, name in enumerate(weights)}
    for shard in SHARDS:
        part = {name: weights[name] for name in weights if weight_map[name] == shard}
        safetensors.numpy.save_file(part, directory / shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(CONFIG))


@pytest.fixture
def local(tmp_path):
    """A run of three checkpoints, the second in shards and deeper down, with what else lies in a run."""
    run = tmp_path / "run"
    save_checkpoint(run / "checkpoint-10", weights_at(10))
    save_sharded(run / "checkpoint-20/actor/huggingface", weights_at(20))
    save_checkpoint(run / "checkpoint-30", weights_at(30))
    save_checkpoint(run, weights_at(30))
    (run / "checkpoint-10/optimizer.pt").write_bytes(b"state")
    (run / "checkpoint-30/additional_chat_templates").mkdir()
    (run / "checkpoint-30/additional_chat_templates/tools.jinja").write_text("{{ tools }}")
    return run


def everything(run):
    """All bits of a run."""
    source = RunTrajectories(run, partition=blocks_of)
    rows = range(len(source.steps))
    return {
        name: np.concatenate([source.read_block(block, rows) for block in source.blocks(name)], axis=1)
        for name, spec in source.tensors.items()
        if spec.num_params
    }


def test_a_run_on_s3_is_the_local_one(local, s3_bucket):
    url = upload(local, f"{s3_bucket}/runs/a")
    with discover(local) as here, discover(url) as there:
        assert there.location == url
        assert there.steps == here.steps == (10, 20, 30)
        assert str(there.checkpoints[1].path) == f"{url}/checkpoint-20/actor/huggingface"
        for ours, theirs in zip(here.checkpoints, there.checkpoints, strict=True):
            assert theirs.checkpoint.tensors == ours.checkpoint.tensors
            assert theirs.checkpoint.file_of == ours.checkpoint.file_of
            assert theirs.checkpoint.config == ours.checkpoint.config
            assert [f.header for f in theirs.checkpoint.files] == [f.header for f in ours.checkpoint.files]
            sidecars = {name: path.read_bytes() for name, path in ours.checkpoint.sidecars.items()}
            assert {n: p.read_bytes() for n, p in theirs.checkpoint.sidecars.items()} == sidecars
        assert "additional_chat_templates/tools.jinja" in there.checkpoints[2].checkpoint.sidecars
        local_bits, remote_bits = everything(here), everything(there)
    assert local_bits.keys() == remote_bits.keys()
    for name, bits in local_bits.items():
        np.testing.assert_array_equal(remote_bits[name], bits)


def test_threads_may_read_a_remote_checkpoint_at_the_same_time(local, s3_bucket):
    with discover(upload(local, f"{s3_bucket}/run")) as run, ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda _: everything(run), range(8)))
    for bits in read[1:]:
        assert all((bits[name] == read[0][name]).all() for name in bits)


def test_checkpoints_are_named_one_by_one_from_anywhere(local, s3_bucket):
    upload(local / "checkpoint-10", f"{s3_bucket}/base")
    upload(local / "checkpoint-30/model.safetensors", f"{s3_bucket}/last.safetensors")
    items = [f"20=file://{local}/checkpoint-20", f"30={s3_bucket}/last.safetensors"]
    with discover(items, base=f"{s3_bucket}/base/") as run:
        assert run.steps == (0, 20, 30)
        assert [str(c.path) for c in run.checkpoints] == [
            f"{s3_bucket}/base",
            f"{local}/checkpoint-20/actor/huggingface",
            f"{s3_bucket}/last.safetensors",
        ]
        assert everything(run).keys() == {n for n, w in weights_at(0).items() if w.size}
    with discover([f"0={s3_bucket}/base", *items], base=f"{s3_bucket}/base/") as run:
        assert run.steps == (0, 20, 30)
    with pytest.raises(InputError, match=r"would be step 0, but s3://.*/base is step 0 already"):
        discover([f"0={s3_bucket}/base", *items], base=local / "checkpoint-10")


def test_fit_and_extrapolation_of_a_run_on_s3_are_those_of_the_local_one(local, s3_bucket, tmp_path):
    url = upload(local, f"{s3_bucket}/run")
    here, there = open_source(local), open_source(url)
    assert isinstance(there, RunTrajectories)
    options = {"num_workers": 2}
    ours, theirs = fit(here, **options).to_dict(), fit(there, **options).to_dict()
    assert theirs["source"] == url
    for what in ("source", "elapsed_s"):
        del ours[what], theirs[what]
    assert theirs == ours
    for source, name in ((here, "here"), (there, "there")):
        extrapolate(source, 50, tmp_path / name, method="ols", num_workers=1)
    ours, theirs = (file_contents(tmp_path / name) for name in ("here", "there"))
    assert theirs["model.safetensors"] == ours["model.safetensors"]
    assert theirs.keys() == ours.keys()
    assert url in theirs["ckptlin.json"].decode()


def test_ingest_from_s3_gives_the_store_that_local_files_give(local, s3_bucket, tmp_path):
    url = upload(local, f"{s3_bucket}/run")
    ingest(local, tmp_path / "here")
    printed = call_json("ingest", url, tmp_path / "there", "--quiet")
    assert printed["steps_added"] == [10, 20, 30]
    ours, theirs = (file_contents(tmp_path / name) for name in ("here", "there"))
    assert theirs.keys() == ours.keys()
    assert {k for k in ours if ours[k] != theirs[k]} == {"zarr.json"}  # where the checkpoints came from
    store = TrajectoryStore(tmp_path / "there")
    assert store.checkpoints[0].source == f"{url}/checkpoint-10"
    assert_holds(store, {step: weights_at(step) for step in (10, 20, 30)})


def test_what_was_ingested_from_s3_is_known_again_and_a_changed_object_is_not(local, s3_bucket, tmp_path):
    url = upload(local, f"{s3_bucket}/run")
    ingest(url, tmp_path / "store")
    assert ingest(url, tmp_path / "store").present == (10, 20, 30)
    other = save_checkpoint(tmp_path / "other", weights_at(31))
    upload(other, f"{url}/checkpoint-30")  # of the same size, and within the same second
    assert "step 30 is in" in refusal("ingest", url, tmp_path / "store")
    result = ingest(url, tmp_path / "store", replace_steps=True)
    assert_holds(result.store, {10: weights_at(10), 20: weights_at(20), 30: weights_at(31)})


def test_an_object_that_changes_while_it_is_read_is_noticed(local, s3_bucket, tmp_path, monkeypatch):
    url = upload(local, f"{s3_bucket}/run")
    other = save_checkpoint(tmp_path / "other", weights_at(31))
    run = Threads.run

    def run_and_overwrite(*args, **kwargs):
        run(*args, **kwargs)
        upload(other, f"{url}/checkpoint-30")

    monkeypatch.setattr(Threads, "run", run_and_overwrite)
    with pytest.raises(CheckpointError, match=r"checkpoint step 30 \(s3://.*was changed while it was read"):
        ingest(url, tmp_path / "store")


def test_an_object_that_became_shorter_or_went_is_incomplete(local, s3_bucket):
    url = upload(local, f"{s3_bucket}/run")
    filesystem = S3FileSystem(use_listings_cache=False)
    path = f"{url}/checkpoint-30/model.safetensors".removeprefix("s3://")
    data = filesystem.cat_file(path)
    with discover(url) as run:
        checkpoint = run.checkpoints[2].checkpoint
        spec = checkpoint.tensors["model.embed_tokens.weight"]
        out = np.empty(spec.num_params, spec.dtype.bits)
        begin = checkpoint.headers[path.rpartition("/")[2]].offsets[spec.name]
        for length in (begin + 1, begin, 3):  # inside the range, at its beginning, before it
            filesystem.pipe_file(path, data[:length])
            with pytest.raises(IncompleteCheckpointError, match=f"ends inside tensor `{spec.name}`"):
                checkpoint.read_into(spec.name, 0, out)
        filesystem.rm_file(path)
        with pytest.raises(IncompleteCheckpointError, match="was deleted after the checkpoint was opened"):
            checkpoint.read_into(spec.name, 0, out)
        filesystem.pipe_file(path, data[:-1])
    with pytest.raises(IncompleteCheckpointError, match=r"s3://\S+/model.safetensors is cut short"):
        discover(url)
    with discover(url, skip_incomplete=True) as run:
        assert run.steps == (10, 20)
        assert str(run.skipped[0].path) == f"{url}/checkpoint-30"


def test_a_remote_checkpoint_cannot_be_mapped_and_prefetching_it_does_nothing(local, s3_bucket):
    with discover(upload(local, f"{s3_bucket}/run")) as run:
        checkpoint = run.checkpoints[0].checkpoint
        with pytest.raises(InputError, match=r"s3://.* cannot be mapped into memory; copy it there first"):
            checkpoint.memmap("model.norm.weight")
        checkpoint.prefetch("model.norm.weight", 0, 4)
    with pytest.raises(ValueError, match="its checkpoint was closed"):
        checkpoint.read_into("model.norm.weight", 0, np.empty(4, np.uint16))


def test_an_extrapolated_checkpoint_in_a_remote_run_is_refused(local, s3_bucket):
    (local / "checkpoint-30/ckptlin.json").write_text("{}")
    with pytest.raises(InputError, match="was extrapolated by ckptlin"):
        discover(upload(local, f"{s3_bucket}/run"))


def test_a_placeholder_of_a_directory_is_no_file_of_it(local, s3_bucket):
    url = upload(local, f"{s3_bucket}/run")
    filesystem = S3FileSystem(use_listings_cache=False)
    for directory in ("", "checkpoint-10/", "checkpoint-40/"):
        filesystem.call_s3("put_object", Bucket=s3_bucket.removeprefix("s3://"), Key=f"run/{directory}")
    with pytest.raises(IncompleteCheckpointError, match=r"step 40 \(s3://.*checkpoint-40\) holds no weights"):
        discover(url)
    assert discover(url, skip_incomplete=True).steps == (10, 20, 30)


@pytest.mark.parametrize(
    ("name", "what"),
    [("nothing", "{bucket}/nothing does not exist"), ("notes", "{bucket}/notes holds no checkpoint")],
)
def test_a_prefix_without_a_run_is_named(s3_bucket, tmp_path, name, what):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/notes.txt").write_text("nothing yet")
    upload(tmp_path / "notes", f"{s3_bucket}/notes")
    wanted = what.format(bucket=s3_bucket)
    said = refusal("fit", f"{s3_bucket}/{name}")
    assert said.startswith(f"{s3_bucket}/{name} is neither a trajectory store nor a run: {wanted}")
    assert refusal("ingest", f"{s3_bucket}/{name}", tmp_path / "store").startswith(wanted)


def test_a_missing_bucket_and_a_missing_checkpoint_are_named(s3_bucket, tmp_path):
    assert "s3://no-such-bucket/run does not exist" in refusal("fit", "s3://no-such-bucket/run")
    said = refusal("ingest", f"5={s3_bucket}/x", tmp_path / "store")
    assert said.startswith(f"{s3_bucket}/x, given as step 5, does not exist")
    with pytest.raises(CheckpointNotFoundError, match=r"the base model s3://.*/base does not exist"):
        discover(save_checkpoint(tmp_path / "step_1", weights_at(1)), base=f"{s3_bucket}/base")


def test_missing_credentials_are_told_in_one_sentence(s3_bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    S3FileSystem.clear_instance_cache()
    said = refusal("fit", f"{s3_bucket}/run")
    assert said.startswith(f"{s3_bucket}/run cannot be read: Unable to locate credentials; check")


def test_denied_access_is_told_in_one_sentence(s3_bucket, monkeypatch):
    async def deny(*args, **kwargs):
        raise PermissionError("Access\nDenied.")

    monkeypatch.setattr(S3FileSystem, "_info", deny)
    S3FileSystem.clear_instance_cache()  # instances keep the methods that they were made with
    said = refusal("ingest", f"{s3_bucket}/run", "store")
    assert said.startswith(f"{s3_bucket}/run cannot be read: Access Denied; check the address, the credentials")


def test_a_service_that_does_not_answer_is_told_in_one_sentence(s3_bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    S3FileSystem.clear_instance_cache()
    assert refusal("fit", f"{s3_bucket}/run").startswith(f"{s3_bucket}/run cannot be read: Could not connect")


def test_a_protocol_without_its_package_is_told_in_one_sentence():
    assert "cannot be opened" in refusal("fit", "nothing://bucket/run")
