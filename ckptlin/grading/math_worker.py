"""The program that compares answers, in a process of its own: ``python -m ckptlin.grading.math_worker``.

A comparison may never end, or take all memory; then only the end of a process helps.  Requests come in as JSON,
a line each, and answers go out as such; what a library prints goes to stderr.
"""

import json
import math
import os
import resource
import sys
from typing import Any

from ckptlin.grading.math_answers import same_answer

__all__ = ["main"]


def main() -> None:
    """Answer requests until stdin ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    limit_s, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))
    # Loading it takes a second or two, which is no comparison's own.
    import math_verify

    out.write(json.dumps({"ready": math_verify.__name__}) + "\n")
    for line in sys.stdin:
        _allow(limit_s)
        out.write(json.dumps(_answer(json.loads(line))) + "\n")


def _answer(request: Any) -> dict[str, Any]:
    try:
        return {"same": same_answer(request["gold"], request["answer"])}
    except (MemoryError, RecursionError) as error:
        return {"failed": type(error).__name__}
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # What a parser of formulas says to what is none.
        return {"same": False, "error": type(error).__name__}


def _allow(seconds: float) -> None:
    """Let the kernel end this process after so many seconds of processor time more.

    Unlike an alarm it needs no main thread, and a busy machine takes nothing from it.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    until = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (until if hard < 0 else min(until, hard), hard))


if __name__ == "__main__":
    main()
