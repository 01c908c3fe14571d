"""Runs in which training went on from extrapolated checkpoints: read, ingested, appended to, and warned of."""

import json
import pickle
import shutil
import signal
from dataclasses import replace

import fsspec
import numpy as np
import pytest

from ckptlin.backtest import backtest
from ckptlin.checkpoints import discover
from ckptlin.errors import InputError, NotAStoreError, SelectionError
from ckptlin.extrapolate import extrapolate
from ckptlin.fit import fit, plan_fit, read_summary
from ckptlin.gram import gram
from ckptlin.info import info
from ckptlin.ingest import ingest
from ckptlin.ingest_plan import plan_ingest
from ckptlin.segments import TRAIN_RECORD_NAME, Jump, segments_of
from ckptlin.selection import select_window
from ckptlin.source import open_source
from ckptlin.store.store import TrajectoryStore
from ckptlin.verify import verify
from tests.command_line import call, call_json, refusal
from tests.jumping_runs import jump, train, write_jumps
from tests.runs import assert_holds, save_checkpoint, weights_at
from tests.s3 import upload

SEGMENTS = ((0, 10, 20), (40, 50, 60), (80, 90, 100, 110))
STEPS = tuple(step for part in SEGMENTS for step in part)
JUMPS = (Jump(20, 40, "two-point"), Jump(60, 80, "ols"))
CROSSED = (
    "steps 0 to 110 cross 2 jumps, the last from step 60 to 80 (ols), which were extrapolated and not trained"
)
INSIDE = "--steps 80:110 stays inside their last segment"
ONE = Jump(20, 40, "two-point")


@pytest.fixture(scope="module")
def _prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("jumped")
    train(root / "run", SEGMENTS[0])
    jump(root / "run", 40)
    train(root / "run", SEGMENTS[1][1:])
    jump(root / "run", 80, "ols")
    train(root / "run", SEGMENTS[2][1:])
    ingest(root / "run", root / "run.store", num_workers=1)
    return root


