"""From checkpoints to hidden states: those of transformers, from a run and a store alike, killed or grown."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ckptlin.errors import InputError, NonFiniteError, StepConflictError
from ckptlin.ingest import ingest
from ckptlin.outputs import activations
from ckptlin.outputs.activation_fit import fit_activations
from ckptlin.outputs.activation_store import ActivationStore
from ckptlin.outputs.activations import compute_activations, plan_activations
from ckptlin.outputs.responses import read_responses
from ckptlin.outputs.states import sketch_matrix
from tests.command_line import call, call_json, refusal
from tests.outputs.changed_runs import changed
from tests.outputs.conftest import STEPS
from tests.tiny_models import save_model_run

SIZE = 96  # tokens behind distinct texts, of 104


def compute(items, responses, out, **options):
    return compute_activations(plan_activations([str(item) for item in items], responses, out, **options))


def read_all(store):
    return np.stack([store.read_states(layer, store.steps) for layer in range(len(store.layers))])


@pytest.fixture(scope="module")
def computed(run, responses, tmp_path_factory):
    return compute([run], responses, tmp_path_factory.mktemp("states") / "s").store


@pytest.mark.parametrize(("architecture", "dim"), [("qwen2", 8), ("llama", 5)])
def test_states_are_those_of_transformers_in_float64(architecture, dim, responses, tmp_path):
    run = save_model_run(tmp_path / "run", architecture, is_tied=False, steps=(0, 100), dtype=torch.float32)
    store = compute([run], responses, tmp_path / "s", dim=dim, num_tokens=40, seed=3).store
    assert store.layers == ("embedding", "block 0", "block 1", "norm")
    probes = read_responses(responses).probes
    matrices = [sketch_matrix(8, dim, layer=layer, seed=3).astype(np.float64) for layer in range(4)]
    response, position = store.read_tokens("response"), store.read_tokens("position")
    assert len(response) == 40
    for step in (0, 100):
        model = AutoModelForCausalLM.from_pretrained(run / f"checkpoint-{step}", dtype=torch.float64)
        blocks = []
        model.model.layers[-1].register_forward_hook(lambda module, x, y, blocks=blocks: blocks.append(y))
        for number, probe in enumerate(probes):
            ids = torch.from_numpy(np.concatenate([probe.prompt_ids, probe.token_ids]).astype(np.int64))
            with torch.no_grad():
                # Their last entry is behind the norm, and the last block's output is not among them.
                hidden = list(model(ids[None], output_hidden_states=True).hidden_states)
            last_block = blocks.pop()
            hidden.insert(len(hidden) - 1, last_block[0] if isinstance(last_block, tuple) else last_block)
            here = np.flatnonzero(response == number)
            places = len(probe.prompt_ids) - 1 + position[here]
            for layer, (states, matrix) in enumerate(zip(hidden, matrices, strict=True)):
                expected = states[0, places].numpy() @ matrix
                np.testing.assert_allclose(store.read_states(layer, [step])[0, here], expected, atol=2e-5)


def test_a_run_a_store_and_explicit_steps_agree(computed, run, responses, tmp_path):
    ingest(run, tmp_path / "run.store")
    for n, items in enumerate([[tmp_path / "run.store"], [f"{s}={run}/checkpoint-{s}" for s in STEPS]]):
        store = compute(items, responses, tmp_path / str(n)).store
        np.testing.assert_array_equal(read_all(store), read_all(computed))
        assert [s.fingerprint for s in store.state_steps] == [s.fingerprint for s in computed.state_steps]
    assert computed.num_states == SIZE
    assert (np.diff(read_all(computed), axis=1) != 0).any(axis=(2, 3)).all(), (
        "every step differs in every layer"
    )


def test_a_run_that_grows_adds_its_steps(computed, run, responses, tmp_path):
    out = tmp_path / "s"
    assert compute([run], responses, out, steps="0:100").added == (0, 100)
    plan = plan_activations([str(run)], responses, out)
    assert (plan.steps, plan.present) == ((200, 300), (0, 100))
    assert compute_activations(plan).added == (200, 300)
    assert compute([run], responses, out).present == STEPS
    np.testing.assert_array_equal(read_all(ActivationStore(out)), read_all(computed))


def test_steps_before_an_interruption_are_kept(computed, run, responses, tmp_path, monkeypatch):
    real, seen = activations._observe, []

    def interrupted(*args):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(args)
        return real(*args)

    monkeypatch.setattr(activations, "_observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compute([run], responses, tmp_path / "s")
    monkeypatch.undo()
    assert ActivationStore(tmp_path / "s").steps == STEPS[:2]
    assert compute([run], responses, tmp_path / "s").added == STEPS[2:]
    np.testing.assert_array_equal(read_all(ActivationStore(tmp_path / "s")), read_all(computed))


@pytest.mark.parametrize("batch_tokens", [1, 50])
def test_batches_make_no_difference(batch_tokens, computed, run, responses, tmp_path):
    store = compute([run], responses, tmp_path / "s", batch_tokens=batch_tokens).store
    np.testing.assert_allclose(read_all(store), read_all(computed), atol=3e-6)


def test_other_weights_of_a_step_are_refused_and_nan_is_named(computed, run, responses, tmp_path):
    other = changed(run, tmp_path / "other", lambda weight: weight.mul_(2))
    with pytest.raises(StepConflictError, match=r"step 100 is in .* which has other weights"):
        plan_activations([str(other)], responses, computed.path)
    broken = changed(run, tmp_path / "broken", lambda weight: weight.fill_(float("nan")))
    with pytest.raises(NonFiniteError, match=r"checkpoint-100 has a hidden state that is NaN .* layer norm"):
        compute([broken], responses, tmp_path / "s")
    assert ActivationStore(tmp_path / "s").steps == (0,)


def test_another_choice_of_tokens_needs_another_store(computed, run, responses):
    with pytest.raises(InputError, match="holds the states of other tokens"):
        plan_activations([str(run)], responses, computed.path, num_tokens=10)
    with pytest.raises(InputError, match="begun with another sketch"):
        plan_activations([str(run)], responses, computed.path, dim=4)


def straight_run(root, run, *, size):
    """Copy a run, its weights moving along one straight line by so much of the last difference."""
    first, last = (load_file(run / f"checkpoint-{step}/model.safetensors") for step in (STEPS[0], STEPS[-1]))
    for step in STEPS:
        shutil.copytree(run / "checkpoint-0", root / f"checkpoint-{step}")
        weights = {
            name: first[name].double() + size * step / STEPS[-1] * (last[name].double() - first[name].double())
            for name in first
        }
        save_file(weights, root / f"checkpoint-{step}/model.safetensors", metadata={"format": "pt"})
    return root


def test_small_steps_on_a_line_give_r2_of_1_in_every_layer(run, responses, tmp_path):
    straight = straight_run(tmp_path / "run", run, size=1e-2)
    fit = fit_activations(compute([straight], responses, tmp_path / "s", dtype="float64").store)
    for layer in fit.layers:
        assert layer.mean > 0.995, layer
        assert layer.null.mean < 0.7


def test_what_is_linear_in_its_weights_is_linear_however_far_they_go(run, responses, tmp_path):
    straight = straight_run(tmp_path / "run", run, size=3.0)
    fit = fit_activations(compute([straight], responses, tmp_path / "s", dtype="float64").store)
    assert fit.layers[0].mean > 0.99999, "an embedding"
    assert fit.layers[-1].mean < 0.999, "and behind blocks it is not"


def test_the_command_computes_fits_and_draws(run, responses, tmp_path):
    out, plots = tmp_path / "s", tmp_path / "plots"
    shown = call("activations", run, "--responses", responses, "--out", out, "--plot", plots).stdout
    assert f"{SIZE} states in 4 layers at 4 steps; 4 computed now" in shown
    assert f"{SIZE} of {SIZE} tokens behind distinct texts, of 104 tokens in all" in shown
    assert [path.name for path in plots.iterdir()] == ["activation_r2.png"]
    data = call_json("activations", "--out", out, "--csv", tmp_path / "fit.csv")
    assert [layer["name"] for layer in data["fit"]["layers"]] == ["embedding", "block 0", "block 1", "norm"]
    assert len((tmp_path / "fit.csv").read_text().splitlines()) == 5
    planned = call_json("activations", run, "--responses", responses, "--out", tmp_path / "new", "--dry-run")
    assert (planned["steps"], planned["num_states"]) == (list(STEPS), SIZE)
    assert (
        "would compute"
        in call("activations", run, "--responses", responses, "--out", tmp_path / "new", "--dry-run").stdout
    )
    assert not (tmp_path / "new").exists()
    assert "With two steps every line fits" in call("activations", "--out", out, "--steps", "0,300").stdout


def test_the_command_says_in_one_sentence_what_it_cannot_do(run, responses, tmp_path):
    assert "a run goes with --responses FILE" in refusal("activations", run, "--out", tmp_path / "s")
    assert "holds no store of activations" in refusal("activations", "--out", tmp_path / "s")
    assert "is a URL" in refusal("activations", run, "--responses", responses, "--out", "s3://bucket/s")
    assert "without a run nothing is" in refusal("activations", "--out", tmp_path / "s", "--dry-run")
    shutil.copytree(run / "checkpoint-0", tmp_path / "run/checkpoint-0")
    path = tmp_path / "run/checkpoint-0/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    assert "transformers refuses the config.json of" in refusal(
        "activations", tmp_path / "run", "--responses", responses, "--out", tmp_path / "s"
    )
