"""The demo's way through ckptlin, part by part: what it does, and what it says of it.

Before each part stands the command that does the same by hand.
"""

import shlex
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ckptlin.atomic import write_file
from ckptlin.backtest import HORIZONS, BacktestResult, backtest
from ckptlin.demo.answers import Answer, write_answers
from ckptlin.demo.comparison import Comparison
from ckptlin.demo.evaluation import Evaluation, distance, evaluate
from ckptlin.demo.figure import draw_comparison, draw_rewards
from ckptlin.demo.isolation import undisturbed
from ckptlin.demo.rewards import RewardRise, measure_rise
from ckptlin.demo.settings import DemoSettings
from ckptlin.demo.shipped import base_model
from ckptlin.extrapolate import extrapolate
from ckptlin.extrapolate_plan import AUTO
from ckptlin.fit import fit
from ckptlin.gram import gram
from ckptlin.ingest import ingest
from ckptlin.memory import format_bytes
from ckptlin.problems import draw_sums
from ckptlin.problems.sums import END
from ckptlin.progress import Progress
from ckptlin.report import draw_backtest, save_figure, save_figures
from ckptlin.rl.config_file import config_to_yaml
from ckptlin.rl.state import JumpRecord
from ckptlin.rl.step_log import StepRow, read_log
from ckptlin.rl.trainer import train
from ckptlin.store.store import TrajectoryStore
from ckptlin.summary import GroupSummary, R2Figures

__all__ = ["DEMO_METHODS", "Tour"]

DEMO_METHODS = (AUTO, "two-point", "ols")
_NUM_ANSWERS = 5
# The reward is told so often while training.
_NUM_REPORTS = 6
_WIDTH = 110


