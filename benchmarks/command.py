"""The command line that all benchmarks share: choose a size, measure, print, save."""

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Section, machine, print_section, save_sections
from benchmarks.scratch import Scratch
from benchmarks.synthetic import MODELS

__all__ = ["Settings", "Topic", "main_of"]


@dataclass(frozen=True)
class Settings:
    """What the command line asked for.

    Attributes
    ----------
    model, scale : str, float
        The model and the share of its layers and vocabulary.
    repeats : int
    rival_scale : float or None
        Share of the 1.5 B model that the rivals are given; None for ``scale``, at most 0.1.
    mergekit : Path or None
        Environment of mergekit, made if it is not there; None to leave mergekit out.
    """

    scratch: Scratch
    model: str
    scale: float
    repeats: int
    rival_scale: float | None
    mergekit: Path | None


Topic = Callable[[Settings], Section]


def main_of(topics: Mapping[str, Topic], doc: str | None, argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure the topics and print a table of each; JSON is renewed after every one."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="1.5b")
    parser.add_argument("--scale", type=float, default=0.1, help="share of the layers and the vocabulary")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--scratch", type=Path, help="directory for the runs; default the system's")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument(
        "--rival-scale", type=float, help="share of the model that the rivals get; default --scale, at most 0.1"
    )
    parser.add_argument(
        "--mergekit",
        type=Path,
        nargs="?",
        const=Path("build/mergekit"),
        metavar="VENV",
        help="measure mergekit too; it is installed into VENV (build/mergekit) if it is not there",
    )
    if len(topics) > 1:
        parser.add_argument("--only", help=f"some of {','.join(topics)}")
    args = parser.parse_args(argv)
    chosen = list(topics)
    if getattr(args, "only", None):
        chosen = args.only.split(",")
        if unknown := [name for name in chosen if name not in topics]:
            parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(topics)}")
    sections = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    print(machine())
    try:
        with Scratch(args.scratch) as scratch:
            settings = Settings(scratch, args.model, args.scale, args.repeats, args.rival_scale, args.mergekit)
            for name in chosen:
                section = topics[name](settings)
                section = Section(section.title, section.figures, [*section.notes, *scratch.notes])
                scratch.notes.clear()
                print_section(section)
                sections.append(section)
                if args.json:
                    save_sections(args.json, sections)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    figures = [figure for section in sections for figure in section.figures]
    verdicts = [figure.verdict for figure in figures if figure.bar is not None]
    short = sum(verdict.startswith("falls") for verdict in verdicts)
    missing = verdicts.count("not measured")
    print(f"\n{verdicts.count('pass')} bars passed, {short} fell short, {missing} not measured")