@pytest.fixture
def here(_prepared, tmp_path, monkeypatch):
    """The current directory, with a run of two jumps at ``run`` and its store at ``run.store``."""
    shutil.copytree(_prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Notes:
    """Keeps what an operation says."""

    def __init__(self):
        self.said = []

    def phase(self, title, num_bytes):
        from ckptlin.progress import NO_PROGRESS

        return NO_PROGRESS.phase(title, num_bytes)

    def note(self, message):
        self.said.append(message)


def notes_of(*words):
    """Run a command; return its notes on stderr, and nothing else may stand there."""
    lines = call(*words).stderr.splitlines()
    assert all(line.startswith("note: ") for line in lines)
    return [line.removeprefix("note: ") for line in lines]


def plain(jumps):
    return [jump.to_dict() for jump in jumps]


# Reading


@pytest.mark.parametrize("source", ["run", "run.store"])
def test_a_run_and_its_store_know_their_jumps(here, source):
    opened = open_source(source)
    assert opened.steps == STEPS
    assert opened.jumps == JUMPS
    assert segments_of(opened.steps, opened.jumps) == SEGMENTS
    assert pickle.loads(pickle.dumps(opened)).jumps == JUMPS


def test_a_checkpoint_that_no_jump_leads_to_is_refused_as_before(here):
    assert (here / "run/checkpoint-40/ckptlin.json").exists()
    write_jumps(here / "run", plain(JUMPS[1:]))
    with pytest.raises(InputError, match=r"checkpoint step 40 \(.*\) was extrapolated by ckptlin, not trained"):
        discover("run")
    (here / "run" / TRAIN_RECORD_NAME).unlink()
    assert "was extrapolated by ckptlin, not trained" in refusal("fit", "run")


def test_checkpoints_that_are_given_one_by_one_keep_their_jumps_and_others_do_not(here):
    paths = [f"run/checkpoint-{step}" for step in (10, 20, 40, 50)]
    assert open_source(paths).jumps == JUMPS[:1]
    assert open_source([f"{step}={path}" for step, path in zip((10, 20, 40, 50), paths, strict=True)]).jumps
    # Of other steps than their own, the record says nothing.
    renamed = [f"{step}={path}" for step, path in zip((1, 2, 4, 5), paths, strict=True)]
    assert discover(renamed).jumps == ()
    assert open_source(["20=run/checkpoint-20", "80=run/checkpoint-80"]).jumps == JUMPS


def test_the_base_model_may_lie_in_another_run(here, make_run):
    make_run([10, 20], name="own")
    write_jumps(here / "own", [])
    save_checkpoint(here / "other/checkpoint-0", weights_at(0))
    write_jumps(here / "other", plain([Jump(10, 20, "ols")]))
    assert discover("own", base="other/checkpoint-0").jumps == ()


def test_the_record_is_found_from_inside_the_run(here, monkeypatch):
    monkeypatch.chdir(here / "run")
    assert open_source(".").jumps == JUMPS
    monkeypatch.chdir(here / "run/checkpoint-60")
    assert discover(".").jumps == JUMPS
    assert discover([".", "../checkpoint-80"]).steps == (60, 80)


# Saying so


@pytest.mark.parametrize("source", ["run", "run.store"])
def test_a_fit_across_jumps_says_so_and_one_inside_a_segment_does_not(here, source):
    consequence = "so R² and slopes take the extrapolation for training"
    for words in (["fit", source], ["fit", source, "--dry-run"]):
        assert notes_of(*words) == [f"{CROSSED}, {consequence}; {INSIDE}"]
    for words in (["--dry-run"], []):
        data = call_json("fit", source, *words)
        assert data["segments"] == [list(part) for part in SEGMENTS]
        assert data["jumps"] == plain(JUMPS)
        assert data["crosses_jump"] is True
    for window in (["--steps", "80:110"], ["--segment", "last"], ["--segment", "3"]):
        assert notes_of("fit", source, *window) == []
        data = call_json("fit", source, *window)
        assert data["steps"] == [80, 90, 100, 110]
        assert (data["segments"], data["jumps"], data["crosses_jump"]) == ([data["steps"]], [], False)


def test_a_segment_is_fitted_as_if_its_checkpoints_were_all_there_is(here):
    alone = fit(open_source([f"{step}=run/checkpoint-{step}" for step in SEGMENTS[1]]), num_workers=1)
    for source in ("run", "run.store"):
        found = fit(open_source(source), segment=2, keep=False, num_workers=1)
        assert found.summary.to_dict() == alone.summary.to_dict()
        assert found.jumps == ()


def test_a_library_call_tells_whoever_listens_once(here):
    notes = Notes()
    result = fit(TrajectoryStore("run.store"), steps="10:50", num_workers=1, progress=notes)
    (said,) = notes.said
    assert said.startswith("steps 10 to 50 cross the jump from step 20 to 40 (two-point), which was")
    assert said.endswith("; --steps 40:50 stays inside their last segment")
    assert result.jumps == JUMPS[:1]


@pytest.mark.parametrize("source", ["run", "run.store"])
def test_gram_matrices_across_jumps_say_so(here, source):
    assert notes_of("gram", source) == [
        f"{CROSSED}, so these figures take the extrapolation for training; {INSIDE}"
    ]
    data = call_json("gram", source)
    assert data["segments"] == [list(part) for part in SEGMENTS]
    assert data["crosses_jump"] is True
    assert call_json("gram", source, "--dry-run")["jumps"] == plain(JUMPS)
    assert notes_of("gram", source, "--segment", "1") == []
    assert call_json("gram", source, "--segment", "1")["steps"] == [0, 10, 20]


@pytest.mark.parametrize("source", ["run", "run.store"])
def test_a_backtest_across_jumps_says_that_it_misleads(here, source):
    misled = "so predictions whose origin and target lie on two sides of a jump mislead"
    words = ["backtest", source, "--methods", "two-point,ols"]
    assert notes_of(*words) == [f"{CROSSED}, {misled}; {INSIDE}"]
    data = call_json(*words)
    assert data["segments"] == [list(part) for part in SEGMENTS]
    assert data["crosses_jump"] is True
    assert notes_of(*words, "--segment", "last") == []
    assert call_json(*words, "--segment", "last")["crosses_jump"] is False
    # Three checkpoints are too few for a backtest, so the first two segments are not proposed.
    assert notes_of(*words, "--steps", "0:60")[0].endswith("; none of their 2 segments has 4 checkpoints")


def test_across_a_jump_the_method_that_made_it_is_always_right(here):
    """Why a backtest across a jump misleads, seen in the run itself."""
    scores = backtest(gram(open_source("run")), ["two-point"]).scores
    (pair,) = np.flatnonzero((scores.origins == 3) & (scores.held_out == STEPS.index(40)))
    assert scores.skill("two-point")[pair] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("source", ["run", "run.store"])
def test_an_extrapolation_across_jumps_says_so_in_its_record_and_its_card(here, source):
    told = f"{CROSSED}, so the method takes the extrapolation for training; {INSIDE}"
    words = ["extrapolate", source, "--step", "120", "--method", "ols"]
    assert notes_of(*words, "--out", "a", "--dry-run") == [told]
    assert notes_of(*words, "--out", "a") == [told]
    record = json.loads((here / "a/ckptlin.json").read_text())
    assert record["segments"] == [list(part) for part in SEGMENTS]
    assert record["jumps"] == plain(JUMPS)
    assert record["crosses_jump"] is True
    assert f"**Warning:** {told}." in (here / "a/README.md").read_text()
    assert notes_of(*words, "--out", "b", "--segment", "last") == []
    data = call_json(*words, "--out", "c", "--segment", "last")
    assert (data["window"], data["crosses_jump"]) == ([80, 90, 100, 110], False)
    assert data["warnings"] == []


def test_what_auto_goes_by_across_a_jump_is_said_to_mislead(here):
    gram(TrajectoryStore("run.store"), num_workers=1)
    for out, method in (("a", "auto"), ("b", "ols")):  # of ols too, the store's matrices tell a skill to expect
        said = notes_of("extrapolate", "run.store", "--step", "120", "--method", method, "--out", out)
        (told,) = [line for line in said if "jump" in line]
        assert "judged by origins and targets on two sides of a jump, misleads" in told
    said = notes_of("extrapolate", "run.store", "--step", "120", "--out", "c", "--segment", "last")
    assert not any("jump" in line for line in said)


def test_what_is_copied_or_lies_in_one_segment_crosses_nothing(here):
    for words in (["--method", "persistence"], ["--method", "two-point", "--from", "80", "--to", "110"]):
        result = call("extrapolate", "run", "--step", "115", "--out", "out", "--overwrite", *words)
        assert result.stderr == ""
        assert json.loads((here / "out/ckptlin.json").read_text())["crosses_jump"] is False


def test_info_shows_the_segments_and_which_fits_cross_a_jump(here):
    store = TrajectoryStore("run.store")
    fit(store, num_workers=1, gram=True)
    fit(TrajectoryStore("run.store"), name="second", segment=2, num_workers=1, maps={})
    found = call_json("info", "run.store")
    assert found["segments"] == [list(part) for part in SEGMENTS]
    assert found["jumps"] == plain(JUMPS)
    assert {f["name"]: f["crosses_jump"] for f in found["fits"]} == {"default": True, "second": False}
    assert found["gram"]["crosses_jump"] is True
    shown = call("info", "run.store").stdout
    assert "1: 3 steps, 0 to 20; 2: 3 steps, 40 to 60; 3: 4 steps, 80 to 110" in shown
    assert "from step 20 to 40 (two-point); from step 60 to 80 (ols)" in shown
    assert shown.count("; crosses a jump") == 2
    assert read_summary(TrajectoryStore("run.store"), "second").steps == SEGMENTS[1]


def test_without_jumps_nothing_is_said_of_any(make_run, tmp_path):
    ingest(make_run([0, 10]), tmp_path / "store", num_workers=1)
    document = json.loads((tmp_path / "store/zarr.json").read_text())
    assert "jumps" not in document["attributes"]["ckptlin"]
    shown = call("info", tmp_path / "store").stdout
    assert not {"segments", "jumps"} & {line.split()[0] for line in shown.splitlines()}
    data = call_json("fit", tmp_path / "store", "--segment", "last")
    assert (data["segments"], data["crosses_jump"]) == ([[0, 10]], False)


# Choosing a segment


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (
            ["--segment", "4"],
            "segment 4 does not exist; run.store has 3 segments (1: 3 steps, 0 to 20; 2: 3 steps",
        ),
        (["--segment", "0"], "--segment '0' is no segment; write its number, from 1 on, or last"),
        (["--segment", "first"], "--segment 'first' is no segment"),
        (["--segment", "-1"], "--segment '-1' is no segment"),
        (
            ["--segment", "last", "--steps", "0:20"],
            "--steps 0:20 and --segment last both choose the steps to use",
        ),
    ],
)
@pytest.mark.parametrize("command", ["fit", "gram", "backtest", "extrapolate"])
def test_a_segment_that_does_not_exist_is_refused(here, command, window, message):
    target = ["--step", "120", "--out", "out"] if command == "extrapolate" else []
    assert refusal(command, "run.store", *target, *window).replace(f"{here}/", "").startswith(message)


