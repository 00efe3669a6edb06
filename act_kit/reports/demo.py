"""The report of the demo: a policy that memorizes its initial state, and the fix.

The same model is trained on the same number of demonstrations, once all from one initial state and once from randomized
ones, and evaluated from the same new initial states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.config.evaluation import EvalConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.result import DiversityReport
from act_kit.errors import RenderError
from act_kit.eval.results import Evaluation, summarize
from act_kit.metrics import series
from act_kit.parallel import LocalExecutor
from act_kit.reports.evaluation import baseline_rows, rate_headline
from act_kit.reports.figures import comparison_figure, coverage_figures, success_figures
from act_kit.reports.report import Cell, Chart, Headline, Report, Section, Table, Video, text_columns
from act_kit.reports.video import record, video_path
from act_kit.rollouts.episode import Episode
from act_kit.sim.render import RenderSettings, find_gl
from act_kit.sim.tasks import get_task


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two datasets of the demo, with its policy and its evaluation.

    Attributes:
        name: Name of the dataset: ``one initial state`` or ``randomized initial states``.
        folder: Folder of the run and the evaluation.
        store, diversity, evaluation: Results of the stages.
    """

    name: str
    folder: Path
    store: EpisodeStore
    diversity: DiversityReport
    evaluation: Evaluation

    @property
    def validation_loss(self) -> float:
        """L1 loss (z = 0) on the validation episodes of its own dataset, at the end of training."""
        return series(self.folder / "run", "val/l1")[-1][1]

    def videos(self) -> list[Video]:
        """Return the videos of its evaluation."""
        videos = []
        for path in sorted((self.folder / "eval" / "videos").glob("*.mp4")):
            index = int(path.name[:4])
            episode = self.evaluation.episodes[index]
            step = f", step {episode.success_step}" if episode.success_once else ""
            videos.append(Video(path=path, caption=f"episode {index}{step}", is_success=episode.success_once))
        return videos

    def column(self) -> dict[str, Any]:
        """Return the column of the table, by row name."""
        unit = get_task(self.store.info.task).unit
        from_demonstrated = self.evaluation.baselines.get("demonstrated initial states")
        return {
            "demonstrations": self.store.num_episodes,
            "distinct initial states": self.diversity.num_distinct,
            "diversity report": Cell(text=self.diversity.level, level=self.diversity.level),
            "validation loss (L1)": f"{self.validation_loss:.4f}",
            "success at any step": self.evaluation.success,
            "success at the last step": self.evaluation.success_at_end,
            "final distance (mean)": f"{self.evaluation.mean_distance('final'):.3f} {unit}",
            "success from its demonstrated initial states": from_demonstrated,
        }


def pair_videos(sides: Sequence[Side], config: EvalConfig) -> list[Video]:
    """Return a video of each side from the first initial state from which only the second policy succeeds.

    A video that the evaluation did not record is recorded beside its others.

    Returns:
        The two videos; none if there is no such initial state, or no renderer.
    """
    (indices,) = np.nonzero(~sides[0].evaluation.successes & sides[1].evaluation.successes)
    if not len(indices):
        return []
    index = int(indices[0])
    outcomes: dict[Path, Episode] = {}
    for side in sides:
        outcome = side.evaluation.outcomes[index]
        outcomes[video_path(side.folder / "eval", index, outcome)] = outcome
    missing = {path: outcome for path, outcome in outcomes.items() if not path.exists()}
    if missing:
        try:
            gl = find_gl(len(missing))
        except RenderError:
            return []
        settings = RenderSettings(height_px=config.video_size_px, width_px=config.video_size_px)
        with LocalExecutor(len(missing), gl.environment) as executor:
            record(executor, missing, config.video_camera, settings, config.video_fps)
    videos = []
    for side, (path, outcome) in zip(sides, outcomes.items(), strict=True):
        videos.append(Video(path=path, caption=f"{side.name}, episode {index}", is_success=outcome.success_once))
    return videos


