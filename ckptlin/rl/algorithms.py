"""The algorithms by name: what each of them does with the rewards and the ratios, told without an engine.

An engine translates an `Algorithm` into the options of its own library, or says that it cannot.
"""

from dataclasses import dataclass
from typing import Literal

from ckptlin.errors import SelectionError

__all__ = ["ALGORITHMS", "Algorithm", "get_algorithm"]

Advantage = Literal["group", "group-mean", "group-mean-over-batch-deviation", "batch", "none"]
LossMean = Literal["sequence-then-token", "token", "constant-length"]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How a policy-gradient algorithm turns rewards into a loss.

    Attributes
    ----------
    name : str
    description : str
    source : str
        The paper, as an arXiv number, or the name that it goes by.
    advantage : str
        What a reward is compared with: ``group``, (r − mean) / deviation within the rollouts of a prompt;
        ``group-mean``, r − mean of the group, not scaled; ``group-mean-over-batch-deviation``, r − mean of the
        group, over the deviation of the whole batch; ``batch``, (r − mean) / deviation over the whole batch;
        ``none``, for supervised training.
    ratio : str
        ``token``, a ratio of probabilities for each token; ``sequence``, their geometric mean over the answer.
    loss_mean : str
        ``sequence-then-token``, the mean over answers of each one's mean over its tokens; ``token``, the mean
        over all tokens; ``constant-length``, the sum over tokens divided by the largest possible number.
    clip_low, clip_high : float
        Default clip range: ratios are held within [1 − clip_low, 1 + clip_high].
    """

    name: str
    description: str
    source: str
    advantage: Advantage
    ratio: Literal["token", "sequence"]
    loss_mean: LossMean
    clip_low: float
    clip_high: float

    @property
    def is_supervised(self) -> bool:
        """Whether it learns from solutions, with neither rollouts nor rewards."""
        return self.advantage == "none"


ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm(
            name="grpo",
            description="Advantages within the group, the mean over answers of means over tokens",
            source="arXiv 2402.03300; 2601.04537",
            advantage="group",
            ratio="token",
            loss_mean="sequence-then-token",
            clip_low=0.2,
            clip_high=0.28,
        ),
        Algorithm(
            name="dapo-loss",
            description="The loss of DAPO: mean over all tokens, higher upper clip; no dynamic sampling",
            source="arXiv 2503.14476",
            advantage="group",
            ratio="token",
            loss_mean="token",
            clip_low=0.2,
            clip_high=0.28,
        ),
        Algorithm(
            name="dr_grpo",
            description="GRPO without the division by deviation and length",
            source="arXiv 2503.20783",
            advantage="group-mean",
            ratio="token",
            loss_mean="constant-length",
            clip_low=0.2,
            clip_high=0.2,
        ),
        Algorithm(
            name="gspo",
            description="One ratio for an answer, the geometric mean over its tokens, and clip ranges to match",
            source="arXiv 2507.18071",
            advantage="group",
            ratio="sequence",
            loss_mean="sequence-then-token",
            clip_low=3e-4,
            clip_high=4e-4,
        ),
        Algorithm(
            name="reinforce++",
            description="Rewards whitened over the whole batch, no group baseline",
            source="arXiv 2501.03262",
            advantage="batch",
            ratio="token",
            loss_mean="token",
            clip_low=0.2,
            clip_high=0.2,
        ),
        Algorithm(
            name="reinforce++-baseline",
            description="The mean of the group subtracted, then divided by the deviation of the whole batch",
            source="arXiv 2501.03262",
            advantage="group-mean-over-batch-deviation",
            ratio="token",
            loss_mean="token",
            clip_low=0.2,
            clip_high=0.2,
        ),
        Algorithm(
            name="sft",
            description="Supervised training on the solutions, for contrast: no rollouts, no rewards",
            source="",
            advantage="none",
            ratio="token",
            loss_mean="token",
            clip_low=0.2,
            clip_high=0.2,
        ),
    )
}


def get_algorithm(name: str) -> Algorithm:
    """Return an algorithm by name.

    Raises
    ------
    SelectionError
        If there is none of that name.

    Examples
    --------
    >>> get_algorithm("gspo").ratio
    'sequence'
    """
    try:
        return ALGORITHMS[name]
    except KeyError:
        hint = "; `dapo` needs dynamic sampling, which is not built" if name == "dapo" else ""
        raise SelectionError(f"no algorithm `{name}`; there are {', '.join(ALGORITHMS)}{hint}") from None
