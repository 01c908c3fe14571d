"""All of ckptlin on a run that is trained on the spot: ingest, fit, extrapolate, and see what it is worth.

The predicted step is trained as well, so that nothing has to be believed.  What the defaults gave over three
seeds, and why they are what they are, is recorded in `run_demo`.
"""

import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptlin._version import __version__
from ckptlin.atomic import write_file
from ckptlin.demo.compare import Comparison, Generation, distance, generate, score, verdict
from ckptlin.demo.corpus import EncodedProblems, encode
from ckptlin.demo.figure import draw_comparison
from ckptlin.demo.training import (
    DemoSettings,
    new_model,
    pretrain,
    require_models_extra,
    train_run,
    undisturbed,
)
from ckptlin.errors import OutputExistsError
from ckptlin.extrapolate import extrapolate
from ckptlin.fit import fit
from ckptlin.ingest import ingest
from ckptlin.memory import format_bytes
from ckptlin.methods import get_method
from ckptlin.problems.sums import END, build_tokenizer, draw_sums
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.report.figures import encode_figure, save_figures
from ckptlin.store.store import TrajectoryStore
from ckptlin.summary import GroupSummary, R2Figures

__all__ = ["DEMO_METHODS", "DemoResult", "run_demo"]

DEMO_METHODS = ("ols", "anchored", "two-point")
_NUM_GENERATIONS = 3
_RECORD = "demo.json"
_PARTS = ("base", "run", "store", "extrapolated", "figures")


