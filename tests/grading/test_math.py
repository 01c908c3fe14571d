import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from ckptlin.errors import GradingError, InputError, SelectionError
from ckptlin.grading import Completion, open_grader
from ckptlin.grading import workers as workers_module
from ckptlin.problems import Problem

pytest.importorskip("math_verify", reason="compares answers; the extra `eval` has it")

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "math_pairs.jsonl").read_text().splitlines()]
# Where the grader and the person who wrote the pairs disagree, and why it stays so.
KNOWN_DISAGREEMENTS = {
    "boxes 16": "words before the answer, inside the box, are read as part of it",
    "notation 1": "a decimal that repeats is cut off where it is written",
    "notation 26": "three letters are a word, and no product",
    "notation 31": "a root of -1 is not taken for i",
}


def completed(text) -> Completion:
    return Completion(text, True)


@pytest.fixture(scope="module")
def grader():
    with open_grader("math", num_workers=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def hasty():
    """A grader that soon loses patience."""
    with open_grader("math", num_workers=1, time_limit_s=1, memory="1GiB") as opened:
        yield opened


def test_the_pairs_are_many_and_of_every_kind():
    assert len(PAIRS) >= 150
    assert len({pair["name"] for pair in PAIRS}) == len(PAIRS)
    kinds = Counter(pair["name"].rpartition(" ")[0] for pair in PAIRS)
    assert set(kinds) >= {
        "intervals", "fractions", "units", "boxes", "percentages", "sets", "degenerate", "thousands",
        "plus-minus", "matrices", "text",
    }  # fmt: skip
    named = ("intervals", "fractions", "units", "boxes", "percentages", "sets", "degenerate")
    assert min(kinds[trap] for trap in named) >= 10
    # A grader that always says the same must not look good.
    assert 0.25 < sum(not pair["equal"] for pair in PAIRS) / len(PAIRS) < 0.5


def test_the_grader_agrees_with_a_person_on_all_pairs_but_those_that_are_known(grader):
    given = [completed(pair.get("completion") or rf"\boxed{{{pair['answer']}}}") for pair in PAIRS]
    scores = grader.grade(given, [Problem("?", pair["gold"]) for pair in PAIRS])
    wrong = {p["name"] for p, score in zip(PAIRS, scores, strict=True) if score != p["equal"]}
    assert wrong == set(KNOWN_DISAGREEMENTS)
    assert (len(PAIRS) - len(wrong), len(PAIRS)) == (246, 250)  # the figures in docs/problems.md
    assert grader.notes == []


def test_what_holds_of_a_pair_does_not_depend_on_its_company(grader):
    pairs = PAIRS[::7]
    given = [completed(pair.get("completion") or rf"\boxed{{{pair['answer']}}}") for pair in pairs]
    problems = [Problem("?", pair["gold"]) for pair in pairs]
    together = grader.grade(given, problems)
    backwards = grader.grade(given[::-1], problems[::-1])
    assert together == backwards[::-1]
    assert together == [grader.grade([one], [problem])[0] for one, problem in zip(given, problems, strict=True)]


def test_without_a_box_it_is_wrong_unless_the_last_expression_is_asked_for():
    given, problems = [completed("It is 4, so 5.")], [Problem("?", "5")]
    with open_grader("math", num_workers=1) as strict, open_grader("math", no_box="last-expression") as lenient:
        assert strict.grade(given, problems) == [0.0]
        assert lenient.grade(given, problems) == [1.0]
        assert lenient.grade([completed(r"\boxed{4}, or 5")], problems) == [0.0]


def test_several_boxes_that_belong_together_are_one_answer(grader):
    both = [completed(r"$\boxed{1}$ and $\boxed{2}$")]
    with open_grader("math", several="last", num_workers=1) as last:
        assert grader.grade(both * 2, [Problem("?", "1, 2"), Problem("?", "2")]) == [1.0, 0.0]
        assert last.grade(both * 2, [Problem("?", "1, 2"), Problem("?", "2")]) == [0.0, 1.0]


def test_what_was_cut_off_is_wrong_only_where_that_is_asked_for(grader):
    given, problems = [Completion(r"\boxed{5}, and", False)], [Problem("?", "5")]
    assert grader.grade(given, problems) == [1.0]
    with open_grader("math", require_finished=True, num_workers=1) as strict:
        assert strict.grade(given, problems) == [0.0]


def test_an_answer_that_hangs_is_killed_counted_and_said_and_the_others_are_graded(hasty):
    hanging = completed(r"\boxed{9^{9^{9^{9}}}}")
    fine = completed(r"\boxed{\frac{10}{2}}")
    problems = [Problem("?", "5")] * 4
    assert hasty.grade([fine, hanging, hanging, fine], problems) == [1.0, 0.0, 0.0, 1.0]
    (note,) = hasty.notes
    assert "2 of 4 answers" in note
    assert "count as wrong" in note
    assert "1 s to compare" in note or "GiB to compare" in note or "ended the process" in note


def test_it_works_off_the_main_thread(grader):
    scores = []
    thread = threading.Thread(
        target=lambda: scores.extend(grader.grade([completed(r"\boxed{2/4}")], [Problem("?", "0.5")]))
    )
    thread.start()
    thread.join()
    assert scores == [1.0]


def test_a_process_that_somebody_else_killed_is_replaced(grader):
    given, problems = [completed(r"\boxed{3/6}")], [Problem("?", "0.5")]
    grader.grade(given, problems)
    for worker in grader._pool._workers:
        if worker._process is not None:
            worker._process.kill()
            worker._process.wait()
    assert grader.grade(given, problems) == [1.0]
    assert grader.notes == []


def test_closing_it_ends_its_processes():
    with open_grader("math", num_workers=1) as opened:
        opened.grade([completed(r"\boxed{3/6}")], [Problem("?", "0.5")])
        process = opened._pool._workers[0]._process
        assert process.poll() is None
    assert process.poll() is not None


def test_what_is_plainly_right_needs_no_process():
    with open_grader("math", num_workers=1) as opened:
        assert opened.grade([completed(r"\boxed{ 5 }"), completed("none")], [Problem("?", "5")] * 2) == [
            1.0,
            0.0,
        ]
        assert opened._pool._workers[0]._process is None


def test_a_worker_that_does_not_start_is_told():
    pool = workers_module.WorkerPool("ckptlin.grading.no_such_worker", [], num_workers=1, wall_s=1)
    with pytest.raises(GradingError, match=r"did not start; `.*no_such_worker` in a shell shows why"):
        pool.ask([1])


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"several": "first"}, InputError, "several of the grader math is 'first'; choose joined or last"),
        ({"no_box": "right"}, InputError, "no_box of the grader math is 'right'"),
        ({"time_limit_s": 0}, InputError, "the time limit of the grader math is 0 s"),
        ({"num_workers": 0}, InputError, "at least one process, not 0"),
        ({"memory": "much"}, InputError, "'much' is not a size"),
        ({"timeout": 5}, SelectionError, "no parameter 'timeout'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        open_grader("math", **parameters)


def test_a_problem_without_an_answer_is_refused(grader):
    with pytest.raises(
        InputError, match="the grader math compares with answers, but 1 of 1 problems have none"
    ):
        grader.check([Problem("?", id="7")])
