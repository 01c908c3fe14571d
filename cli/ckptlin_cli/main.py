"""The command ``ckptlin``: its commands are loaded one by one, when they are called."""

import importlib
import sys
from typing import Any

import click

from ckptlin._version import __version__
from ckptlin_cli.options import UsageInOneLine

__all__ = ["COMMANDS", "cli", "main"]

# Command to one line of help; each lives in a module of its name, and loads with numba, zarr and dask only
# when it runs, so that --help answers at once.
COMMANDS: dict[str, str] = {
    "ingest": "Stream a run's checkpoints into a trajectory store.",
    "info": "Show what a store holds.",
    "fit": "Fit every parameter on the step: how linear is the run?",
    "gram": "How far a run moves, how straight, in how many directions.",
    "backtest": "Judge every method by checkpoints that it has not seen.",
    "extrapolate": "Write the checkpoint of a step that was never trained.",
    "plot": "Draw the figures of a store.",
    "export": "Give an ingested checkpoint back, bit for bit.",
    "verify": "Check every chunk of a store.",
    "methods": "List the prediction methods.",
    "evaluate": "Let models answer a task's problems, and compare them.",
    "tasks": "List the tasks that models can be evaluated on.",
    "grade": "Grade answers that exist already, and compare files of them.",
    "generate": "Let a checkpoint answer, or two by extrapolated logits.",
    "responses": "Let a model answer, to see what later checkpoints make of it.",
    "logprobs": "How linear are the log-probabilities of tokens?",
    "activations": "How linear are each layer's hidden states?",
    "decompose": "Does a layer's output change by its input or by its weight?",
    "data": "Prepare the data to train and evaluate on.",
    "train": "Train by reinforcement learning, plainly or by RL-Extra.",
    "demo": "Train a small model and show all of it, in a few minutes.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ckptlin_cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise UsageInOneLine(error, ctx.command_path) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ckptlin")
def cli() -> None:
    """How linear is a training run, and where is it going?

    ckptlin streams the checkpoints of a run into a store of weight trajectories, fits every parameter on the
    training step, and writes the checkpoint of a step that was never trained.
    """


def main() -> Any:
    """Run the command line; the program's entry point."""
    return cli(args=sys.argv[1:], prog_name="ckptlin", windows_expand_args=False)
