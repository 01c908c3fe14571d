"""What makes a pair of checkpoints, what is refused, and the directory that stands for both."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ckptlin.errors import CheckpointNotFoundError, InputError, OutputExistsError
from ckptlin.logits import MODEL_TYPE, LogitsPair, is_pair, make_pair, read_pair, write_pair
from tests.logits.checkpoints import save_checkpoints, save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Path]:
    return save_checkpoints(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def checkpoints(saved, tmp_path) -> tuple[Path, Path]:
    """Copies that a test may spoil."""
    first, second = (shutil.copytree(path, tmp_path / path.name) for path in saved)
    return first, second


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(("target", "alpha"), [(10, 0.0), (20, 1.0), (27, 1.7), (15, 0.5), (0, -1.0)])
def test_alpha_is_how_far_the_target_lies(saved, target, alpha):
    pair = make_pair(*saved, target=target)
    assert (pair.alpha, pair.steps, pair.target) == (pytest.approx(alpha), (10, 20), target)


def test_alpha_overrides_the_target(saved):
    pair = make_pair(*saved, target=15, alpha=3)
    assert (pair.alpha, pair.target) == (3.0, None)


def test_steps_come_before_the_path_or_from_the_trainer_or_from_ckptlin(checkpoints):
    first, second = checkpoints
    first, second = first.rename(first.with_name("old")), second.rename(second.with_name("new"))
    with pytest.raises(InputError, match=r"the step of .*old cannot be told"):
        make_pair(first, second, target=30)
    assert make_pair(first, second, alpha=2).steps is None
    assert make_pair(f"100={first}", f"200={second}", target=300).alpha == 2
    (first / "trainer_state.json").write_text('{"global_step": 50}')
    (second / "ckptlin.json").write_text('{"step": 60}')
    assert make_pair(first, second, target=100).alpha == 5


def test_one_step_gives_no_line(saved):
    with pytest.raises(InputError, match="both checkpoints are of step 7"):
        make_pair(f"7={saved[0]}", f"7={saved[1]}", target=9)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alpha_is_finite(saved, alpha):
    with pytest.raises(InputError, match="finite"):
        make_pair(*saved, alpha=alpha)


def test_something_says_how_far(saved):
    with pytest.raises(InputError, match="neither a target step nor alpha"):
        make_pair(*saved)
    with pytest.raises(InputError, match="target step -5 is negative"):
        make_pair(*saved, target=-5)


def test_another_architecture_is_refused(saved, tmp_path):
    other = save_model(tmp_path / "checkpoint-30", "llama-untied")
    with pytest.raises(InputError, match=r"model_type is 'qwen2' in .*'llama' in"):
        make_pair(saved[0], other, target=40)


def test_another_vocabulary_is_refused(saved, tmp_path):
    other = save_model(tmp_path / "checkpoint-30", "qwen2-untied", vocab_size=64)
    with pytest.raises(InputError, match=r"vocab_size is 48 in .* 64 in"):
        make_pair(saved[0], other, target=40)


def test_other_tokens_of_the_same_number_are_refused(checkpoints):
    path = checkpoints[1] / "tokenizer.json"
    path.write_text(path.read_text().replace('"A":', '"ä":'))
    with pytest.raises(InputError, match="differ in 2 tokens, 'A' among them"):
        make_pair(*checkpoints, target=40)


def test_a_tokenizer_that_was_only_written_otherwise_is_the_same(checkpoints):
    path = checkpoints[1] / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    assert make_pair(*checkpoints, target=30).alpha == 2


def test_how_a_checkpoint_was_saved_does_not_matter(checkpoints):
    edit(checkpoints[1] / "config.json", transformers_version="4.0", use_cache=False, _name_or_path="x")
    assert make_pair(*checkpoints, target=30).alpha == 2


def test_another_shape_is_refused(checkpoints):
    path = checkpoints[1] / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"tensor `model.norm.weight` has shape \(64,\)"):
        make_pair(*checkpoints, target=30)


def test_what_cannot_be_run_is_refused(checkpoints, tmp_path):
    edit(checkpoints[0] / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(InputError, match="quantised"):
        make_pair(*checkpoints, target=30)
    (checkpoints[0] / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        make_pair(*checkpoints, target=30)
    with pytest.raises(CheckpointNotFoundError):
        make_pair(tmp_path / "nowhere", checkpoints[1], alpha=2)
    with pytest.raises(InputError, match="URL"):
        make_pair("s3://bucket/checkpoint-1", checkpoints[1], alpha=2)


def test_no_pair_is_made_of_pairs(saved, tmp_path):
    directory = write_pair(make_pair(*saved, target=30), tmp_path / "checkpoint-30")
    with pytest.raises(InputError, match="is a pair itself"):
        make_pair(directory, directory, alpha=2)


def test_the_model_may_lie_deeper_and_its_tokenizer_elsewhere(checkpoints, tmp_path):
    run = tmp_path / "run"
    for path, step in zip(checkpoints, (100, 200), strict=True):
        place = run / f"global_step_{step}" / "actor" / "huggingface"
        place.parent.mkdir(parents=True)
        path.rename(place)
    (run / "global_step_200/actor/huggingface/tokenizer.json").unlink()
    pair = make_pair(run / "global_step_100", run / "global_step_200", target=250)
    assert pair == LogitsPair(
        run / "global_step_100/actor/huggingface",
        run / "global_step_200/actor/huggingface",
        1.5,
        (100, 200),
        250,
    )
    written = write_pair(pair, tmp_path / "pair")
    assert (written / "tokenizer.json").is_file(), "of the other checkpoint"


def test_a_pair_is_read_as_it_was_written(saved, tmp_path):
    pair = make_pair(*saved, target=27)
    directory = write_pair(pair, tmp_path / "deep" / "pair")
    assert is_pair(directory)
    assert not is_pair(saved[0])
    assert not is_pair(tmp_path)
    assert read_pair(directory) == pair
    assert pair.base.is_absolute()


def test_the_directory_holds_all_of_the_second_but_its_weights(checkpoints, tmp_path):
    edit(checkpoints[1] / "generation_config.json", eos_token_id=[1, 5])
    (checkpoints[1] / "chat_template.jinja").write_text("{{ messages }}")
    directory = write_pair(make_pair(*checkpoints, target=27), tmp_path / "pair")
    config = json.loads((directory / "config.json").read_text())
    assert config["text_config"] == json.loads((checkpoints[1] / "config.json").read_text())
    assert (config["model_type"], config["alpha"]) == (MODEL_TYPE, 1.7)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (directory / name).read_bytes() == (checkpoints[1] / name).read_bytes()
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert list(file.keys()) == []
    assert sum(path.stat().st_size for path in directory.glob("*.safetensors")) < 2000


def test_pairs_differ_in_the_content_of_their_weights_file(checkpoints, tmp_path):
    def content(name, **options):
        return (
            write_pair(make_pair(*checkpoints, **options), tmp_path / name) / "model.safetensors"
        ).read_bytes()

    one, same, other = content("a", target=27), content("b", target=27), content("c", target=28)
    assert one == same != other
    path = checkpoints[1] / "model.safetensors"
    save_file({**load_file(path), "more": load_file(path)["model.norm.weight"].clone()}, path)
    pair = LogitsPair(*checkpoints, 1.7, (10, 20), 27)
    assert (write_pair(pair, tmp_path / "d") / "model.safetensors").read_bytes() != one


def test_what_is_there_is_kept_unless_told(saved, tmp_path):
    directory = write_pair(make_pair(*saved, target=27), tmp_path / "pair")
    with pytest.raises(OutputExistsError):
        write_pair(make_pair(*saved, target=30), directory)
    assert read_pair(directory).alpha == 1.7
    write_pair(make_pair(*saved, target=30), directory, overwrite=True)
    assert read_pair(directory).alpha == 2
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]


def test_a_pair_whose_checkpoint_has_gone_says_so(checkpoints, tmp_path):
    directory = write_pair(make_pair(*checkpoints, target=27), tmp_path / "pair")
    shutil.rmtree(checkpoints[0])
    with pytest.raises(CheckpointNotFoundError, match="checkpoint-10, of the pair"):
        read_pair(directory)


def test_what_is_no_pair_is_refused(saved, tmp_path):
    with pytest.raises(InputError, match="is no pair"):
        read_pair(saved[0])
    directory = write_pair(make_pair(*saved, target=27), tmp_path / "pair")
    edit(directory / "config.json", alpha="much")
    with pytest.raises(InputError, match="is damaged"):
        read_pair(directory)
