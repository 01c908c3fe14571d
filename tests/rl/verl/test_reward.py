"""The reward manager on rows such as verl's; on verl's own in test_verl.py."""

import asyncio
import json
from types import SimpleNamespace

import pytest
import torch

from ckptlin.errors import GradingError
from ckptlin.problems import Problem
from ckptlin.rl.config import RewardConfig
from ckptlin.rl.trl.model import load_tokenizer
from ckptlin.rl.verl.reward import RewardManager, read_reward_error, write_grader

LIMIT = 6


class Rows(list):
    """Rows, of which a slice is rows too, as verl's ``DataProto`` has it."""

    def __getitem__(self, place):
        found = super().__getitem__(place)
        return Rows(found) if isinstance(place, slice) else found


def row(ids, problem, index=3, padding=0):
    answer = torch.tensor([*ids, *[0] * padding])
    mask = torch.tensor([1, 1, *[1] * len(ids), *[0] * padding])  # of a prompt of two tokens and the answer
    extra_info = {"index": index, "problem": json.dumps(vars(problem))}
    return SimpleNamespace(
        batch={"responses": answer, "attention_mask": mask}, non_tensor_batch={"extra_info": extra_info}
    )


@pytest.fixture
def manager_of(tmp_path, base_model):
    def make(grader="exact", **parameters):
        write_grader(tmp_path, RewardConfig(grader, parameters))
        config = SimpleNamespace(
            data=SimpleNamespace(max_response_length=LIMIT),
            trainer=SimpleNamespace(default_local_dir=str(tmp_path / "checkpoints")),
        )
        return RewardManager(config, load_tokenizer(base_model), compute_score=None, reward_router_address=None)

    return make


@pytest.mark.parametrize(
    ("text", "padding", "score", "finished"),
    [
        ("2;3#", 0, 1.0, 1.0),
        ("2;3#", 4, 1.0, 1.0),
        ("2;30;#", 0, 0.0, 1.0),  # wrong, and ended by the last token that there was room for
        ("2;3000", 0, 0.0, 0.0),
    ],
)
def test_answers_are_graded_as_they_ended(manager_of, base_model, text, padding, score, finished):
    ids = load_tokenizer(base_model)(text)["input_ids"]
    problem = Problem("1+1+1=", "2;3", id="p")
    result = asyncio.run(manager_of().run_single(Rows([row(ids, problem, padding=padding)])))
    assert result == {
        "reward_score": score,
        "reward_extra_info": {"acc": score, "index": 3, "tokens": len(text), "finished": finished},
    }


def test_an_answer_cut_off_at_the_limit_is_no_answer(manager_of, base_model):
    ids = load_tokenizer(base_model)("2;3;40")["input_ids"]
    right_but_for_the_end = Problem("?", "2;3;40")
    manager = manager_of()
    assert asyncio.run(manager.run_single(Rows([row(ids, right_but_for_the_end)])))["reward_score"] == 0.0
    manager = manager_of(require_finished=False)
    assert asyncio.run(manager.run_single(Rows([row(ids, right_but_for_the_end)])))["reward_score"] == 1.0


def test_of_several_rows_the_last_counts(manager_of, base_model):
    tokenizer = load_tokenizer(base_model)
    problem = Problem("1+1+1=", "2;3")
    rows = Rows([row(tokenizer(text)["input_ids"], problem) for text in ("9#", "2;3#")])
    assert asyncio.run(manager_of().run_single(rows))["reward_score"] == 1.0


def none_for_seven(completion, problem):
    """A user's reward function that has no word for some answers."""
    return None if completion == "7" else 0.25


def test_a_reward_that_cannot_be_given_is_left_for_the_engine_to_see(manager_of, base_model, tmp_path):
    tokenizer = load_tokenizer(base_model)
    manager = manager_of(f"{__name__}:none_for_seven")
    problem = Problem("6+1=", id="p7")
    assert (
        asyncio.run(manager.run_single(Rows([row(tokenizer("6#")["input_ids"], problem)])))["reward_score"]
        == 0.25
    )
    assert read_reward_error(tmp_path) is None
    with pytest.raises(GradingError):
        asyncio.run(manager.run_single(Rows([row(tokenizer("7#")["input_ids"], problem)])))
    assert "none_for_seven returned None for problem p7" in read_reward_error(tmp_path)
