"""How answers are sampled, and the seed of each."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from ckptlin.errors import InputError

__all__ = ["Sampling"]

_SEED_BYTES = 6  # so that a reader of JSON that has float64 alone reads it exactly


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are sampled; the defaults are the paper's (arXiv 2601.04537).

    Attributes
    ----------
    temperature : float
        0 is greedy: the likeliest token each time.
    top_p : float
        Tokens are drawn from the likeliest that have this probability together.
    top_k : int
        And from so many at most; 0 for all.
    max_tokens : int
        Of an answer, its end included; a longer one is cut off.
    num_samples : int
        Answers to each problem.
    seed : int
        Answers depend on it, on the problem's id and on their number, and on nothing else.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    max_tokens: int = 32_768
    num_samples: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, is_right, expected in (
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0, where 0 means all tokens"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("num_samples", self.num_samples >= 1, "at least 1"),
        ):
            if not is_right:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {expected}")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def seed_of(self, problem_id: str, sample: int) -> int:
        """Return the seed of an answer, from 0 up to 2^48.

        Answers of one seed are the same in any batch, in any order, and after an interruption; models that are
        compared share them, which takes noise out of their difference.

        Examples
        --------
        >>> Sampling(seed=1).seed_of("aime-7", 0) == Sampling(seed=1, num_samples=4).seed_of("aime-7", 0)
        True
        """
        text = f"{self.seed}\0{problem_id}\0{sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:_SEED_BYTES], "little")

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)