def test_a_segment_of_one_checkpoint_has_no_line(here):
    source = open_source([f"run/checkpoint-{step}" for step in (10, 20, 40)])
    assert select_window(source, segment=2) == (2,)
    with pytest.raises(InputError, match=r"a fit needs at least 2 .* has only one in --segment last"):
        plan_fit(source, segment="last")
    with pytest.raises(InputError, match=r"Gram matrices need at least 2 .* has only one in --segment 2"):
        gram(source, segment=2)
    (warning,) = plan_fit(source).warnings
    assert warning.endswith("; --steps 10:20 stays inside their last segment of at least 2 checkpoints")
    with pytest.raises(SelectionError, match="segment 3 does not exist"):
        extrapolate(source, 50, here / "out", segment=3)


# Ingesting


def test_what_a_store_says_of_jumps_grows_with_the_run(here):
    jump(here / "run", 130, "two-point")
    train(here / "run", [140])
    third = Jump(110, 130, "two-point")
    plan = call_json("ingest", "run", "run.store", "--dry-run")
    assert plan["jumps_added"] == plain([third])
    assert (
        "would note  from step 110 to 130 (two-point)" in call("ingest", "run", "run.store", "--dry-run").stdout
    )
    shown = call("ingest", "run", "run.store").stdout
    assert "jumps noted  from step 110 to 130 (two-point)" in shown
    store = TrajectoryStore("run.store")
    assert store.jumps == (*JUMPS, third)
    assert segments_of(store.steps, store.jumps) == (*SEGMENTS, (130, 140))
    assert verify(store, num_workers=1).problems == ()
    again = call_json("ingest", "run", "run.store")
    assert (again["steps_added"], again["jumps_added"], again["jumps"]) == ([], [], plain(store.jumps))


