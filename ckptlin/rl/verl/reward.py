"""The project's graders inside verl: the reward manager that verl's own processes load.

verl 0.9.1 has a simpler place for rewards, ``reward.custom_reward_function``, but what is called there sees the
text of an answer alone, and not whether the model ended it.  A reward manager sees the tokens.  (The place of
the same name at the top level of verl's settings is no longer looked at by ``main_ppo``.)

An answer whose reward raises is dropped by verl, and the rest of its group trained on.  So the reason is left
in a file, which the engine looks for and stops at.
"""

import asyncio
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ckptlin.atomic import write_file
from ckptlin.errors import GradingError
from ckptlin.grading import Completion, open_grader
from ckptlin.rl.config import RewardConfig
from ckptlin.rl.verl.prompts import problem_of

__all__ = ["RewardManager", "read_reward_error", "write_grader"]

_GRADER_NAME = "grader.json"
_ERROR_NAME = "reward-error.txt"


class RewardManager:
    """What verl asks for the reward of an answer; made in each of its reward workers.

    It has the interface of verl's ``RewardManagerBase`` as far as rewards without a reward model need it, and
    does not inherit from it, so that this module is imported without verl.

    Parameters
    ----------
    config : omegaconf.DictConfig
        verl's settings.
    tokenizer : transformers.PreTrainedTokenizerBase
    compute_score, reward_router_address, reward_model_tokenizer : Any
        verl's own means, not used.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: Any = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._limit = int(config.data.max_response_length)
        self._directory = Path(config.trainer.default_local_dir).parent
        grader = json.loads((self._directory / _GRADER_NAME).read_text())
        # It lasts as long as the worker, and ends with its process.
        self._grader = open_grader(grader["grader"], **grader["parameters"]).__enter__()
        # A grader need not bear being called from several threads.
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Grade an answer.

        Parameters
        ----------
        data : verl.DataProto
            Of an answer in several parts the last row counts, as in verl's own managers.

        Returns
        -------
        dict
            ``reward_score``, and ``reward_extra_info`` with the problem's index, the number of tokens and
            whether the answer was ended.
        """
        item = data[-1:][0]
        answer = item.batch["responses"]
        num_tokens = int(item.batch["attention_mask"][-answer.shape[-1] :].sum())
        ids = answer[:num_tokens].tolist()
        extra_info = item.non_tensor_batch["extra_info"]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._graded, ids, extra_info)

    def _graded(self, ids: list[int], extra_info: Mapping[str, Any]) -> dict[str, Any]:
        problem = problem_of(extra_info)
        # What vLLM cuts off is as long as the limit; a model may end by another token than the tokenizer's.
        finished = len(ids) < self._limit or ids[-1:] == [self._tokenizer.eos_token_id]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        try:
            (score,) = self._grader.grade([Completion(text, finished)], [problem])
            if not math.isfinite(score):
                raise GradingError(f"grader `{self._grader.name}` returned {score!r} for problem {problem.id}")
        except Exception as error:
            write_file(self._directory / _ERROR_NAME, (str(error) or repr(error)).encode())
            raise
        return {
            "reward_score": float(score),
            "reward_extra_info": {
                "acc": float(score),
                "index": int(extra_info["index"]),
                "tokens": len(ids),
                "finished": float(finished),
            },
        }


def write_grader(directory: Path, reward: RewardConfig) -> None:
    """Write down for the reward managers which grader to open."""
    data = {"grader": reward.grader, "parameters": reward.parameters}
    write_file(directory / _GRADER_NAME, json.dumps(data).encode())


def read_reward_error(directory: Path) -> str | None:
    """Return why a reward could not be given; None as long as all could."""
    path = directory / _ERROR_NAME
    return path.read_text() if path.is_file() else None
