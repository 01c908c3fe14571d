"""Launch configurations: accelerate reads them, and two processes train one run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ckptlin.rl.config import RlExtraConfig
from ckptlin.rl.config_file import config_to_yaml
from ckptlin.rl.launch import LAUNCH_CONFIGS, launch_config
from ckptlin.rl.step_log import read_log
from tests.rl_runs import tiny_config
from tests.tiny_models import load_weights

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from pathlib import Path
from ckptlin.rl.config_file import load_config
from ckptlin.rl.trainer import train
torch.set_num_threads(1)
train(load_config(Path(sys.argv[1]), with_extra=True), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("name", LAUNCH_CONFIGS)
def test_accelerate_reads_every_configuration(name):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    path = launch_config(name)
    read = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert read.distributed_type.value == written["distributed_type"]
    assert read.num_processes == written["num_processes"]
    # accelerate refuses keys that it does not know at the top; further inside it takes anything.
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(written.get("fsdp_config", {})) <= known
    assert set(written.get("deepspeed_config", {})) <= known


@pytest.mark.slow
def test_two_processes_train_one_run(tiny_model, tmp_path):
    config = tiny_config(tiny_model, steps=6, extra=RlExtraConfig(m=2, n=1))
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch_config("multi-cpu")),
        str(program), str(tmp_path / "config.yaml"), str(tmp_path / "run"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_log(tmp_path / "run" / "log.csv")
    assert [(row.step, row.virtual_step) for row in rows] == [(1, 1), (2, 2), (3, 4), (4, 5), (5, 7), (6, 8)]
    first, last = (load_weights(tmp_path / "run" / f"checkpoint-{step}") for step in (0, 8))
    assert any((first[name] != last[name]).any() for name in first)