def test_checkpoints_that_are_appended_one_at_a_time_bring_their_jumps(here):
    for step in STEPS:
        ingest(f"run/checkpoint-{step}", "other.store", num_workers=1)
    assert TrajectoryStore("other.store").jumps == JUMPS
    at_once = json.loads((here / "run.store/zarr.json").read_text())["attributes"]["ckptlin"]
    one_by_one = json.loads((here / "other.store/zarr.json").read_text())["attributes"]["ckptlin"]
    assert one_by_one["jumps"] == at_once["jumps"]


def test_a_jump_whose_checkpoint_is_not_there_yet_waits_for_it(make_run, tmp_path):
    run = make_run([0, 20])
    write_jumps(run, plain([ONE]))
    assert ingest(run, tmp_path / "store", num_workers=1).jumps_added == ()
    assert TrajectoryStore(tmp_path / "store").jumps == ()
    result = ingest(make_run([40]), tmp_path / "store", num_workers=1)
    assert result.jumps_added == (ONE,)
    assert result.store.jumps == (ONE,)


def test_a_jump_between_checkpoints_that_are_gone_divides_those_around_it(make_run, tmp_path):
    run = make_run([10, 50])
    write_jumps(run, plain([ONE]))
    assert segments_of((10, 50), open_source(run).jumps) == ((10,), (50,))
    assert ingest(run, tmp_path / "store", num_workers=1).store.jumps == (ONE,)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_jump_that_is_recorded_later_is_noted_without_reading_a_weight(make_run, tmp_path, where):
    fsspec.filesystem("memory").store.clear()
    location = tmp_path / "store" if where == "local" else "memory://stores/jumped.store"
    run = make_run([0, 20, 40])
    before = fit(ingest(run, location, num_workers=1).store, num_workers=1)
    write_jumps(run, plain([ONE]))
    (run / "checkpoint-20/model.safetensors").touch()  # is compared by content, and read for that alone
    plan = plan_ingest(run, location)
    assert (plan.added, plan.bytes_in, plan.jumps_added) == ((), 0, (ONE,))
    shown = call("ingest", run, location).stdout
    assert "added        no steps" in shown
    assert "jumps noted  from step 20 to 40 (two-point)" in shown
    store = TrajectoryStore(location)
    assert store.jumps == (ONE,)
    assert_holds(store, {step: weights_at(step) for step in (0, 20, 40)})
    assert read_summary(store).to_dict() == before.summary.to_dict()  # fits stay
    assert "nothing: the store is up to date" in call("ingest", run, location).stdout
    assert TrajectoryStore(location).record.commit == store.record.commit


