"""Readers of every layout of a checkpoint on disk, and the safetensors writer.

``base`` says what a reader offers; ``huggingface`` is the reader; ``run`` finds the checkpoints of a run;
``writer`` writes one.
"""

from ckptlin.checkpoints.base import Checkpoint, WeightFile
from ckptlin.checkpoints.consistency import check_consistent
from ckptlin.checkpoints.huggingface import HuggingFaceCheckpoint
from ckptlin.checkpoints.run import Run, SkippedCheckpoint, StepCheckpoint, discover
from ckptlin.checkpoints.run_trajectories import RunTrajectories
from ckptlin.checkpoints.safetensors_header import SafetensorsHeader, build_header, parse_header, read_header
from ckptlin.checkpoints.weight_plan import WeightFilePlan, index_json, plan_files
from ckptlin.checkpoints.writer import CheckpointWriter

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "HuggingFaceCheckpoint",
    "Run",
    "RunTrajectories",
    "SafetensorsHeader",
    "SkippedCheckpoint",
    "StepCheckpoint",
    "WeightFile",
    "WeightFilePlan",
    "build_header",
    "check_consistent",
    "discover",
    "index_json",
    "parse_header",
    "plan_files",
    "read_header",
]