@dataclass(frozen=True)
class DemoResult:
    """What a demo made and found.

    Attributes
    ----------
    out_dir : Path
    seed : int
    settings : DemoSettings
    model : GroupSummary
        Linearity of the run, with its null.
    comparison : Comparison
    generations : tuple of Generation
        What the best extrapolated model wrote to the first held-out problems.
    figures : tuple of Path
    elapsed_s : float
    """

    out_dir: Path
    seed: int
    settings: DemoSettings
    model: GroupSummary = field(repr=False)
    comparison: Comparison = field(repr=False)
    generations: tuple[Generation, ...] = field(repr=False)
    figures: tuple[Path, ...] = field(repr=False)
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data: the content of ``demo.json``."""
        return {
            "created_by": f"ckptlin {__version__}",
            "finished": True,
            "out": str(self.out_dir),
            "seed": self.seed,
            "settings": self.settings.to_dict(),
            "linearity": self.model.to_dict(),
            "comparison": self.comparison.to_dict(),
            "verdict": verdict(self.comparison),
            "generations": [generation.to_dict() for generation in self.generations],
            "figures": [str(path) for path in self.figures],
            "elapsed_s": self.elapsed_s,
        }


def run_demo(
    out_dir: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    settings: DemoSettings | None = None,
    progress: Progress = NO_PROGRESS,
    say: Callable[[str], None],
) -> DemoResult:
    """Train a small Qwen2 model, and take its run through ckptlin.

    Everything lies below ``out_dir``: ``base`` and ``run`` (the checkpoints), ``store``, ``extrapolated``,
    ``figures`` and, written last, ``demo.json``.  Nothing is downloaded.

    Parameters
    ----------
    out_dir : Path
    seed : int
        Of the model, the problems and their order.  On one machine the same seed gives the same figures.
    overwrite : bool
        Replace a former demo, finished or not.
    settings : DemoSettings, optional
    progress : Progress
    say : callable
        Takes what is told to the user, line by line.

    Raises
    ------
    OutputExistsError
        If ``out_dir`` is not empty, and not a former demo that may be replaced.
    MissingExtraError
        If torch, transformers or accelerate is not installed.

    Notes
    -----
    What the defaults gave for the seeds 0 to 4 (float32; AMD EPYC, torch 2.13, transformers 5.19):

    - R² of all parameters: median .95 to .96, .81 to .84 of them above 0.7.  Random walks: .41 to .46, and .25
      to .27.
    - The loss of step 240, the last seen, was .255 .200 .250 .265 .253, of step 480 as trained .240 .185 .232
      .250 .234.  Predicted for step 480: ols .245 .186 .239 .254 .239, anchored .244 .187 .240 .254 .239,
      two-point .248 .193 .245 .258 .243.  So all beat the last seen, none what was trained; ols and anchored
      gained .58 to .92 of what training gained, two-point .29 to .52.
    - Skill: ols .81 to .88, anchored .84 to .90, two-point .81 to .85.
    - Answers wholly right rose less clearly than the loss fell: twice two-point had no more of them than the
      last seen.

    The settings were chosen for being stable over seeds, among learning rates from 3e-5 to 3e-4, batches of 64
    to 256 and 240 to 480 steps, rehearsed on the same model in a plain training loop.  Straight lines do not
    always help: with ``run_lr=3e-4`` (seeds 0 to 2) R² was still .88 in the median and above 0.7 for .72 of the
    parameters, but every prediction was worse than the last seen, at losses of .41 to .75 against .15 to .20,
    and skills lay between -.30 and .32.  A high R² alone promises nothing at twice the span.
    """
    require_models_extra()
    started = time.perf_counter()
    out_dir = Path(out_dir)
    _prepare(out_dir, seed, overwrite=overwrite)
    demo = _Demo(out_dir, seed, settings or DemoSettings(), progress, say)
    with undisturbed(seed):
        demo.train()
        model = demo.ingest_and_fit()
        comparison = demo.extrapolate()
        demo.report(comparison)
        generations = demo.generate(comparison)
    figures = demo.draw(comparison)
    result = DemoResult(
        out_dir=out_dir,
        seed=seed,
        settings=demo.settings,
        model=model,
        comparison=comparison,
        generations=generations,
        figures=tuple(figures),
        elapsed_s=time.perf_counter() - started,
    )
    _record(out_dir, result.to_dict())
    say("")
    say(f"All figures are in {out_dir / _RECORD}. It took {result.elapsed_s:.0f} s.")
    return result


class _Demo:
    """A demo under way."""

    def __init__(
        self, out_dir: Path, seed: int, settings: DemoSettings, progress: Progress, say: Callable[[str], None]
    ) -> None:
        self.settings = settings
        self._out = out_dir
        self._seed = seed
        self._progress = progress
        self._say = say
        problems = draw_sums(
            settings.num_train + settings.num_held_out, num_terms=settings.num_terms, seed=seed
        )
        self._held_out = problems[: settings.num_held_out]
        self._train = problems[settings.num_held_out :]
        self._encoded_held_out: EncodedProblems | None = None

    def train(self) -> None:
        settings, say = self.settings, self._say
        tokenizer = build_tokenizer()
        problems = encode(self._train, tokenizer)
        self._encoded_held_out = encode(self._held_out, tokenizer)
        model = new_model(settings, tokenizer)
        example = self._held_out[0]
        say(
            f"A Qwen2 model of {model.num_parameters():,} parameters, float32, learns to add: "
            f"{example.problem} {example.answer}{END}"
        )
        base, run = self._out / "base", self._out / "run"
        pretrain(model, tokenizer, problems, settings, base, seed=self._seed, progress=self._progress)
        say(
            f"  {base}: pretrained for {settings.pretrain_steps} steps, "
            f"learning rate {settings.pretrain_lr:g} falling to 0"
        )
        train_run(model, tokenizer, problems, settings, run, seed=self._seed + 1, progress=self._progress)
        say(
            f"  {run}: the run, {settings.run_steps} steps more at a constant {settings.run_lr:g}, "
            f"a checkpoint every {settings.checkpoint_every}"
        )
        say("  Both are supervised training by transformers.Trainer, not reinforcement learning.")

    def ingest_and_fit(self) -> GroupSummary:
        say, store = self._say, self._out / "store"
        self._command("ingest", self._out / "run", store, "--base", self._out / "base")
        ingested = ingest(self._out / "run", store, base=self._out / "base", progress=self._progress)
        say(
            f"  {len(ingested.store.steps)} checkpoints, {format_bytes(ingested.raw_bytes)} of weights in "
            f"{format_bytes(ingested.stored_bytes)}"
        )
        self._command("fit", store)
        model = fit(TrajectoryStore(store), seed=self._seed, progress=self._progress).summary.model()
        say(f"  {'R² of the weights in the step':<30} {'parameters':>12}   median   above 0.7   random walks")
        for title, observed, null in (
            ("all that moved", model.moved, model.null_moved),
            ("the paper's filter", model.paper, model.null_paper),
        ):
            say(f"  {title:<30} {observed.count:>12,.0f}   {_linearity(observed)}   {_linearity(null)}")
        return model

    def extrapolate(self) -> Comparison:
        settings, out = self.settings, self._out
        target, last = settings.run_steps, settings.last_seen
        store = TrajectoryStore(out / "store")
        for method in DEMO_METHODS:
            directory = out / "extrapolated" / method
            options = ("--step", target, "--steps", f"0:{last}", "--method", method, "--out", directory)
            self._command("extrapolate", out / "store", *options)
            extrapolate(store, target, directory, method=method, steps=f"0:{last}", progress=self._progress)
            keep = get_method(method).keep
            if keep:
                self._say(f"  as in the paper, tensors named {', '.join(keep)} stay as at step {last}")
        return self._compare()

    def _compare(self) -> Comparison:
        target, last = self.settings.run_steps, self.settings.last_seen
        every = self.settings.checkpoint_every
        run = {0: self._out / "base"}
        run |= {step: self._out / "run" / f"checkpoint-{step}" for step in range(every, target + 1, every)}
        predicted = {method: self._out / "extrapolated" / method for method in DEMO_METHODS}
        problems = self._encoded_held_out
        assert problems is not None  # noqa: S101 (the training set it)
        with self._progress.phase("evaluate", (len(run) + len(predicted)) * problems.input_ids.size) as advance:

            def scored(checkpoint: Path) -> Any:
                result = score(checkpoint, problems)
                advance(problems.input_ids.size)
                return result

            return Comparison(
                target=target,
                last_seen=last,
                run={step: scored(path) for step, path in run.items()},
                predicted={method: scored(path) for method, path in predicted.items()},
                distance={method: distance(path, run[target]) for method, path in predicted.items()},
                distance_last_seen=distance(run[last], run[target]),
            )

    def report(self, comparison: Comparison) -> None:
        say, target, last = self._say, comparison.target, comparison.last_seen
        say("")
        say(
            f"What the predictions of step {target} are worth, on {self.settings.num_held_out:,} held-out sums:"
        )
        say(f"  {'':<34} {'loss':>8} {'right':>7} {'distance':>9} {'skill':>6}")
        rows: list[tuple[str, Any, float | None, float | None]] = [
            ("step 0, pretrained", comparison.run[0], None, None),
            (f"step {last}, the last seen", comparison.run[last], comparison.distance_last_seen, 0.0),
            *(
                (f"step {target} by {m}", comparison.predicted[m], comparison.distance[m], comparison.skill[m])
                for m in comparison.predicted
            ),
            (f"step {target}, as trained", comparison.run[target], 0.0, 1.0),
        ]
        for title, scored, far, skill in rows:
            weights = "" if far is None else f" {far:>9.3f} {skill:>6.2f}"
            say(f"  {title:<34} {scored.loss:>8.4f} {scored.exact:>7.1%}{weights}")
        error = (
            comparison.run[last].exact * (1 - comparison.run[last].exact) / self.settings.num_held_out
        ) ** 0.5
        say(
            f"  right: answers without a mistake, standard error {error:.1%}; distance: in weights, to step "
            f"{target} as trained;"
        )
        say("  skill: 1 - its square over that of the last seen")
        for line in verdict(comparison):
            say(line)

    def generate(self, comparison: Comparison) -> tuple[Generation, ...]:
        checkpoint = self._out / "extrapolated" / comparison.best
        generations = generate(checkpoint, self._held_out[:_NUM_GENERATIONS])
        self._say("")
        self._say(f"{checkpoint} loads with from_pretrained; to the first held-out sums it writes:")
        for written in generations:
            how = "right" if written.is_right else f"wrong, right is {written.expected}"
            self._say(f"  {written.prompt} {written.text} ({how})")
        return generations

    def draw(self, comparison: Comparison) -> list[Path]:
        directory = self._out / "figures"
        self._command("plot", self._out / "store", "--out", directory)
        figures = save_figures(TrajectoryStore(self._out / "store"), directory)
        path = directory / "comparison.png"
        write_file(path, encode_figure(draw_comparison(comparison, name=str(self._out)), "png"))
        for figure in (*figures, path):
            self._say(f"  {figure}")
        return [*figures, path]

    def _command(self, *words: object) -> None:
        """Say what does the same by hand."""
        self._say("")
        self._say(f"$ ckptlin {shlex.join(map(str, words))}")


def _linearity(figures: R2Figures) -> str:
    if figures.median is None or figures.above_7 is None:
        return "     –           –"
    return f"{figures.median:>6.2f}   {figures.above_7:>9.0%}"


def _prepare(out_dir: Path, seed: int, *, overwrite: bool) -> None:
    """Make room for a demo: what a former one left goes, nothing else."""
    if out_dir.exists() and not out_dir.is_dir():
        raise OutputExistsError(f"{out_dir} is there already and is not a directory; give another --out")
    if out_dir.exists() and any(out_dir.iterdir()):
        if not (out_dir / _RECORD).is_file():
            raise OutputExistsError(
                f"{out_dir} is not empty, and holds no demo; give another directory with --out"
            )
        if not overwrite:
            raise OutputExistsError(
                f"{out_dir} holds a demo already; give another --out, or --overwrite to replace it"
            )
    out_dir.mkdir(parents=True, exist_ok=True)
    # Before all else, so that what an interrupted demo leaves is known for one.
    _record(out_dir, {"created_by": f"ckptlin {__version__}", "finished": False, "seed": seed})
    for part in _PARTS:
        path = out_dir / part
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)


def _record(out_dir: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(out_dir / _RECORD, text.encode())
