import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ckptlin.errors import InputError
from ckptlin.student_t import central_probability, two_sided_quantile


@pytest.mark.parametrize("degrees", [*range(1, 31), 48, 99, 198, 499])
@pytest.mark.parametrize("level", [0.01, 0.5, 0.683, 0.9, 0.95, 0.99, 0.9999])
def test_the_quantile_is_scipys(degrees, level):
    expected = stats.t.ppf(0.5 + level / 2, degrees)
    assert two_sided_quantile(level, degrees) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0, 1e6), st.integers(1, 300))
def test_the_probability_is_scipys(t, degrees):
    expected = 1 - 2 * stats.t.sf(t, degrees)
    assert central_probability(t, degrees) == pytest.approx(expected, abs=1e-13)


@given(st.floats(1e-3, 1 - 1e-6), st.integers(1, 200))
def test_the_quantile_undoes_the_probability(level, degrees):
    assert central_probability(two_sided_quantile(level, degrees), degrees) == pytest.approx(level, abs=1e-12)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, float("nan")])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        two_sided_quantile(level, 3)


def test_no_degree_of_freedom_is_refused():
    with pytest.raises(InputError, match="at least 1 degree of freedom, not 0"):
        two_sided_quantile(0.95, 0)
