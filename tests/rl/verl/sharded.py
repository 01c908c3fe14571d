"""A program that trains a model in shards, and saves or restores it by verl's own checkpoint manager, on CPUs.

    sharded.py save|resume MODEL ACTOR WEIGHTS RANK WORLD_SIZE RENDEZVOUS

``save`` makes two updates, saves to the directory ACTOR and makes a third; ``resume`` restores ACTOR in place
of the first two.  The weights after the last update go to the file WEIGHTS, those that were saved to
WEIGHTS.saved.  One process uses FSDP, verl's default; several use FSDP2, since torch's FSDP cannot gather a
model on CPUs.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

SAVED = ["model", "optimizer", "extra", "hf_model"]


def write_weights(model, path):
    """Write the whole model, gathered by torch."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if torch.distributed.get_rank() == 0:
        # Tied weights are one tensor under two names, which safetensors refuses.
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)


def main():
    from verl.trainer.config import CheckpointConfig
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    mode, source, actor, weights, rank, world_size, rendezvous = sys.argv[1:]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world_size)
    )
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if world_size == "1":
        model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    else:
        fully_shard(model, mesh=init_device_mesh("cpu", (int(world_size),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    manager = FSDPCheckpointManager(
        model=model,
        optimizer=optimizer,
        lr_scheduler=schedule,
        processing_class=AutoTokenizer.from_pretrained(source),
        checkpoint_config=CheckpointConfig(save_contents=SAVED, load_contents=SAVED[:3]),
    )

    def update(number):
        ids = torch.tensor([[2 + number + int(rank), 5, 7, 9]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    if mode == "save":
        update(0)
        update(1)
        manager.save_checkpoint(actor, global_step=2)
        write_weights(model, f"{weights}.saved")
    else:
        manager.load_checkpoint(actor)
    update(2)
    write_weights(model, Path(weights))


if __name__ == "__main__":
    main()
