import dataclasses
import re
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from ckptlin.errors import InputError, SelectionError
from ckptlin.methods import (
    METHODS,
    MethodEntry,
    MethodSpec,
    Parameter,
    all_methods,
    get_method,
    parse_method,
    parse_methods,
    registry,
    split_methods,
)


def nearest(steps, target, gram=None, pooled=None, *, weight=1.0, order=1):
    """The nearest checkpoint and the first, by their weights."""
    coefficients = np.zeros(steps.size)
    coefficients[np.abs(steps - target).argmin()] = weight
    coefficients[0] += 1 - weight
    return coefficients


def blended(steps, target, gram=None, pooled=None, *, share=0.5, base):
    """The base, and the last checkpoint."""
    coefficients = share * base(steps, target, gram, pooled)
    coefficients[-1] += 1 - share
    return coefficients


NEAREST = MethodEntry(
    "nearest",
    nearest,
    "the nearest checkpoint",
    parameters=(
        Parameter("weight", 1.0, "how much of it", 0.0, 1.0),
        Parameter("order", 1, "not used", low=1),
    ),
    min_steps=lambda weight, order: order + 1,
    needs_gram=True,
    is_linear=False,
)
BLENDED = MethodEntry(
    "blended",
    blended,
    "half of another method",
    parameters=(Parameter("base", "ols", "method"), Parameter("share", 0.5, "how much of it")),
)


@pytest.fixture
def others(monkeypatch):
    """Two methods of another package, found by their entry points."""
    install(monkeypatch, NEAREST=NEAREST, BLENDED=BLENDED)


def install(monkeypatch, **objects):
    for name, value in objects.items():
        monkeypatch.setattr(registry, name, value, raising=False)
    points = [EntryPoint(name, f"{registry.__name__}:{name}", "ckptlin.methods") for name in objects]

    def entry_points(*, group):
        return [point for point in points if point.group == group]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "all_methods", registry.all_methods.__wrapped__)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_is_read_back_from_what_it_writes(name):
    spec = parse_method(name)
    assert spec.name == name
    assert parse_method(str(spec)) == parse_method(spec.short) == spec
    assert spec.short == name
    assert hash(spec) == hash(parse_method(name))


def test_an_unknown_method_is_refused_with_the_names_of_all():
    message = f"there is no method 'olz'; choose one of {', '.join(sorted(METHODS))}"
    with pytest.raises(SelectionError, match=re.escape(message)):
        get_method("olz")
    with pytest.raises(SelectionError, match="there is no method ''"):
        parse_method("")


def test_a_specification_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_method("ols").values = (1,)


@pytest.mark.usefixtures("others")
def test_another_package_adds_methods_by_entry_points():
    assert list(registry.all_methods()) == [*METHODS, "blended", "nearest"]
    spec = parse_method("nearest:weight=0.25")
    assert spec.parameters == {"weight": 0.25, "order": 1}
    assert spec.needs_gram
    assert not spec.is_linear
    assert spec.description == "the nearest checkpoint"
    found = spec.coefficients((0, 10, 20), 21, np.zeros((3, 3)))
    assert found.tolist() == [0.75, 0.0, 0.25]


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("text", "canonical", "short"),
    [
        ("nearest", "nearest:weight=1,order=1", "nearest"),
        (" nearest: order=2 , weight=.5", "nearest:weight=0.5,order=2", "nearest:weight=0.5,order=2"),
        ("nearest:weight=1.0", "nearest:weight=1,order=1", "nearest"),
        ("blended", "blended:share=0.5,base=ols", "blended"),
        ("blended:base=two-point", "blended:share=0.5,base=two-point", "blended:base=two-point"),
        (
            "blended:share=0.1,base=nearest:order=3,weight=0",
            "blended:share=0.1,base=nearest:weight=0,order=3",
            "blended:share=0.1,base=nearest:weight=0,order=3",
        ),
        (
            "blended:base=blended:base=nearest",
            "blended:share=0.5,base=blended:share=0.5,base=nearest:weight=1,order=1",
            "blended:base=blended:base=nearest",
        ),
    ],
)
def test_parameters_are_read_and_written(text, canonical, short):
    spec = parse_method(text)
    assert str(spec) == canonical
    assert spec.short == short
    assert parse_method(canonical) == parse_method(short) == spec


