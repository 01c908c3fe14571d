"""What the workers of vLLM's CPU build do in addition: they take new weights whole."""

from typing import Any

__all__ = ["WholeReload"]


class WholeReload:
    """Mixed into vLLM's CPU worker (``worker_extension_cls``).

    vLLM 0.32.0 computes logits on a CPU from a packed copy of the output embedding.  Where it is tied to the
    input embedding, a reload puts the new weights in place but leaves the packed copy of the old ones, so that
    new layers answer through the head of the model before.
    """

    model_runner: Any
    reload_weights: Any

    def reload_whole(self, directory: str) -> None:
        """Reload weights from a directory, and pack the output embedding anew."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=directory)
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)
