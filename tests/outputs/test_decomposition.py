"""Δy = WΔx + ΔWx + ΔWΔx: against a float64 computation layer by layer, and where the answer is known."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ckptlin.errors import InputError, NonFiniteError
from ckptlin.outputs import decomposition
from ckptlin.outputs.activations import open_probed
from ckptlin.outputs.decomposition import decompose
from ckptlin.outputs.lockstep import in_lockstep
from tests.command_line import call, call_json, refusal
from tests.tiny_models import save_model_run

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def decomposed(items, responses, **options):
    return decompose(open_probed([str(item) for item in items], responses, **options))


def by_hand(directories, states):
    """Gram matrices of the three parts of every linear layer, each token alone, all in float64."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in directories]
    met = [{}, {}]
    for model, seen in zip(models, met, strict=True):
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(
                    lambda module, x, y, name=name, seen=seen: seen.__setitem__(name, x[0][0].numpy())
                )
    grams = {}
    for probe, places in zip(states.probes, states.places, strict=True):
        ids = torch.from_numpy(np.concatenate([probe.prompt_ids, probe.token_ids]).astype(np.int64))[None]
        with torch.no_grad():
            for model in models:
                model(ids)
        for name in met[0]:
            first, second = (model.get_submodule(name) for model in models)
            w = first.weight.detach().numpy()
            dw = second.weight.detach().numpy() - w
            db = 0 if first.bias is None else (second.bias - first.bias).detach().numpy()
            for place in len(probe.prompt_ids) - 1 + places:
                x = met[0][name][place]
                dx = met[1][name][place] - x
                parts = np.stack([w @ dx, dw @ x + db, dw @ dx])
                grams[name] = grams.get(name, 0) + parts @ parts.T
    return grams


@pytest.mark.parametrize(("architecture", "is_tied"), [("qwen2", True), ("llama", False)])
def test_sums_are_those_by_hand(architecture, is_tied, responses, tmp_path, monkeypatch):
    monkeypatch.setattr(decomposition, "_AT_ONCE", 100)  # so that no layer is done in one piece
    run = save_model_run(tmp_path / "run", architecture, is_tied=is_tied, dtype=torch.float32)
    probed = open_probed([str(run)], responses, num_tokens=30, batch_tokens=60, steps="0,100,300")
    found = decompose(probed)
    assert (found.steps, found.num_states, found.left_out) == ((0, 300), 30, ())
    expected = by_hand([run / "checkpoint-0", run / "checkpoint-300"], probed.states)
    assert sorted(one.name for one in found.modules) == sorted(expected)
    assert len(expected) == 15
    for one in found.modules:
        scale = np.abs(expected[one.name]).max()
        np.testing.assert_allclose(one.gram, expected[one.name], atol=1e-4 * scale)
        assert one.rounding < 1e-6, "the parts add up to the difference of the models' own outputs"
        assert sum(one.shares) == pytest.approx(1, abs=1e-12)
        assert sum(one.squared) + sum(one.cross) == pytest.approx(1, abs=1e-12)
        assert min(one.squared) >= 0


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """Two float32 checkpoints of an untied Qwen2, which has biases; the second one equals the first."""
    root = tmp_path_factory.mktemp("untied") / "run"
    save_model_run(root, "qwen2", is_tied=False, steps=(0,), dtype=torch.float32)
    shutil.copytree(root / "checkpoint-0", root / "checkpoint-10")
    return root


def moved(untied, root, *names):
    """Copy the checkpoints, and move some tensors of the second one."""
    shutil.copytree(untied, root)
    path = root / "checkpoint-10/model.safetensors"
    weights = load_file(path)
    torch.manual_seed(1)
    for name in names:
        weights[name] += 0.1 * torch.randn_like(weights[name])
    save_file(weights, path, metadata={"format": "pt"})
    return root


def shares_of(found):
    return {one.name.removeprefix("model.layers."): one.shares for one in found.modules}


