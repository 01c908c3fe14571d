"""``ckptlin methods``."""

import math
from typing import Any

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json
from ckptlin_cli.tables import echo_pairs

__all__ = ["command"]

_REST = "whether the other components stay as far as they have come"


@make_command("methods", examples=["ckptlin methods", "ckptlin methods --json"])
@json_option
def command(as_json: bool) -> None:
    """List the prediction methods, and the parameters that they take.

    A method is named with its parameters wherever one is asked for: wls:decay=0.5, or damped:base=ols.
    """
    from ckptlin.methods import all_methods, parse_method
    from ckptlin.methods.rank1_matrix import Rank1Matrix

    entries = list(all_methods().values())
    if as_json:
        methods = [
            {
                "name": entry.name,
                "description": entry.description,
                "parameters": [
                    {
                        "name": p.name,
                        "default": p.default,
                        "description": p.description,
                        "low": p.low,
                        "high": p.high,
                    }
                    for p in entry.parameters
                ],
                "min_steps": parse_method(entry.name).min_steps,
                "needs_gram": entry.needs_gram,
                "is_linear": entry.is_linear,
                "keep": list(entry.keep),
            }
            for entry in entries
        ]
        print_json({"methods": methods, "for_extrapolate_alone": [_of_matrices(Rank1Matrix())]})
        return
    rank1 = Rank1Matrix()
    echo_pairs(
        [
            *((entry.name, _line(entry)) for entry in entries),
            (rank1.name, f"{rank1.description}; for extrapolate alone"),
        ]
    )
    click.echo("\nParameters, as NAME:KEY=VALUE,...")
    echo_pairs(
        [
            (f"{entry.name}:{p.name}={p.default}", p.description + _bounds(p.low, p.high))
            for entry in entries
            for p in entry.parameters
        ]
        + [(f"{rank1.name}:rest=1", f"{_REST} (0 or 1)")]
    )


def _of_matrices(method: Any) -> dict[str, Any]:
    parameter = {"name": "rest", "default": 1, "description": _REST, "low": 0, "high": 1}
    return {
        "name": method.name,
        "description": method.description,
        "parameters": [parameter],
        "min_steps": method.min_steps,
        "needs_gram": False,
        "is_linear": False,
        "keep": list(method.keep),
    }


def _line(entry: Any) -> str:
    kept = f" (keeps {', '.join(entry.keep)} unless told otherwise)" if entry.keep else ""
    return f"{entry.description}{kept}"


def _bounds(low: float, high: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f" ({low:g} to {high:g})"
    return f" (at least {low:g})" if math.isfinite(low) else ""
