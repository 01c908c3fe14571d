"""Training and sampling that leave this process as they found it.

One thread computes.  Where other programs run, threads that wait for each other cost more than they do on
matrices this small (two on a busy machine of two processors: 2 s a step instead of 0.04), and the figures would
depend on their number.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from ckptlin.quiet import quiet_transformers

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(seed: int) -> Iterator[None]:
    """Seed the random numbers, silence transformers, compute in one thread; put everything back afterwards."""
    import torch

    num_threads = torch.get_num_threads()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(random.setstate, python_state)
        stack.callback(np.random.set_state, numpy_state)
        stack.callback(torch.set_num_threads, num_threads)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        # What is silenced are notes on a model without pretrained weights, and a bar for each file saved.
        stack.enter_context(quiet_transformers())
        yield