def test_a_replaced_checkpoint_takes_the_jump_to_it_along_unless_its_run_has_one(make_run, tmp_path):
    run, store = make_run([0, 20, 40, 60]), tmp_path / "store"
    second = Jump(40, 60, "ols")
    write_jumps(run, plain([ONE, second]))
    assert ingest(run, store, num_workers=1).store.jumps == (ONE, second)
    # Trained after all: the jump was taken back, and the record says so.
    save_checkpoint(run / "checkpoint-40", weights_at(41))
    write_jumps(run, plain([second]))
    assert ingest(run, store, replace_steps=True, num_workers=1).store.jumps == (second,)
    # Another jump in the place of the former.
    save_checkpoint(run / "checkpoint-60", weights_at(61))
    other = Jump(40, 60, "relex:rank=1")
    write_jumps(run, plain([other]))
    result = ingest(run, store, replace_steps=True, num_workers=1)
    assert (result.jumps_added, result.store.jumps) == ((other,), (other,))
    # The first step of a run may be replaced without a word of what came after.
    save_checkpoint(run / "checkpoint-0", weights_at(1))
    assert ingest(run / "checkpoint-0", store, replace_steps=True, num_workers=1).store.jumps == (other,)
    assert verify(TrajectoryStore(store), num_workers=1).problems == ()


def test_steps_that_are_added_in_between_leave_the_jumps(make_run, tmp_path):
    run = make_run([0, 20, 40])
    write_jumps(run, plain([ONE]))
    ingest(run, tmp_path / "store", num_workers=1)
    result = ingest(make_run([10], name="earlier"), tmp_path / "store", num_workers=1)
    assert result.store.steps == (0, 10, 20, 40)
    assert result.store.jumps == (ONE,)


