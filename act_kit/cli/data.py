"""``act data``: commands on datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from act_kit.api.progress import Progress
from act_kit.cli import data_derive
from act_kit.cli.console import console, info, shown_progress, warn
from act_kit.cli.options import Overwrite, Workers, command
from act_kit.errors import DatasetError
from act_kit.files import quoted, sibling
from act_kit.outputs import new_folder, require_no_overlap, restore_output
from act_kit.preflight import require_free, require_one_dataset
from act_kit.processors import num_cpus

if TYPE_CHECKING:
    from act_kit.datasets.store import EpisodeStore

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Inspect, verify, derive and convert datasets.")
app.command("merge", short_help="Merge several datasets into one per task.")(data_derive.merge)
app.command("split", short_help="Split a dataset by a column, or at random.")(data_derive.split)
app.command("filter", short_help="Keep the episodes for which an expression is true.")(data_derive.filter_)

Dataset = Annotated[Path, typer.Argument(help="A dataset that act collect made.", show_default=False)]


@app.command("info")
@command
def show_info(dataset: Dataset, *, verify: bool = False) -> None:
    """Print the content and provenance of a dataset.

    Args:
        verify: Read everything and check it against the fingerprint.
    """
    require_one_dataset(dataset)
    from act_kit.datasets.images import ImageStore
    from act_kit.datasets.store import EpisodeStore

    store = EpisodeStore.open(dataset)
    recorded, lengths = store.info, store.episode_lengths
    images = [ImageStore(store, camera) for camera in ImageStore.cameras(store)]
    described: list[str] = []
    for image in images:
        part = "" if image.is_complete else f", {image.num_episodes} of {store.num_episodes} episodes"
        described.append(f"{image.camera} at {image.settings} by {image.renderer}{part}")
    unfinished = "" if store.fingerprint else ", unfinished"
    seed = "" if recorded.seed is None else f", seed {recorded.seed}"
    rows = [
        ("task", recorded.task),
        ("demonstrations", f"{store.num_episodes} of {recorded.num_wanted}{unfinished}"),
        ("attempts", str(len(store.attempts())) if store.has_init_states else "not recorded"),
        ("demonstrated by", _sources(store)),
        ("steps", f"{store.num_steps} ({lengths.min()} to {lengths.max()} per episode)" if len(store) else "0"),
        ("initial states", recorded.init_distribution + seed if store.has_init_states else "not recorded"),
        ("noise", f"{recorded.noise:g}"),
        ("lacks", ", ".join(store.missing_fields) or "nothing"),
        ("images", "; ".join(described) or "none: act render"),
        ("size", f"{store.size_bytes() / 1e6:.1f} MB"),
        ("fingerprint", store.fingerprint or "none until the dataset is finished"),
        ("command", recorded.command),
        ("sources", "; ".join(map(_origin, recorded.parents)) or "none"),
    ]
    for parent in recorded.parents:
        rows += [("lost or assumed", note) for note in parent.get("notes", [])]
    rows.append(("versions", ", ".join(map(" ".join, recorded.versions.items()))))
    rows.append(("commit", recorded.git_commit or "unknown"))
    table = Table(title=str(dataset), title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value, overflow="fold"))
    console.print(table)
    if not verify:
        return
    if store.fingerprint != store.compute_fingerprint():
        raise DatasetError(
            f"{dataset} does not match its fingerprint: it was changed or damaged. Fix: collect it again."
        )
    for image in images:
        damaged = image.damaged_episodes()
        if damaged:
            raise DatasetError(
                f"{dataset}: the images of {image.camera} in {len(damaged)} episodes (the first: {damaged[0]}) differ "
                f"from what was rendered. Fix: {image.command} --overwrite"
            )
    info("The content matches the fingerprint.")


def _origin(parent: dict[str, Any]) -> str:
    """Describe one source of a dataset: path, format and fingerprint."""
    return " ".join(filter(None, [str(parent["path"]), parent.get("format"), parent["fingerprint"][:8]]))


def _sources(store: EpisodeStore) -> str:
    """Describe each demonstrator: the number of its episodes and, if recorded, of its successes."""
    import numpy as np

    texts: list[str] = []
    for source in dict.fromkeys(store.sources):
        steps = store.success_steps[np.array(store.sources) == source]
        successes = f", {(steps >= 0).sum()} with success" if "success" in store.fields else ""
        texts.append(f"{source}, {len(steps)} episodes{successes}")
    return "; ".join(texts)


@app.command(short_help="Replay the recorded actions and compare every step.")
@command
def verify(dataset: Dataset, *, workers: Workers = 0) -> None:
    """Replay the recorded actions from the recorded initial states and compare every step.

    The replay is bit-exact on the processor type of the recording; others may round the gripper opening and distances.
    """
    require_one_dataset(dataset)
    from act_kit.collection.verify import replay as replay_dataset
    from act_kit.datasets.store import EpisodeStore
    from act_kit.parallel import LocalExecutor

    store = EpisodeStore.open(dataset)
    with shown_progress() as show, LocalExecutor(workers or num_cpus()) as executor:

        def on_progress(num_done: int) -> None:
            show(Progress(stage="verify", num_done=num_done, num=store.num_episodes))

        results = replay_dataset(store, executor=executor, on_progress=on_progress)
    different = [result for result in results if result.first_difference is not None]
    if different:
        first = different[0]
        raise DatasetError(
            f"{len(different)} of {len(results)} episodes do not replay: in episode {first.index} '{first.field}' "
            f"differs from step {first.first_difference} on. The dataset was recorded with {store.info.versions}. Fix: "
            "install these versions, or collect it again."
        )
    largest: dict[str, float] = {}
    for result in results:
        for name, difference in result.rounded.items():
            largest[name] = max(difference, largest.get(name, 0.0))
    num_rounded = sum(bool(result.rounded) for result in results)
    info(f"{len(results) - num_rounded} of {len(results)} episodes replayed bit-exactly.")
    if largest:
        differences = ", ".join(f"{name} by {difference:.2g}" for name, difference in largest.items())
        info(
            f"The others differ by rounding, at most {differences}: they were recorded on another processor, or "
            f"edited. Check with: act data info {quoted(dataset)} --verify"
        )


@app.command(short_help="Make a page for browsing a dataset.")
@command
def browse(
    dataset: Dataset,
    *,
    out: Path | None = None,
    camera: list[str] | None = None,
    size: str | None = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Number of episodes to show, from the first.", show_default="all")
    ] = None,
    workers: Workers = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make a page for browsing a dataset: maps of its initial states, and each episode's signals next to its video.

    \b
    act data browse data/pick-place-v3

    Args:
        out: Folder of the page. [default: DATASET-view]
        camera: Camera; repeatable. [default: those of its images, or corner4]
        size: Video size in pixels. [default: that of its images, or 192]
    """
    require_one_dataset(dataset)
    out = out or sibling(dataset, "-view")
    require_no_overlap(out, [dataset])
    require_free(out, overwrite=overwrite, otherwise="It holds an earlier page")
    from act_kit.datasets.store import EpisodeStore
    from act_kit.reports.browser import make_videos, write_view
    from act_kit.sim.render import RenderSettings

    store = EpisodeStore.open(dataset)
    settings = RenderSettings.of_size(size) if size else None
    num = min(store.num_episodes, episodes or store.num_episodes)
    with new_folder(out, overwrite=overwrite) as fresh, shown_progress() as show:
        no_video = make_videos(
            store,
            num,
            fresh / "videos",
            camera or (),
            settings,
            num_workers=workers or num_cpus(),
            on_progress=lambda num_done: show(Progress(stage="videos", num_done=num_done, num=num)),
        )
        page = write_view(store, num, fresh, no_video=no_video)
    if no_video:
        warn(no_video)
    info(f"Page: {out / page.name}")


