"""How far an evaluation is: samples, problems, tokens, and the time that is left."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from ckptlin.evaluate.listener import SampleCount

__all__ = ["Tally"]


class Tally:
    """Counts the samples of one model after another.

    Parameters
    ----------
    pending : mapping of str to sequence of (int, int)
        Of each model that is to answer, index of the problem and number of the sample for what is missing.
    num_problems, num_samples : int
        Of each model, what is there already included.

    Attributes
    ----------
    tokens : int
        Of the model that answers, since the command was started.
    """

    def __init__(
        self, pending: Mapping[str, Sequence[tuple[int, int]]], *, num_problems: int, num_samples: int
    ) -> None:
        self._pending = pending
        self._num_problems = num_problems
        self._num_samples = num_samples
        self._left = sum(map(len, pending.values()))
        self._written = 0
        self._spent_s = 0.0
        self._label = ""
        self._missing: Counter[int] = Counter()
        self._since = 0.0
        self.tokens = 0

    def begin(self, label: str) -> None:
        """Turn to a model."""
        if self._label:
            self._spent_s += self.elapsed_s
        self._label = label
        self._missing = Counter(index for index, _ in self._pending[label])
        self._since = time.perf_counter()
        self.tokens = 0

    def add(self, problems: Sequence[int], num_tokens: int) -> None:
        """Enter samples of these problems."""
        self._missing.subtract(problems)
        self._written += len(problems)
        self._left -= len(problems)
        self.tokens += num_tokens

    @property
    def elapsed_s(self) -> float:
        """Since the model began."""
        return time.perf_counter() - self._since

    def count(self) -> SampleCount:
        """Return how far it is."""
        elapsed_s = self.elapsed_s
        return SampleCount(
            model=self._label,
            model_number=list(self._pending).index(self._label) + 1,
            num_models=len(self._pending),
            problems=self._num_problems - sum(left > 0 for left in self._missing.values()),
            num_problems=self._num_problems,
            samples=self._num_samples - self._missing.total(),
            num_samples=self._num_samples,
            tokens=self.tokens,
            elapsed_s=elapsed_s,
            left_s=self._left * (self._spent_s + elapsed_s) / self._written if self._written else None,
        )
