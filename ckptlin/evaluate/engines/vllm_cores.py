"""The two forms in which vLLM runs a model offline, behind one face.

`SingleCore` is ``vllm.LLM``: one copy of the model, on one device or on several by tensor parallelism.
`ParallelCore` is ``AsyncLLM``, which since vLLM's version 1 is what runs several copies (data parallelism): it
starts a process for each, and hands every request to the one that has least to do.
"""

import asyncio
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Protocol

from ckptlin.errors import CkptlinError

__all__ = ["Core", "Outcome", "ParallelCore", "SingleCore"]

# Requests that wait inside vLLM, as a multiple of those that it works on: it never runs dry, and holds few.
_WINDOW = 2

Outcome = tuple[str, tuple[int, ...], bool]  # the request's name, its tokens, whether a stop token ended it
Ask = tuple[str, list[int], Any]  # name, prompt, SamplingParams


class Core(Protocol):
    """A model that vLLM runs."""

    def reload(self, directory: str) -> None:
        """Put other weights of the same architecture in, and forget all prefixes."""

    def run(self, asks: Iterator[Ask]) -> Generator[list[Outcome], None, None]:
        """Generate; the requests under way are taken back when the iterator is closed."""

    def close(self) -> None:
        """Give everything back."""


class SingleCore:
    """One copy of a model.

    Parameters
    ----------
    **arguments
        Of ``vllm.LLM``.

    Raises
    ------
    CkptlinError
        If another one is open: vLLM's groups of devices belong to the process, and two engines in it draw other
        answers than each would alone.
    """

    _is_open: ClassVar[bool] = False
    # Of torch, when the first one in this process was started.
    _num_threads: ClassVar[int | None] = None

    def __init__(self, **arguments: Any) -> None:
        import torch
        from vllm import LLM

        if SingleCore._is_open:
            raise CkptlinError(
                "an engine vllm is open in this process already; close it before another is opened"
            )
        if SingleCore._num_threads is None:
            SingleCore._num_threads = torch.get_num_threads()
        with _as_many_threads(SingleCore._num_threads):
            self._llm: Any = LLM(**arguments)
        SingleCore._is_open = True
        self._window = _WINDOW * self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    @property
    def llm(self) -> Any:
        """The ``vllm.LLM``."""
        return self._llm

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return _name(self._llm.llm_engine.vllm_config)

    def reload(self, directory: str) -> None:
        """Put other weights of the same architecture in, and forget all prefixes."""
        method, arguments = _reload_call(self._llm.llm_engine.vllm_config, directory)
        with _as_many_threads(SingleCore._num_threads):
            self._llm.collective_rpc(method, kwargs=arguments)
        # In this order, and always: else keys and values of the model before answer for it (vllm#32718).
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache")

    def run(self, asks: Iterator[Ask]) -> Generator[list[Outcome], None, None]:
        """Generate; the requests under way are taken back when the iterator is closed."""
        from torch.random import fork_rng

        engine = self._llm.llm_engine
        under_way: dict[str, str] = {}
        try:
            while True:
                while len(under_way) < self._window and (ask := next(asks, None)) is not None:
                    name, prompt_ids, params = ask
                    under_way[name] = engine.add_request(name, {"prompt_token_ids": prompt_ids}, params)
                if not under_way:
                    return
                # On a CPU it draws from the process's own random numbers, though each answer has its seed.
                with fork_rng(devices=[]), _as_many_threads(SingleCore._num_threads):
                    outputs = [output for output in engine.step() if output.finished]
                for output in outputs:
                    del under_way[output.request_id]
                if outputs:
                    yield [_outcome(output) for output in outputs]
        finally:
            if under_way:
                engine.abort_request(list(under_way.values()), internal=True)

    def close(self) -> None:
        """Give everything back."""
        from vllm.distributed import cleanup_dist_env_and_memory

        llm, self._llm = self._llm, None
        SingleCore._is_open = False
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


@contextmanager
def _as_many_threads(num_threads: int | None) -> Iterator[None]:
    """Let torch have so many threads.

    On a CPU vLLM 0.32.0 packs weights for the threads that there are, and reads them with those of its first
    start in the process: with another number some models' answers are wrong, without a word.
    """
    import torch

    before = torch.get_num_threads()
    if num_threads is None or num_threads == before:
        yield
        return
    set_num_threads = torch.set_num_threads  # vLLM replaces it while it starts
    set_num_threads(num_threads)
    try:
        yield
    finally:
        set_num_threads(before)


class ParallelCore:
    """Several copies of a model, each in a process of its own.

    Parameters
    ----------
    **arguments
        Of ``vllm.AsyncEngineArgs``.
    """

    def __init__(self, **arguments: Any) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        async def start() -> Any:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

        self._loop = asyncio.new_event_loop()
        try:
            self._llm: Any = self._loop.run_until_complete(start())
        except BaseException:
            self._loop.close()
            raise
        config = self._llm.vllm_config
        self._window = (
            _WINDOW * config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
        )

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return _name(self._llm.vllm_config)

    def reload(self, directory: str) -> None:
        """Put other weights of the same architecture in, in every copy, and forget all prefixes."""

        async def reload() -> bool:
            method, arguments = _reload_call(self._llm.vllm_config, directory)
            await self._llm.collective_rpc(method, kwargs=arguments)
            return bool(await self._llm.reset_prefix_cache())

        if not self._loop.run_until_complete(reload()):
            raise RuntimeError("vLLM kept its prefix cache")

    def run(self, asks: Iterator[Ask]) -> Generator[list[Outcome], None, None]:
        """Generate; the requests under way are taken back when the iterator is closed."""
        tasks: set[asyncio.Task[Outcome]] = set()
        try:
            while True:
                while len(tasks) < self._window and (ask := next(asks, None)) is not None:
                    tasks.add(self._loop.create_task(self._answer(*ask)))
                if not tasks:
                    return
                done, tasks = self._loop.run_until_complete(
                    asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                )
                yield [task.result() for task in done]
        finally:
            for task in tasks:
                task.cancel()  # which aborts its request
            if tasks:
                self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _answer(self, name: str, prompt_ids: list[int], params: Any) -> Outcome:
        async for output in self._llm.generate({"prompt_token_ids": prompt_ids}, params, name):
            if output.finished:
                return _outcome(output)
        raise RuntimeError(f"vLLM ended request {name} without an answer")

    def close(self) -> None:
        """End the processes."""
        llm, self._llm = self._llm, None
        llm.shutdown()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()


def _outcome(output: Any) -> Outcome:
    answer = output.outputs[0]
    return output.request_id, tuple(answer.token_ids), answer.finish_reason == "stop"


def _reload_call(config: Any, directory: str) -> tuple[str, dict[str, str]]:
    if config.parallel_config.worker_extension_cls:
        return "reload_whole", {"directory": directory}
    return "reload_weights", {"weights_path": directory}


def _name(config: Any) -> str:
    return str(config.model_config.dtype).removeprefix("torch.")
