"""What is refused before anything is generated, by any engine in the same words."""

from collections.abc import Sequence

from ckptlin.errors import InputError
from ckptlin.evaluate.engines.engine import Request
from ckptlin.evaluate.sampling import Sampling

__all__ = ["check_requests"]


def check_requests(
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    max_model_len: int,
    vocab_size: int,
) -> None:
    """Check that each request can be answered, so that none is cut short or answered from nonsense in silence.

    Raises
    ------
    InputError
        If a prompt is empty, has a token that the model does not know, or leaves no room for its answer; or if
        a stop token is none of the model's.
    """
    for token in stop_ids:
        if not 0 <= token < vocab_size:
            raise InputError(f"stop token {token} is not in the model's vocabulary of {vocab_size} tokens")
    room = max_model_len - sampling.max_tokens
    for index, request in enumerate(requests):
        ids = request.prompt_ids
        if not ids:
            raise InputError(f"prompt {index} is empty; a model needs a token to begin with")
        if len(ids) > room:
            raise InputError(
                f"prompt {index} has {len(ids)} tokens and its answer may have {sampling.max_tokens}, but the "
                f"engine was opened for {max_model_len} together"
            )
        if min(ids) < 0 or max(ids) >= vocab_size:
            wrong = next(token for token in ids if not 0 <= token < vocab_size)
            raise InputError(
                f"prompt {index} has token {wrong}, which is not in the model's vocabulary of {vocab_size} "
                "tokens; the tokenizer is another model's"
            )