class Tour:
    """A demo under way.

    Parameters
    ----------
    out_dir : Path
        Where everything goes; made already.
    seed : int
    settings : DemoSettings
    progress : Progress
    say : callable
        Takes what is told to the user, line by line.

    Attributes
    ----------
    seconds : dict of str to float
        What each part took so far.
    """

    def __init__(
        self, out_dir: Path, seed: int, settings: DemoSettings, progress: Progress, say: Callable[[str], None]
    ) -> None:
        self.settings = settings
        self.seconds: dict[str, float] = {}
        self._out = out_dir
        self._run, self._figures = out_dir / "run", out_dir / "figures"
        self._seed = seed
        self._progress = progress
        self._say = say
        self._held_out = draw_sums(settings.num_held_out, split="test", seed=seed)
        self._drawn: list[Path] = []

    @property
    def _store(self) -> TrajectoryStore:
        return TrajectoryStore(self._out / "store")

    def _predicted(self, method: str) -> Path:
        return self._out / "extrapolated" / method

    def train(self) -> RewardRise:
        """Train by GRPO from the base model."""
        settings, say, out = self.settings, self._say, self._out
        shutil.copytree(base_model(), out / "base")
        config = settings.train_config(out / "base", seed=self._seed)
        write_file(out / "train.yaml", config_to_yaml(config).encode())
        example = self._held_out[0]
        say(f"A small Qwen2 that adds, with mistakes. What is right: {example.problem} {example.answer}{END}")
        say(f"  {out / 'base'}: pretrained on solutions with mistakes; it comes with ckptlin")
        self._command("train", "grpo", "--config", out / "train.yaml", "--out", self._run)
        say(
            f"  GRPO by TRL: {settings.steps} steps, each of {settings.num_prompts} sums with "
            f"{settings.num_rollouts} answers; the reward is 1 for an answer without a mistake"
        )
        watch = _Watch(settings, say)
        # Progress counts bytes; a token of this task is one.
        step_bytes = settings.num_prompts * settings.num_rollouts * config.sampling.max_completion_tokens
        with (
            self._timed("train"),
            undisturbed(self._seed),
            self._progress.phase("train", settings.steps * step_bytes) as advance,
        ):
            watch.advance = lambda: advance(step_bytes)
            train(config, self._run, listeners=[watch], progress=self._progress)
        rewards = [row.reward or 0.0 for row in read_log(self._run / "log.csv")]
        rise = measure_rise(rewards)
        self._tell(rise.verdict())
        self._figures.mkdir()
        path = self._figures / "reward.png"
        name = f"{self._run} · GRPO, {settings.num_prompts * settings.num_rollouts} answers a step"
        save_figure(draw_rewards(rewards, settings.saves, name=name), path)
        self._drawn.append(path)
        return rise

    def ingest_and_fit(self) -> GroupSummary:
        """Stream the run into a store, fit it, and draw the fit."""
        say, store = self._say, self._out / "store"
        with self._timed("ingest, fit and plot"):
            self._command("ingest", self._run, store)
            ingested = ingest(self._run, store, progress=self._progress)
            say(
                f"  {len(ingested.store.steps)} checkpoints, {format_bytes(ingested.raw_bytes)} of weights in "
                f"{format_bytes(ingested.stored_bytes)}"
            )
            self._command("fit", store)
            model = fit(self._store, seed=self._seed, progress=self._progress).summary.model()
            title = "R² of the weights in the step"
            say(f"  {title:<30} {'parameters':>12}   median   above 0.7   random walks")
            for title, observed, null in (
                ("all that moved", model.moved, model.null_moved),
                ("the paper's filter", model.paper, model.null_paper),
            ):
                say(f"  {title:<30} {observed.count:>12,.0f}   {_linearity(observed)}   {_linearity(null)}")
            self._command("plot", store, "--out", self._figures)
            self._drawn += save_figures(self._store, self._figures)
            say("  histogram of R² with its null, trajectories, R² by layer")
        return model

    def backtest(self) -> BacktestResult:
        """Judge every method by the run's own checkpoints."""
        path = self._figures / "skill.png"
        with self._timed("backtest"):
            self._command("backtest", self._out / "store", "--figure", path)
            result = backtest(gram(self._store, progress=self._progress))
            save_figure(draw_backtest(result, name=str(self._out / "store")), path)
        self._drawn.append(path)
        heads = "".join(f"{f'{horizon:g}x':>8}" for horizon in HORIZONS)
        self._say(f"  {'skill at so many times the span':<32}{heads}")
        for method in DEMO_METHODS:
            found = [result.figures(method, horizon) for horizon in HORIZONS]
            cells = "".join(f"{'–' if f is None else format(f.mean, '.2f'):>8}" for f in found)
            self._say(f"  {method:<32}{cells}")
        self._tell(result.sentences())
        return result

    def extrapolate(self) -> None:
        """Predict the last step from the checkpoints up to the last seen."""
        target, last = self.settings.steps, self.settings.last_seen
        with self._timed("extrapolate"):
            for method in DEMO_METHODS:
                directory, window = self._predicted(method), f"0:{last}"
                options = ("--step", target, "--steps", window, "--method", method, "--out", directory)
                self._command("extrapolate", self._out / "store", *options)
                record = extrapolate(
                    self._store, target, directory, method=method, steps=window, progress=self._progress
                ).record
                if method == AUTO:
                    self._tell([f"{record['method']}: {record['reason']}"])
                if record["keep"]:
                    kept = ", ".join(record["keep"])
                    self._tell([f"as in the paper, tensors named {kept} stay as at step {last}"])

    def evaluate(self) -> Comparison:
        """Let trained and predicted checkpoints answer the same held-out sums."""
        settings = self.settings
        run = {step: self._run / f"checkpoint-{step}" for step in settings.evaluated}
        predicted = {method: self._predicted(method) for method in DEMO_METHODS}
        size = settings.num_held_out * settings.num_samples
        with (
            self._timed("evaluate"),
            self._progress.phase("evaluate", (len(run) + len(predicted)) * size) as advance,
        ):

            def evaluated(checkpoint: Path) -> Evaluation:
                found = evaluate(checkpoint, self._held_out, num_samples=settings.num_samples, seed=self._seed)
                advance(size)
                return found

            target, last = run[settings.steps], run[settings.last_seen]
            comparison = Comparison(
                target=settings.steps,
                last_seen=settings.last_seen,
                trained={step: evaluated(path) for step, path in run.items()},
                predicted={method: evaluated(path) for method, path in predicted.items()},
                distance={method: distance(path, target) for method, path in predicted.items()},
                distance_last_seen=distance(last, target),
            )
        path = self._figures / "comparison.png"
        save_figure(draw_comparison(comparison, name=str(self._out)), path)
        self._drawn.append(path)
        return comparison

    def report(self, comparison: Comparison) -> None:
        """Show what the predictions are worth."""
        say, target, last, settings = self._say, comparison.target, comparison.last_seen, self.settings
        say("")
        say(
            f"What the predictions of step {target} are worth: {settings.num_held_out:,} held-out sums, "
            f"{settings.num_samples} answers to each at temperature 1"
        )
        say(f"  {'':<30} {'pass@1':>15} {'computed':>9} {'distance':>9} {'skill':>6}")
        weights: dict[int | str, tuple[float, float]] = {
            last: (comparison.distance_last_seen, 0.0),
            target: (0.0, 1.0),
            **{m: (comparison.distance[m], comparison.skill[m]) for m in comparison.predicted},
        }
        names = {
            0: "step 0, the base",
            last: f"step {last}, the last seen",
            target: f"step {target}, as trained",
        }
        rows: list[tuple[int | str, str, Evaluation]] = [
            (step, names.get(step, f"step {step}"), comparison.trained[step])
            for step in sorted(comparison.trained)
        ]
        rows[-1:-1] = [(m, f"step {target} by {m}", found) for m, found in comparison.predicted.items()]
        for key, title, found in rows:
            shown = "" if key not in weights else f" {weights[key][0]:>9.3f} {weights[key][1]:>6.2f}"
            share = f"{found.pass_at_1:.1%} ± {found.standard_error:.1%}"
            say(f"  {title:<30} {share:>15} {found.computed:>9.1%}{shown}")
        self._tell(
            [
                "pass@1: share of right answers ± standard error over sums; computed: the mean probability "
                f"of the right answer, which pass@1 estimates; distance: in weights, to step {target} as "
                "trained; skill: 1 - its square over that of the last seen"
            ]
        )
        self._tell(comparison.verdict(), indent="")

    def answer(self, comparison: Comparison) -> tuple[Answer, ...]:
        """Load the best prediction as anyone would, and let it answer."""
        checkpoint = self._predicted(comparison.best)
        answers = write_answers(checkpoint, self._held_out[:_NUM_ANSWERS], seed=self._seed)
        self._say("")
        self._say(f"{checkpoint} loads with from_pretrained; to the first held-out sums it writes:")
        for answer in answers:
            how = "right" if answer.is_right else f"wrong, right is {answer.expected}"
            self._say(f"  {answer.prompt} {answer.text} ({how})")
        return answers

    def list_figures(self) -> tuple[Path, ...]:
        """Say which figures were drawn."""
        self._say("")
        for path in self._drawn:
            self._say(f"  {path}")
        return tuple(self._drawn)

    def point_onwards(self) -> None:
        """Say how to go on by hand."""
        out, store, steps = self._out, self._out / "store", self.settings.steps
        self._say("")
        self._say("Go on from here:")
        further = steps + self.settings.last_seen
        for words in (
            ("fit", store, "--by", "layer"),
            ("backtest", store, "--by", "kind"),
            ("extrapolate", store, "--step", further, "--out", out / f"step-{further}"),
            (
                *("evaluate", self._run, "--steps", f"0:{steps}:{max(steps // 5, 1)}", "--task", "sums"),
                *("--limit", 200, "--out", out / "evaluation", "--plot", out / "figures" / "evaluation.png"),
            ),
            ("train", "grpo", "--config", out / "train.yaml", "--steps", further, "--out", self._run),
            ("ingest", self._run, store),
        ):
            self._say(f"  $ ckptlin {shlex.join(map(str, words))}")

    def _tell(self, sentences: Sequence[str], *, indent: str = "  ") -> None:
        """Say sentences, each from a line of its own on."""
        for sentence in sentences:
            for line in textwrap.wrap(sentence, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  "):
                self._say(line)

    def _command(self, *words: object) -> None:
        """Say what does the same by hand."""
        self._say("")
        self._say(f"$ ckptlin {shlex.join(map(str, words))}")

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - start, 1)


class _Watch:
    """Says the reward while a run is trained."""

    def __init__(self, settings: DemoSettings, say: Callable[[str], None]) -> None:
        self.advance: Callable[[], None] = lambda: None
        self._every = max(1, settings.steps // _NUM_REPORTS)
        self._say = say
        self._rewards: list[float] = []

    def on_step(self, row: StepRow) -> None:
        """Take a step."""
        self.advance()
        self._rewards.append(row.reward or 0.0)
        if row.step % self._every == 0:
            recent = self._rewards[-self._every :]
            first = row.step - len(recent) + 1
            self._say(f"  steps {first:>3} to {row.step:>3}: reward {sum(recent) / len(recent):.3f}")

    def on_checkpoint(self, virtual_step: int, path: Path) -> None:
        """Nothing to say."""

    def on_jump(self, jump: JumpRecord, *, undone: bool) -> None:
        """Nothing to say: this is plain GRPO."""


def _linearity(figures: R2Figures) -> str:
    if figures.median is None or figures.above_7 is None:
        return "     –           –"
    return f"{figures.median:>6.2f}   {figures.above_7:>9.0%}"