@app.command(short_help="Convert a dataset to or from another format.")
@command
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A dataset; a folder of ACT's episode_*.hdf5; a Diffusion Policy replay buffer, zipped or not; or a "
            "LeRobot dataset.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Path of the converted dataset.", show_default=False)],
    *,
    to: str = "act_kit",
    task: str = "",
    state: Annotated[
        str, typer.Option(metavar="KEY", help="Array of the states in imported data.", show_default="state, qpos")
    ] = "",
    action: Annotated[
        str, typer.Option(metavar="KEY", help="Array of the actions in imported data.", show_default="action")
    ] = "",
    overwrite: Overwrite = False,
) -> None:
    """Convert a dataset to or from another format, and list what was lost or assumed.

    \b
    act data convert data/pick-place-v3 pick_place.zarr --to diffusion-policy
    act data convert sim_transfer_cube_scripted data/transfer-cube --task transfer-cube
    act data convert metaworld_mt50 data/mt50

    A LeRobot dataset of several tasks becomes a folder of datasets, one per task.

    Args:
        to: Output format: act_kit, act-hdf5, diffusion-policy or lerobot.
        task: Task of imported data that name none; of several tasks, the one to convert. [default: the name of IN; all]
    """
    restore_output(source)
    if not source.exists():
        raise DatasetError(f"{source} does not exist: a dataset was expected.")
    require_no_overlap(out, [source])
    require_free(out, overwrite=overwrite, otherwise="Nothing was converted")
    from act_kit.datasets.formats.content import Keys
    from act_kit.datasets.formats.convert import convert as convert_dataset
    from act_kit.diversity.first_observations import recover_init_states

    with shown_progress() as show:
        origin, contents = convert_dataset(
            source,
            out,
            to=to,
            task=task,
            overwrite=overwrite,
            keys=Keys(state=state, action=action),
            recover=recover_init_states,
            on_progress=lambda num_done, num: show(Progress(stage="convert", num_done=num_done, num=num)),
        )
    for content in contents:
        folder = out / content.info.task if len(contents) > 1 else out
        info(f"{folder}: {content.info.task}, {len(content.episodes)} episodes, from {origin} to {to}.")
        info("Lost or assumed:" if content.notes else "Lost or assumed: nothing.")
        for note in content.notes:
            info(f"- {note}")
        for warning in content.warnings:
            warn(f"Warning: {warning}.")
