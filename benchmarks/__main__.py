"""Run the benchmarks: every bar of the project, on this machine, with a verdict each.

python -m benchmarks --scale 0.03                  minutes on two cores, 10 GB of scratch space
python -m benchmarks --scale 1 --scratch /scratch  the 1.54 B model: hours, 65 GB of scratch space
python -m benchmarks --only core,kernel            some topics
"""

from benchmarks.cluster import cluster_figures
from benchmarks.codecs import codec_figures
from benchmarks.command import main_of
from benchmarks.compare import rival_figures
from benchmarks.core import core_figures
from benchmarks.kernel import kernel_figures
from benchmarks.memory import memory_figures
from benchmarks.profile import profile_figures
from benchmarks.scaling import checkpoint_figures, parameter_figures, worker_figures

# Topics beside one another share a synthetic run where their sizes are the same.
TOPICS = {
    "kernel": kernel_figures,
    "profile": profile_figures,
    "codecs": codec_figures,
    "core": core_figures,
    "memory": memory_figures,
    "workers": worker_figures,
    "rivals": rival_figures,
    "checkpoints": checkpoint_figures,
    "parameters": parameter_figures,
    "cluster": cluster_figures,
}

if __name__ == "__main__":
    main_of(TOPICS, __doc__)