@pytest.mark.usefixtures("others")
def test_a_method_made_of_another_needs_what_that_needs():
    assert not parse_method("blended").needs_gram
    assert parse_method("blended").is_linear
    spec = parse_method("blended:base=nearest:order=6")
    assert spec.needs_gram
    assert not spec.is_linear
    assert spec.min_steps == 7
    with pytest.raises(
        InputError, match="method blended needs at least 7 checkpoints, and only 3 were selected"
    ):
        spec.coefficients([0, 1, 2], 3, np.zeros((3, 3)))


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("ols:degree=2", SelectionError, "method ols has no parameter 'degree'; it has none"),
        ("nearest:k=2", SelectionError, "method nearest has no parameter 'k'; it has weight, order"),
        ("nearest:", InputError, "ends with a colon; write NAME or NAME:KEY=VALUE"),
        ("nearest:weight", InputError, "parameter 'weight' of method 'nearest:weight' has no value"),
        ("nearest:weight=", InputError, "weight= of method nearest is not a number"),
        ("nearest:weight=a", InputError, "weight=a of method nearest is not a number"),
        ("nearest:weight=nan", InputError, "weight=nan of method nearest must be between 0 and 1"),
        ("nearest:weight=1.1", InputError, "weight=1.1 of method nearest must be between 0 and 1"),
        ("nearest:order=0", InputError, "order=0 of method nearest must be at least 1"),
        ("nearest:order=1.5", InputError, "order=1.5 of method nearest is not a whole number"),
        ("nearest:order=1,order=2", InputError, "parameter 'order' stands twice"),
        ("blended:base=olz", SelectionError, "there is no method 'olz'"),
    ],
)
def test_what_cannot_be_read_is_refused(text, error, message):
    with pytest.raises(error, match=re.escape(message)):
        parse_method(text)


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (None, "method nearest needs the Gram matrix of each tensor, and none was given"),
        (np.zeros((2, 2)), "was given a Gram matrix of shape (2, 2) for 3 checkpoints"),
        (np.full((3, 3), np.nan), "was given a Gram matrix with NaN or infinity in it"),
    ],
)
def test_a_gram_matrix_that_does_not_do_is_refused(gram, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse_method("nearest").coefficients([0, 1, 2], 3, gram)


def test_a_name_that_is_taken_is_refused(monkeypatch):
    install(monkeypatch, mine=dataclasses.replace(NEAREST, name="ols"))
    with pytest.raises(InputError, match=r"entry point mine .* takes the name of the method ols"):
        registry.all_methods()
    assert get_method("ols") is METHODS["ols"]


def test_an_entry_point_that_is_no_method_is_refused(monkeypatch):
    install(monkeypatch, mine=nearest)
    with pytest.raises(InputError, match=r"entry point mine .* is a function, no MethodEntry"):
        get_method("nearest")


def test_lists_of_methods_are_split_and_each_is_taken_once():
    listed = split_methods("ols, two-point:a=1,b=2,anchored,damped:a=1,base=ols:c=2,d=3")
    assert listed == ["ols", "two-point:a=1,b=2", "anchored", "damped:a=1,base=ols:c=2,d=3"]
    ols = parse_method("ols")
    assert parse_methods(["ols", "two-point", ols]) == (ols, parse_method("two-point"))
    with pytest.raises(InputError, match="no method was given"):
        parse_methods([])


def test_a_specification_is_a_method_itself():
    steps = np.array([0.0, 50.0, 100.0])
    spec = parse_method("ols")
    assert isinstance(spec, MethodSpec)
    np.testing.assert_array_equal(spec(steps, 150.0), METHODS["ols"].function(steps, 150.0))


def test_all_methods_without_other_packages_are_ours():
    assert list(all_methods()) == list(METHODS)
