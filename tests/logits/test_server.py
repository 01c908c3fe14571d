"""vLLM's OpenAI-compatible server with a pair: a real request on loopback."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from ckptlin.logits import make_pair, write_pair
from tests.logits.checkpoints import save_checkpoints
from tests.logits.loop import TwoModels, make_prompts

_START_S = 300
_NEEDED = (
    "vllm",
    "uvicorn",
    "watchfiles",
    "prometheus_fastapi_instrumentator",
    "model_hosting_container_standards",
)
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(
    bool(_MISSING), reason=f"{', '.join(_MISSING)} not installed: the extra `serve`, docs/logits.md"
)
def test_a_request_over_http_is_answered_by_mixed_logits(tmp_path):
    checkpoints = save_checkpoints(tmp_path)
    directory = write_pair(make_pair(*checkpoints, target=27), tmp_path / "pair")
    prompt = make_prompts(9)[-1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` asks for the metadata of a package called vllm, which the CPU build is not.
    program = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(directory),
    ]
    options = ["--enforce-eager", "--dtype=float32", "--max-model-len=64", "--no-enable-chunked-prefill"]
    options += ["--host=127.0.0.1", f"--port={port}", "--served-model-name=pair", "--generation-config=vllm"]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    log = tmp_path / "server.log"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy
    with log.open("w") as output:
        server = subprocess.Popen([*program, *options], env=environment, stdout=output, stderr=output)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(opener, f"{url}/health", server, log)
            body = {"model": "pair", "prompt": prompt, "max_tokens": 16, "temperature": 0, "logprobs": 0}
            body |= {"ignore_eos": True, "return_token_ids": True}
            request = urllib.request.Request(
                f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with opener.open(request, timeout=60) as response:
                (choice,) = json.load(response)["choices"]
        finally:
            server.terminate()
            server.wait(60)
    loop = TwoModels(*checkpoints)
    written = choice["token_ids"]
    assert len(written) == 16
    assert written == loop.greedy(prompt, written, 1.7)
    expected = loop.log_probs([*prompt, *written], 1.7)[len(prompt) - 1 : -1]
    for row, token, found in zip(expected, written, choice["logprobs"]["token_logprobs"], strict=True):
        assert found == pytest.approx(float(row[token]), abs=2e-5)


def _wait(opener, url, server, log) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with opener.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"no answer within {_START_S} s: {log.read_text()[-3000:]}")
