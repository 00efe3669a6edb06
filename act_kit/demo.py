"""Demo of a policy that memorizes its initial state, and of the fix.

The same ACT is trained on the same number of demonstrations, once all from one initial state and once from randomized
ones, and evaluated from the same new initial states.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.result import DiversityReport
from act_kit.eval.results import Evaluation, summarize
from act_kit.files import write_json
from act_kit.metrics import series
from act_kit.pages import figure_uri, video_uri, write_page
from act_kit.policies.policy import Policy
from act_kit.reports.coverage import coverage_figure
from act_kit.reports.evaluation import baseline_rows
from act_kit.reports.evaluation_figures import success_figure
from act_kit.rollouts.rollout import Outcome
from act_kit.sim.tasks import get_task


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two datasets of the demo, with its policy and its evaluation.

    Attributes:
        name: Name of the dataset: ``one initial state`` or ``randomized initial states``.
        folder: Folder of the run and the evaluation.
        store, diversity, policy, evaluation: Results of the stages.
    """

    name: str
    folder: Path
    store: EpisodeStore
    diversity: DiversityReport
    policy: Policy
    evaluation: Evaluation

    @property
    def validation_loss(self) -> float:
        """L1 loss on the validation episodes of its own dataset, at the end of training."""
        return series(self.folder / "run", "val/l1")[-1][1]

    def row(self) -> dict[str, str]:
        """Return the column of the table, by row name."""
        unit = get_task(self.store.info.task).unit
        return {
            "demonstrations": str(self.store.num_episodes),
            "distinct initial states": str(self.diversity.num_distinct),
            "diversity report": self.diversity.level,
            "validation loss (L1)": f"{self.validation_loss:.4f}",
            "success at any step": str(self.evaluation.success),
            "success at the last step": str(self.evaluation.success_at_end),
            "final distance (mean)": f"{self.evaluation.mean_distance('final'):.3f} {unit}",
        }


def comparison_table(sides: list[Side]) -> Table:
    """Return the result as a table."""
    table = Table(title=_title(sides), title_justify="left")
    table.add_column("")
    for side in sides:
        table.add_column(side.name)
    columns = [side.row() for side in sides]
    for name in columns[0]:
        table.add_row(name, *(Text(column[name]) for column in columns))
    return table


def write_demo(sides: list[Side], out: Path) -> Path:
    """Write ``demo.json``, ``maps.png`` and ``report.html``, and return the page's path."""
    columns = [side.row() for side in sides]
    result: dict[str, Any] = {
        side.name: {
            "diversity": side.diversity.to_dict(),
            "validation_loss": side.validation_loss,
            "evaluation": summarize(side.evaluation),
        }
        for side in sides
    }
    write_json(out / "demo.json", result)
    maps = {f"{side.name}: success {side.evaluation.success}": side.evaluation for side in sides}
    success_figure(maps).savefig(out / "maps.png", dpi=110)
    table: list[tuple[str, list[str]]] = []
    for name in columns[0]:
        table.append((name, [column[name] for column in columns]))
    page = out / "report.html"
    write_page(
        page,
        "demo.html.j2",
        {
            "title": _title(sides),
            "task": get_task(sides[0].store.info.task),
            "names": [side.name for side in sides],
            "table": table,
            "baselines": baseline_rows(sides[0].evaluation)[:3],
            "sides": [_side_values(side, out) for side in sides],
            "init_state_set": sides[0].evaluation.init_state_set,
        },
    )
    return page


def _title(sides: list[Side]) -> str:
    num = len(sides[0].evaluation.episodes)
    return f"{sides[0].store.info.task}: the same ACT, the same {num} new initial states, two datasets"


def _side_values(side: Side, out: Path) -> dict[str, Any]:
    outcomes = side.evaluation.outcomes
    videos: list[tuple[int, Outcome, str]] = []
    for path in sorted((side.folder / "eval" / "videos").glob("*.mp4")):
        index = int(path.name[:4])
        videos.append((index, outcomes[index], video_uri(path)))
    task = get_task(side.store.info.task)
    return {
        "name": side.name,
        "steps_after_success": side.store.info.steps_after_success,
        "diversity": side.diversity,
        "coverage": figure_uri(coverage_figure(task, side.store.rand_vecs)),
        "map": figure_uri(success_figure({"": side.evaluation})),
        "interpretation": side.evaluation.interpretation,
        "success": str(side.evaluation.success),
        "from_demonstrated": dict(baseline_rows(side.evaluation)).get(
            "the policy, from demonstrated initial states", "not measured"
        ),
        "videos": videos,
        "pages": {
            "diversity report": str((side.folder / "data-report" / "report.html").relative_to(out)),
            "evaluation": str((side.folder / "eval" / "report.html").relative_to(out)),
        },
    }
