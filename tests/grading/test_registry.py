import sys

import pytest

from ckptlin.errors import InputError, SelectionError
from ckptlin.grading import Completion, all_graders, open_grader
from ckptlin.problems import Problem


def install(tmp_path, monkeypatch, entry_points):
    """Put a package beside Python's own whose metadata name entry points, as an installed one's do."""
    (tmp_path / "added_graders.py").write_text(
        "from ckptlin.grading import GraderEntry\n"
        "from ckptlin.grading.exact import ExactGrader\n\n"
        "def half(completion, problem):\n    return 0.5\n\n"
        "ENTRY = GraderEntry('lenient', lambda strip=True: ExactGrader(strip=strip), 'white space aside')\n"
        "EXACT = GraderEntry('exact', ExactGrader, 'again')\n"
        "NUMBER = 7\n"
    )
    metadata = tmp_path / "added_graders-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: added-graders\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[ckptlin.graders]\n" + entry_points)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "added_graders", raising=False)


@pytest.fixture(autouse=True)
def _fresh():
    all_graders.cache_clear()
    yield
    all_graders.cache_clear()


def test_packages_add_graders_and_functions(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "half = added_graders:half\nlenient = added_graders:ENTRY\n")
    given, problem = [Completion(" 2", True)], Problem("1+1?", "2")
    assert open_grader("half").grade(given, [problem]) == [0.5]
    assert open_grader("half").name == "half"
    assert open_grader("lenient").grade(given, [problem]) == [1.0]
    assert open_grader("lenient", strip=False).grade(given, [problem]) == [0.0]
    assert "exact" in all_graders()


@pytest.mark.parametrize(
    ("entry_points", "message"),
    [
        ("seven = added_graders:NUMBER\n", "is a int, neither a GraderEntry nor a function"),
        ("exact = added_graders:half\n", "takes the name of the grader exact, which is there already"),
        ("other = added_graders:EXACT\n", "takes the name of the grader exact"),
    ],
)
def test_an_entry_point_that_is_no_grader_or_takes_a_name_is_refused(
    tmp_path, monkeypatch, entry_points, message
):
    install(tmp_path, monkeypatch, entry_points)
    with pytest.raises(InputError, match=message):
        open_grader("something")


@pytest.mark.parametrize(
    ("name", "parameters", "error", "message"),
    [
        ("maths", {}, SelectionError, "there is no grader 'maths'; choose .*exact.*package.module:function"),
        (
            "exact",
            {"strict": True},
            SelectionError,
            "grader exact has no parameter 'strict'; it has strip, requi",
        ),
        ("function", {}, InputError, "the grader function needs its parameter function"),
    ],
)
def test_graders_and_parameters_that_are_not_there_are_named(name, parameters, error, message):
    with pytest.raises(error, match=message):
        open_grader(name, **parameters)