@pytest.mark.parametrize("added", [(40, 50), ()], ids=["with steps", "alone"])
def test_a_writer_that_is_killed_leaves_steps_and_jumps_of_one_commit(make_run, tmp_path, forked, added):
    small = {"model.norm.weight": ((4,), np.float32)}
    run = make_run([0, 20] if added else [0, 20, 40], model=small)
    ingest(run, tmp_path / "base", num_workers=1)
    make_run(added, model=small)
    write_jumps(run, plain([ONE]))
    work = tmp_path / "work"

    def call_on_a_copy(**kwargs):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tmp_path / "base", work)
        outcome = forked.call("ckptlin.ingest:ingest", run, work, num_workers=1, **kwargs)
        return outcome, TrajectoryStore(work)

    outcome, done = call_on_a_copy()
    assert outcome.error == ""
    next_state, previous = (done.steps, (ONE,)), (TrajectoryStore(tmp_path / "base").steps, ())
    assert done.jumps == (ONE,)
    seen = []
    for operation in range(outcome.num_operations, 0, -3 if added else -1):
        killed, store = call_on_a_copy(die_at=operation)
        assert killed.signal == signal.SIGKILL
        seen.append((store.steps, store.jumps))
        again = forked.call("ckptlin.ingest:ingest", run, work, num_workers=1)
        assert again.error == ""
        assert (TrajectoryStore(work).steps, TrajectoryStore(work).jumps) == next_state
    assert set(seen) == {previous, next_state}
    assert seen == sorted(
        seen, key=lambda state: state == previous
    )  # from the last operation back to the first


def test_a_store_whose_jumps_are_garbled_is_refused_in_a_sentence(here):
    root = here / "run.store/zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["ckptlin"]["jumps"][0]["to"] = 5
    root.write_text(json.dumps(document))
    with pytest.raises(NotAStoreError, match="garbles what a trajectory store says of itself"):
        TrajectoryStore("run.store")


def test_a_writer_that_does_not_know_of_jumps_loses_nothing_for_good(here):
    root = here / "run.store/zarr.json"
    document = json.loads(root.read_text())
    del document["attributes"]["ckptlin"]["jumps"]
    root.write_text(json.dumps(document))
    assert TrajectoryStore("run.store").jumps == ()
    assert ingest("run", "run.store", num_workers=1).store.jumps == JUMPS


# At a URL, and garbled


def test_a_run_and_a_store_at_a_url_have_their_jumps(here):
    fsspec.filesystem("memory").store.clear()
    run, store = upload(here / "run", "memory://runs/jumped"), "memory://stores/jumped.store"
    assert open_source(run).jumps == JUMPS
    assert open_source([f"{run}/checkpoint-{step}" for step in (20, 40)]).jumps == JUMPS[:1]
    assert notes_of("fit", run)[0].startswith(CROSSED)
    items = [f"{run}/checkpoint-{step}" for step in STEPS[:4]]
    assert call_json("ingest", *items, store)["jumps"] == plain(JUMPS[:1])
    assert call_json("ingest", run, store)["jumps_added"] == plain(JUMPS[1:])
    assert info(TrajectoryStore(store)).segments == tuple(map(list, SEGMENTS))
    assert notes_of("fit", store)[0].startswith(CROSSED)
    assert notes_of("fit", store, "--segment", "1") == []


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_garbled_record_stops_every_command_that_reads_the_run(make_run, tmp_path, where):
    run = make_run([0, 20, 40])
    (run / TRAIN_RECORD_NAME).write_text('{"jumps": [{"from": 20}]}')
    fsspec.filesystem("memory").store.clear()
    location = str(run) if where == "local" else upload(run, "memory://runs/garbled")
    wanted = (
        f"entry 1 of `jumps` in {location}/{TRAIN_RECORD_NAME} cannot be read: a jump lacks `to`; restore the"
    )
    for words in (["ingest", location, tmp_path / "store"], ["fit", location], ["gram", location]):
        assert refusal(*words).startswith(wanted)
    assert not (tmp_path / "store").exists()


def test_the_record_of_a_store_keeps_its_jumps_when_a_fit_is_committed(here):
    store = TrajectoryStore("run.store")
    fit(store, num_workers=1)
    gram(TrajectoryStore("run.store"), num_workers=1)
    after = TrajectoryStore("run.store").record
    assert after.jumps == JUMPS
    assert replace(after, commit=0, fits={}, gram=None) == replace(store.record, commit=0, fits={}, gram=None)
