"""``ckptlin info``."""

from typing import TYPE_CHECKING, Any

import click

from ckptlin.memory import format_bytes
from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json, steps_option
from ckptlin_cli.tables import echo_pairs, quantity

if TYPE_CHECKING:
    from ckptlin.info import StoreInfo

__all__ = ["command"]


@make_command("info", examples=["ckptlin info ./run.store", "ckptlin info ./run.store --json"])
@click.argument("store", type=click.Path())
@steps_option
@json_option
def command(store: str, steps: str | None, as_json: bool) -> None:
    """Show what a store holds, and what a fit of it (of --steps, if given) would need."""
    from ckptlin.info import info
    from ckptlin.store.store import TrajectoryStore, describe_steps

    found = info(TrajectoryStore(store), steps=steps)
    if as_json:
        print_json(found.to_dict())
        return
    dtypes = ", ".join(f"{quantity(count)} {dtype}" for dtype, count in found.dtypes.items())
    pairs = [
        ("store", f"{found.location} (commit {found.commit}, {found.created_by})"),
        ("model", ", ".join(found.architectures) or "not said by a config.json"),
        ("steps", f"{describe_steps(found.steps)}: {', '.join(map(str, found.steps))}"),
        *_segments(found),
        ("tensors", f"{found.num_tensors}, {quantity(found.num_params)} parameters ({dtypes})"),
        ("fitted", f"{quantity(found.num_fitted)} parameters take part in fits"),
        (
            "size",
            f"{format_bytes(found.raw_bytes)} of weights in {format_bytes(found.stored_bytes)} "
            f"(ratio {found.raw_bytes / max(found.stored_bytes, 1):.2f}, {found.codec}, "
            f"{found.chunk_steps} steps a chunk)",
        ),
        ("files kept", ", ".join(found.files) or "none"),
    ]
    if found.tied:
        pairs.append(("tied", ", ".join(f"{alias} = {name}" for alias, name in found.tied.items())))
    for fit in found.fits:
        maps = ", ".join(f"{name} ({dtype})" for name, dtype in fit["maps"].items()) or "no maps"
        state = f"{fit['state']}{_crossing(fit)}"
        pairs.append((f"fit {fit['name']}", f"{describe_steps(fit['steps'])}; {maps}; {state}"))
    if not found.fits:
        pairs.append(("fits", f"none; run `ckptlin fit {store}`"))
    if found.gram is not None:
        state = f"{found.gram['state']}{_crossing(found.gram)}"
        pairs.append(("Gram matrices", f"{describe_steps(found.gram['steps'])}; {state}"))
    else:
        pairs.append(("Gram matrices", f"none; run `ckptlin gram {store}`"))
    if found.fit_memory_bytes is not None and found.fit_bytes_in is not None:
        pairs.append(
            (
                "a fit needs",
                f"{format_bytes(found.fit_memory_bytes)} of memory, "
                f"and reads {format_bytes(found.fit_bytes_in)} of weights",
            )
        )
    echo_pairs(pairs)


def _segments(found: "StoreInfo") -> list[tuple[str, str]]:
    """Say where the steps are divided by jumps; nothing if they are not."""
    from ckptlin.segments import Jump
    from ckptlin.store.store import describe_steps

    if not found.jumps:
        return []
    parts = [f"{number}: {describe_steps(part)}" for number, part in enumerate(found.segments, start=1)]
    jumps = [str(Jump.from_dict(jump)) for jump in found.jumps]
    return [("segments", "; ".join(parts)), ("jumps", "; ".join(jumps))]


def _crossing(computed: dict[str, Any]) -> str:
    return "; crosses a jump" if computed["crosses_jump"] else ""
