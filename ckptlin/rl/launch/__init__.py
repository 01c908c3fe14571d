"""Configurations of ``accelerate launch`` for more than one process, shipped as YAML beside this file.

``accelerate launch --config_file "$(ckptlin train launch-config fsdp)" "$(which ckptlin)" train grpo ...``
"""

from pathlib import Path

from ckptlin.errors import SelectionError

__all__ = ["LAUNCH_CONFIGS", "launch_config"]

LAUNCH_CONFIGS = {
    "multi-cpu": "processes on one machine without a GPU, each with the whole model",
    "multi-gpu": "a process a GPU, each with the whole model",
    "fsdp": "weights, gradients and optimizer shared out among the GPUs (FSDP 2)",
    "deepspeed-zero2": "gradients and optimizer shared out (ZeRO 2); checkpoints in bfloat16, no RL-Extra",
    "deepspeed-zero3": "all shared out (ZeRO 3); checkpoints in bfloat16, no RL-Extra",
}


def launch_config(name: str) -> Path:
    """Return the file of a configuration.

    Raises
    ------
    SelectionError
        If there is none of that name.

    Examples
    --------
    >>> launch_config("fsdp").name
    'fsdp.yaml'
    """
    if name not in LAUNCH_CONFIGS:
        raise SelectionError(f"no launch configuration `{name}`; there are {', '.join(LAUNCH_CONFIGS)}")
    return Path(__file__).with_name(f"{name}.yaml")
