"""A program: greedy tokens of a pair that two processes share by tensor parallelism, a line a prompt."""

import os
import sys
import warnings

if __name__ == "__main__":
    os.environ |= {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    }
    warnings.simplefilter("ignore")
    from vllm import LLM, SamplingParams

    from tests.logits.loop import make_prompts

    llm = LLM(
        model=sys.argv[1],
        dtype="float32",
        enforce_eager=True,
        enable_chunked_prefill=False,
        skip_tokenizer_init=True,
        max_model_len=64,
        tensor_parallel_size=2,
        kv_cache_memory_bytes=1 << 26,
        generation_config="vllm",
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in make_prompts(8)]
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, detokenize=False)
    for output in llm.generate(prompts, params, use_tqdm=False):
        sys.stdout.write(" ".join(map(str, output.outputs[0].token_ids)) + "\n")