def test_where_only_the_first_layer_changed_all_else_comes_from_the_input(untied, responses, tmp_path):
    root = moved(untied, tmp_path / "run", "model.layers.0.mlp.down_proj.weight")
    shares = shares_of(decomposed([root], responses))
    for kind in KINDS[:-1]:
        block = "self_attn" if kind[0] in "qkvo" else "mlp"
        assert shares[f"0.{block}.{kind}"] is None, "nothing before it changed"
    assert shares["0.mlp.down_proj"] == (0, 1, 0)
    later = [name for name in shares if name[0] == "1" or name == "lm_head"]
    assert len(later) == 8
    for name in later:
        assert shares[name] == (1, 0, 0)


def test_a_bias_belongs_to_the_weight(untied, responses, tmp_path):
    root = moved(untied, tmp_path / "run", "model.layers.1.self_attn.q_proj.bias")
    found = decomposed([root], responses)
    assert shares_of(found)["1.self_attn.q_proj"] == (0, 1, 0)
    assert shares_of(found)["1.self_attn.k_proj"] is None
    [one] = [one for one in found.modules if one.name.endswith("1.self_attn.q_proj")]
    first, second = (load_file(root / f"checkpoint-{step}/model.safetensors") for step in (0, 10))
    change = second[one.name + ".bias"] - first[one.name + ".bias"]
    assert one.change == pytest.approx(found.num_states * float((change**2).sum()), rel=1e-5)


def test_equal_checkpoints_have_no_shares(untied, responses):
    found = decomposed([untied], responses)
    assert {one.shares for one in found.modules} == {None}
    assert (found.mean_shares(), found.dominant) == (None, "nothing, for no output changed")
    assert {one.rounding for one in found.modules} == {0.0}
    assert found.to_dict()["mean_shares"] is None


def test_groups_are_sums_over_their_modules(run, responses):
    found = decomposed([run], responses)
    assert [one.name for one in found.by_layer()] == ["block 0", "block 1", "lm_head"]
    assert [one.name.rpartition(".")[2] for one in found.by_kind()] == [*KINDS, "lm_head"]
    for groups in (found.by_layer(), found.by_kind(), found.by_layer(null=True)):
        assert sum(one.num_modules for one in groups) == 15
    total = sum(one.gram for one in found.modules)
    np.testing.assert_allclose(sum(one.gram for one in found.by_layer()), total)
    expected = np.mean([one.shares for one in found.modules], axis=0)
    np.testing.assert_allclose(found.mean_shares(), expected)


def test_the_null_moves_every_tensor_as_far_and_elsewhere(run, responses, monkeypatch):
    made = []
    real = decomposition._shuffled

    def shuffled(before, after, seed):
        null = real(before, after, seed)
        # Copies: a model may compute in the memory of the tensors that it was made of.
        made.extend({name: array.copy() for name, array in w.tensors.items()} for w in (before, after, null))
        return null

    monkeypatch.setattr(decomposition, "_shuffled", shuffled)
    found = decomposed([run], responses)
    before, after, null = made
    for name, old in before.items():
        change, other = (tensors[name].astype(np.float64) - old for tensors in (after, null))
        assert np.linalg.norm(other) == pytest.approx(np.linalg.norm(change), rel=1e-5)
        np.testing.assert_allclose(np.sort(other, axis=None), np.sort(change, axis=None), atol=1e-6)
        assert (other != change).mean() > 0.5
    assert all(one.shares != other.shares for one, other in zip(found.modules, found.null, strict=True))
    assert {one.name for one in found.null} == {one.name for one in found.modules}


def test_batches_and_dtypes_make_little_difference(run, responses):
    exact = decomposed([run], responses, dtype="float64")
    assert max(one.rounding for one in exact.modules) < 1e-14
    for options, tolerance in (({"batch_tokens": 1}, 1e-4), ({"dtype": "bfloat16"}, 0.2)):
        other = decomposed([run], responses, **options)
        for one, same in zip(exact.modules, other.modules, strict=True):
            np.testing.assert_allclose(same.shares, one.shares, atol=tolerance)


def test_nan_is_named_and_one_step_is_no_change(untied, responses, tmp_path):
    root = moved(untied, tmp_path / "run")
    path = root / "checkpoint-10/model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj is NaN"):
        decomposed([root], responses)
    with pytest.raises(InputError, match="a change needs 2 steps"):
        decomposed([untied], responses, steps="0")


