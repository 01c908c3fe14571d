"""What is said and drawn of predictions, good or bad."""

import numpy as np
import pytest

from ckptlin.demo.comparison import Comparison
from ckptlin.demo.evaluation import Evaluation
from ckptlin.demo.figure import draw_comparison, draw_rewards
from ckptlin.rl.sampled_rewards import SampledRewards

NUM_PROBLEMS = 200


def evaluation(share, *, noise=0.0):
    """Make an evaluation of so many right answers, each problem's share that or moved by noise."""
    moves = np.tile([-noise, noise], NUM_PROBLEMS // 2)
    shares = np.full(NUM_PROBLEMS, share) + moves
    return Evaluation(SampledRewards(shares[:, None], 0), np.full(NUM_PROBLEMS, share))


def compared(*, start=0.3, last=0.4, trained=0.5, noise=0.1, far=(), near=(), **methods) -> Comparison:
    """Make a comparison in which step 10 is the last seen, and step 20 the target."""
    return Comparison(
        target=20,
        last_seen=10,
        trained={0: evaluation(start), 10: evaluation(last), 20: evaluation(trained, noise=noise)},
        predicted={
            method.replace("_", "-"): evaluation(share, noise=-noise) for method, share in methods.items()
        },
        distance={
            method.replace("_", "-"): 3.0 if method in far else 0.2 if method in near else 0.5
            for method in methods
        },
        distance_last_seen=1.0,
    )


def test_gains_are_over_the_last_seen_and_leads_over_the_trained():
    comparison = compared(ols=0.46)
    assert comparison.gain("ols").mean == pytest.approx(0.06)
    assert comparison.lead("ols").mean == pytest.approx(-0.04)
    assert comparison.by_training.mean == pytest.approx(0.1)
    assert comparison.skill == {"ols": 0.75}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"ols": 0.46},
            "ols solves more than step 10 (+6.0 ± 0.7 points, 60% of what training gains), and fewer",
        ),
        ({"ols": 0.46}, "and fewer than step 20 as trained (−4.0 ± 1.4 points)."),
        ({"ols": 0.405}, "ols solves as many as step 10 (+0.5 ± 0.7 points, within the noise), and fewer"),
        ({"ols": 0.3}, "ols solves fewer than step 10 (−10.0 ± 0.7 points), and fewer than step 20"),
        ({"ols": 0.6}, "200% of what training gains), and more than step 20 as trained (+10.0 ± 1.4 points)"),
        ({"ols": 0.5}, "and as many as step 20 as trained (+0.0 ± 1.4 points, within the noise)"),
        ({"ols": 0.4, "trained": 0.405}, "It solves as many as step 10 (+0.5 ± 0.7 points, within the noise)"),
        ({"ols": 0.4, "trained": 0.2}, "Step 20 as trained solves fewer than step 0 (−10.0 ± 0.7 points)"),
        ({"ols": 0.46, "far": ("ols",)}, "In weights ols is farther from the trained step 20 than step 10."),
        (
            {"ols": 0.46, "two_point": 0.46, "far": ("ols", "two_point")},
            "In weights ols and two-point are farther",
        ),
        (
            {"ols": 0.45, "two_point": 0.5, "near": ("ols",)},
            "ols is nearest in weights, but two-point solves more",
        ),
    ],
)
def test_the_verdict_follows_the_figures_and_hides_nothing(given, expected):
    assert expected in " ".join(compared(**given).verdict())


def test_what_training_did_not_gain_is_not_divided_by():
    text = " ".join(compared(ols=0.46, trained=0.38, noise=0.01).verdict())
    assert "ols solves more than step 10" in text
    assert "of what training gains" not in text


def test_of_equally_good_methods_the_nearer_is_best():
    assert compared(ols=0.45, two_point=0.45, near=("two_point",)).best == "two-point"


def heights(container):
    """The heights of the points that have error bars."""
    return np.asarray(container.lines[0].get_ydata(), np.float64)


def test_the_comparison_figure_shows_the_run_each_method_and_its_skill():
    figure = draw_comparison(compared(ols=0.46, auto=0.48), name="tour")
    passes, distances = figure.axes
    trained = passes.containers[0]
    np.testing.assert_allclose(heights(trained), [0.3, 0.4, 0.5])
    for container, share in zip(passes.containers[1:], (0.46, 0.48), strict=True):
        np.testing.assert_allclose(heights(container), [share])
        (bar,) = container.lines[2]
        (low, high) = bar.get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(0.1 / np.sqrt(NUM_PROBLEMS - 1), rel=1e-6)
    labels = [text.get_text() for text in passes.get_legend().get_texts()]
    assert labels == ["seen by the methods", "as trained", "ols", "auto"]
    assert [bar.get_width() for bar in distances.patches] == [1.0, 0.5, 0.5]
    assert [t.get_text() for t in distances.texts] == [" 1, the last seen", *[" 0.5, skill 0.75"] * 2]
    assert "extrapolated from steps up to 10 to step 20" in figure.texts[1].get_text()


def test_the_reward_figure_shows_each_step_its_running_mean_and_the_saves():
    rewards = [0.1 * step for step in range(30)]
    axes = draw_rewards(rewards, (0, 15, 30), name="run").axes[0]
    each, running, saves = axes.lines
    np.testing.assert_allclose(each.get_ydata(), rewards)
    np.testing.assert_array_equal(running.get_xdata(), range(20, 31))
    expected = [np.mean(rewards[step - 20 : step]) for step in range(20, 31)]
    np.testing.assert_allclose(running.get_ydata(), expected)
    np.testing.assert_array_equal(saves.get_xdata(), [0, 15, 30])


def test_the_reward_figure_of_a_short_run_takes_the_mean_of_what_there_is():
    axes = draw_rewards([0.2, 0.4], (0, 2)).axes[0]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [0.3])