def demo_report(sides: Sequence[Side], out: Path, pair: Sequence[Video] = ()) -> Report:
    """Return the report of the demo in ``out``; ``pair`` are videos from the same initial state, a failure first."""
    num = len(sides[0].evaluation.episodes)
    headlines, verdicts, data = [], [], {}
    for side in sides:
        loss = f"{side.validation_loss:.4f}"
        headlines.append(rate_headline(f"success, {side.name}", side.evaluation.success))
        headlines.append(Headline(label=f"validation loss, {side.name}", value=loss, detail="L1 on its own dataset"))
        verdicts.append((side.diversity.level, f"{side.name}: {side.diversity.verdict}"))
        data[side.name] = {
            "diversity": side.diversity.to_dict(),
            "validation_loss": side.validation_loss,
            "evaluation": summarize(side.evaluation),
        }
    sections = [_table(sides)]
    if pair:
        title = "From the same initial state: one policy fails, the other succeeds"
        sections.insert(0, Section(title=title, videos=pair, is_synchronized=True, is_half=True))
    sections += _maps(sides)
    pages: list[tuple[Any, ...]] = []
    for side in sides:
        videos = side.videos()
        if videos:
            title = f"Episodes of the policy trained from {side.name}, failures first"
            sections.append(Section(title=title, videos=videos, is_half=True))
        folder = side.folder.relative_to(out)
        data_page, eval_page = f"{folder}/data-report/report.html", f"{folder}/eval/report.html"
        pages.append((side.name, Cell(text=data_page, href=data_page), Cell(text=eval_page, href=eval_page)))
    table = Table(columns=text_columns("dataset", "dataset report", "evaluation"), rows=pages)
    sections.append(Section(title="Pages of the stages", table=table))
    return Report(
        kind="Demo",
        title=f"{sides[0].store.info.task}: the same model, the same {num} new initial states, two datasets",
        verdicts=verdicts,
        headlines=headlines,
        sections=sections,
        data=data,
    )


def _table(sides: Sequence[Side]) -> Section:
    first, second = sides[0].column(), sides[1].column()
    rows = list(zip(first, first.values(), second.values(), strict=True))
    baselines = ", ".join(f"{name.split(',')[0]} {rate}" for name, rate in baseline_rows(sides[0].evaluation)[:3])
    explanation = (
        "The validation loss does not show which policy works: each is measured on held-out demonstrations of its own "
        "dataset, and one initial state is easy to predict. Demonstrations go on for "
        f"{sides[0].store.info.steps_after_success} steps after their first success, but episodes are longer: success "
        "at the last step is a different measure from success. Baselines on the same initial "
        f"states: {baselines}. In brackets: Wilson 95 % intervals."
    )
    table = Table(columns=text_columns("", sides[0].name, sides[1].name), rows=rows)
    text = (
        "Both policies are the same network, trained in the same way on the same number of successful demonstrations. "
        "Only the initial states differ. Both are evaluated from the same initial states, which are in neither dataset "
        f"(set {sides[0].evaluation.init_state_set.hash[:16]}); success: "
        f"{get_task(sides[0].store.info.task).success_rule}."
    )
    return Section(title="Results", text=text, table=table, explanation=explanation, in_terminal=True, is_half=True)


def _maps(sides: Sequence[Side]) -> list[Section]:
    """Return the sections with the maps of success and of the demonstrated initial states."""
    success, coverage, texts = [], [], []
    for side in sides:
        caption = f"{side.name}: success {side.evaluation.success}"
        for figure in success_figures(side.evaluation):
            success.append(Chart(figure=figure, label=f"Successes and failures, {caption}", caption=caption))
        task = get_task(side.store.info.task)
        for figure in coverage_figures(task, side.store.rand_vecs, np.empty((0, len(task.low)))):
            label = f"Demonstrated initial states over new ones, {side.name}"
            coverage.append(Chart(figure=figure, label=label, caption=side.name))
        if side.evaluation.interpretation:
            texts.append(f"{side.name}: {side.evaluation.interpretation}")
    return [
        Section(title="Success over initial states", text=" ".join(texts), charts=success),
        Section(title="Demonstrated initial states over those of the evaluation", charts=coverage),
    ]


def write_demo(sides: Sequence[Side], out: Path, config: EvalConfig) -> Report:
    """Write ``demo.json``, ``maps.png`` and ``report.html``, and return the report."""
    maps = {f"{side.name}: success {side.evaluation.success}": side.evaluation for side in sides}
    comparison_figure(maps).savefig(out / "maps.png", dpi=110)
    report = demo_report(sides, out, pair_videos(sides, config))
    report.write(out / "report.html", out / "demo.json")
    return report
