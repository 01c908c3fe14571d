"""``ckptlin methods``."""

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json
from ckptlin_cli.tables import echo_pairs

__all__ = ["command"]


@make_command("methods", examples=["ckptlin methods", "ckptlin methods --json"])
@json_option
def command(as_json: bool) -> None:
    """List the prediction methods."""
    from ckptlin.methods import METHODS

    if as_json:
        methods = [
            {"name": m.name, "description": m.description, "keep": list(m.keep)} for m in METHODS.values()
        ]
        print_json({"methods": methods})
        return
    echo_pairs(
        [
            (m.name, m.description + (f" (keeps {', '.join(m.keep)} unless told otherwise)" if m.keep else ""))
            for m in METHODS.values()
        ]
    )