class Chain(torch.nn.Module):
    """Linear layers in an order of its own."""

    def __init__(self, order, *, fails_at=None):
        super().__init__()
        self.linear = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3) for name in "abc"})
        self.order, self.fails_at = order, fails_at

    def forward(self, input_ids, use_cache):
        x = input_ids[..., None].float() * torch.ones(3)
        for name in self.order:
            if name == self.fails_at:
                raise ArithmeticError(f"at {name}")
            x = self.linear[name](x)
        return x


def chain_pair(first, second):
    return [(chain, dict(chain.linear.items())) for chain in (first, second)]


def test_models_in_lockstep_meet_at_every_layer():
    met = []
    pair = chain_pair(Chain("abac"), Chain("abac"))
    ids = torch.ones(2, 5, dtype=torch.int64)
    ends = in_lockstep(*pair, ids, lambda name, x, y, x_new, y_new: met.append((name, y, y_new)))
    assert [name for name, *_ in met] == list("abac")
    torch.testing.assert_close(ends[0], met[-1][1])
    torch.testing.assert_close(ends[1], met[-1][2])
    assert not torch.equal(ends[0], ends[1])


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (Chain("abc"), Chain("acb"), InputError, "one comes to c where the other comes to b"),
        (Chain("ab"), Chain("abc"), InputError, "one comes to c where the other comes to its end"),
        (Chain("abc"), Chain("ab"), InputError, "one comes to c where the other ends"),
        (Chain("abc", fails_at="b"), Chain("abc"), ArithmeticError, "at b"),
        (Chain("abcabc"), Chain("abc", fails_at="b"), ArithmeticError, "at b"),
    ],
)
def test_models_that_part_or_fail_leave_no_thread_behind(first, second, error, message):
    import threading

    with pytest.raises(error, match=message):
        in_lockstep(*chain_pair(first, second), torch.ones(1, 2, dtype=torch.int64), lambda *args: None)
    assert not [thread for thread in threading.enumerate() if thread.name == "ckptlin-lockstep"]
    assert not any(module._forward_hooks for chain in (first, second) for module in chain.linear.values())


def save_pair(root, model):
    for step in (0, 10):
        model.save_pretrained(root / f"checkpoint-{step}")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-2 * torch.randn_like(parameter))
    return root


def test_experts_are_left_out_and_named(responses, tmp_path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=1,
    )
    run = save_pair(tmp_path / "run", Qwen3MoeForCausalLM(config))
    found = decomposed([run], responses)
    assert {one.name.rpartition(".")[2] for one in found.modules} == {*KINDS[:4], "lm_head"}
    assert max(one.rounding for one in found.modules) < 1e-6
    assert all("mlp" in name for name in found.left_out)
    assert any("experts" in name for name in found.left_out)
    shown = call("decompose", run, "--responses", responses).stdout
    assert f"left out: {len(found.left_out)} modules" in shown


def test_a_model_without_linear_layers_is_refused(responses, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2, eos_token_id=1, bos_token_id=1)
    run = save_pair(tmp_path / "run", GPT2LMHeadModel(config))
    message = refusal("decompose", run, "--responses", responses)
    assert "has no torch.nn.Linear" in message
    assert "is a Conv1D" in message


def test_the_command_shows_and_draws(run, responses, tmp_path):
    plots = tmp_path / "plots"
    shown = call("decompose", run, "--responses", responses, "--modules", "--plot", plots).stdout
    assert "from step 0 to step 300, 96 tokens, 15 linear layers" in shown
    assert "model.layers.1.mlp.down_proj" in shown
    assert "What dominates: the " in shown
    assert [path.name for path in plots.iterdir()] == ["decomposition.png"]
    data = call_json("decompose", run, "--responses", responses, "--csv", tmp_path / "d.csv", "--steps", "100:")
    assert data["steps"] == [100, 300]
    assert sum(data["mean_shares"].values()) == pytest.approx(1)
    assert len(data["modules"]) == 15
    lines = (tmp_path / "d.csv").read_text().splitlines()
    assert len(lines) == 16
    assert "cross_input_weight" in lines[0]
    assert "a change needs 2 steps" in refusal("decompose", run, "--responses", responses, "--steps", "0")
