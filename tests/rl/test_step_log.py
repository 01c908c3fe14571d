"""What is written of each step: read back by ours, by Python's csv, and by TensorBoard itself."""

import csv
import math
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import CheckpointError, MissingExtraError
from ckptlin.rl.config import LogConfig
from ckptlin.rl.run_directory import open_run
from ckptlin.rl.state import JumpRecord, TrainState
from ckptlin.rl.step_log import Listeners, StepLog, StepRow, check_log, read_log
from tests.run_directories import CONFIG, VERSIONS
from tests.step_rows import row_at

SILENT = replace(CONFIG, log=LogConfig(tensorboard=False))


def state_at(step):
    return TrainState(Path(), step=step)


@pytest.fixture
def run(tmp_path):
    with open_run(tmp_path / "run", SILENT, versions=VERSIONS) as run:
        yield run


@pytest.fixture
def watched_run(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard reads its own files back")
    with open_run(tmp_path / "run", CONFIG, versions=VERSIONS) as run:
        yield run


rows = st.builds(
    StepRow,
    **{
        field.name: st.integers(0, 2**62)
        if field.type is int
        else st.floats(allow_nan=False) | st.none()
        if "None" in str(field.type)
        else st.floats(allow_nan=False)
        for field in fields(StepRow)
    },
)


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    with open_run(tmp_path_factory.mktemp("log") / "run", SILENT, versions=VERSIONS) as run:
        yield run


@given(st.lists(rows, max_size=5))
def test_rows_are_read_as_they_were_written(old_run, written):
    old_run.log_path.unlink(missing_ok=True)
    with StepLog(old_run, state_at(0)) as log:
        for row in written:
            log.on_step(row)
    assert read_log(old_run.log_path) == written


def test_other_programs_read_the_table(run):
    with StepLog(run, state_at(0)) as log:
        for step in (1, 2):
            log.on_step(row_at(step, reward=None, loss=math.nan))
    with run.log_path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["1", "2"]
    assert table[0]["reward"] == table[0]["kl_start"] == ""
    assert math.isnan(float(table[0]["loss"]))
    assert float(table[1]["entropy"]) == 0.7
    assert list(table[0]) == list(asdict(row_at(1)))


def test_what_will_be_made_again_is_removed(run):
    with StepLog(run, state_at(0)) as log:
        for step in range(1, 8):
            log.on_step(row_at(step, reward=0.1))
    with StepLog(run, state_at(4)) as log:
        assert [row.step for row in read_log(run.log_path)] == [1, 2, 3, 4]
        log.on_step(row_at(5, reward=0.2))
    assert [row.reward for row in read_log(run.log_path)] == [0.1] * 4 + [0.2]


def test_a_line_that_a_kill_cut_off_is_left_out_wherever_it_was_cut(run):
    with StepLog(run, state_at(0)) as log:
        for step in (1, 2, 3):
            log.on_step(row_at(step))
    whole = run.log_path.read_bytes()
    third = whole.rindex(b"3,3,6")
    for end in range(third, len(whole)):
        run.log_path.write_bytes(whole[:end])
        assert [row.step for row in read_log(run.log_path)] == [1, 2], whole[third:end]
    run.log_path.write_bytes(whole[:40])
    assert read_log(run.log_path) == []


def test_a_row_is_on_the_disk_when_the_step_is_over(run):
    with StepLog(run, state_at(0)) as log:
        log.on_step(row_at(1))
        assert read_log(run.log_path) == [row_at(1)]


def test_without_a_log_there_are_no_rows(tmp_path):
    assert read_log(tmp_path / "log.csv") == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("step,loss\r\n1,2\r\n", "other columns"),
        ("{columns}\r\n{row},5\r\n", "line 2 of .* is no step"),
        ("{columns}\r\n{row}\r\nx{row}\r\n", "line 3 of .* is no step"),
        ("{columns}\r\n,{row}\r\n", "line 2"),
    ],
)
def test_a_log_that_is_damaged_or_of_another_version_is_not_emptied_in_silence(run, content, expected):
    with StepLog(run, state_at(0)) as log:
        log.on_step(row_at(1))
    columns, row = run.log_path.read_text().splitlines()
    run.log_path.write_text(content.format(columns=columns, row=row))
    before = run.log_path.read_bytes()
    with pytest.raises(CheckpointError, match=expected):
        StepLog(run, state_at(1))
    assert run.log_path.read_bytes() == before


def scalars(run, tag):
    """Read a figure as TensorBoard shows it: values by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own
        found = EventAccumulator(str(run.tensorboard_path))
        found.Reload()
    if tag not in found.Tags()["scalars"]:
        return {}
    return {event.step: pytest.approx(event.value, rel=1e-6) for event in found.Scalars(tag)}


def test_tensorboard_shows_every_figure_that_was_taken(watched_run):
    with StepLog(watched_run, state_at(0)) as log:
        for step in (1, 2):
            log.on_step(row_at(step))
    expected = asdict(row_at(2))
    for name, value in expected.items():
        shown = scalars(watched_run, f"train/{name}")
        assert shown.get(2) == (None if name == "step" else value), name


def test_tensorboard_shows_what_was_made_again_and_not_what_it_replaced(watched_run):
    with StepLog(watched_run, state_at(0)) as log:
        for step in range(1, 8):
            log.on_step(row_at(step, reward=0.1))
    with StepLog(watched_run, state_at(4)) as log:
        log.on_step(row_at(5, reward=0.2))
    assert scalars(watched_run, "train/reward") == {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.1, 5: 0.2}
    with StepLog(watched_run, state_at(0)) as log:  # killed before its first resume point
        log.on_step(row_at(1, reward=0.3))
    assert scalars(watched_run, "train/reward") == {1: 0.3}


def test_tensorboard_marks_jumps(watched_run):
    jump = JumpRecord(4, 14, 4, "two-point", (0, 4), 14)
    with StepLog(watched_run, state_at(0)) as log:
        log.on_jump(jump, undone=False)
        log.on_jump(replace(jump, step=8, from_step=18, to_step=38), undone=True)
    assert scalars(watched_run, "jump/virtual_steps") == {4: 10}
    assert scalars(watched_run, "jump/undone") == {8: 20}


def test_without_tensorboard_nothing_of_it_is_written(run):
    with StepLog(run, state_at(0)) as log:
        log.on_step(row_at(1))
        log.on_jump(JumpRecord(4, 14, 4, "two-point", (0, 4), 14), undone=False)
    assert not run.tensorboard_path.exists()


def test_wandb_is_asked_for_by_name_where_it_is_not_installed():
    try:
        import wandb  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("it is installed")
    with pytest.raises(MissingExtraError, match=r"log\.wandb needs wandb"):
        check_log(LogConfig(tensorboard=False, wandb=True))


def test_listeners_are_told_in_their_order():
    told = []

    class Told:
        def __init__(self, name):
            self.name = name

        def on_step(self, row):
            told.append((self.name, row.step))

        def on_checkpoint(self, virtual_step, path):
            told.append((self.name, virtual_step, path))

        def on_jump(self, jump, *, undone):
            told.append((self.name, jump.to_step, undone))

    both = Listeners([Told("a"), Told("b")])
    both.on_step(row_at(3))
    both.on_checkpoint(3, Path("checkpoint-3"))
    both.on_jump(JumpRecord(4, 14, 4, "ols", (0, 4), 14), undone=True)
    assert told == [
        ("a", 3),
        ("b", 3),
        ("a", 3, Path("checkpoint-3")),
        ("b", 3, Path("checkpoint-3")),
        ("a", 14, True),
        ("b", 14, True),
    ]
