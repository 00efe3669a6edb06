"""``act data``: commands on datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from act_kit.api.progress import Progress
from act_kit.cli import data_browse, data_convert, data_derive
from act_kit.cli.console import console, info, shown_progress
from act_kit.cli.options import Workers

if TYPE_CHECKING:
    from act_kit.datasets.store import EpisodeStore

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Inspect, verify, derive and convert datasets.")
app.command("merge")(data_derive.merge)
app.command("split")(data_derive.split)
app.command("filter")(data_derive.filter_)
app.command("convert")(data_convert.convert)
app.command("browse")(data_browse.browse)

Dataset = Annotated[Path, typer.Argument(help="A dataset that act collect made.", show_default=False)]


@app.command("info")
def show_info(
    dataset: Dataset,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything and check it against the fingerprint.")
    ] = False,
) -> None:
    """Print the content and provenance of a dataset."""
    from act_kit.datasets.images import ImageStore
    from act_kit.datasets.store import EpisodeStore
    from act_kit.errors import DatasetError

    store = EpisodeStore.open(dataset)
    lengths = store.episode_lengths
    unfinished = "" if store.fingerprint else ", unfinished"
    rows = [
        ("task", store.info.task),
        ("demonstrations", f"{store.num_episodes} of {store.info.num_wanted}{unfinished}"),
        ("attempts", f"{len(store.attempts())}" if store.has_init_states else "not recorded"),
        ("demonstrated by", "; ".join(_sources(store))),
        ("steps", f"{store.num_steps} ({lengths.min(initial=500)} to {lengths.max(initial=0)} per episode)"),
        ("initial states", _init_states(store)),
        ("noise", f"{store.info.noise:g}"),
        ("lacks", ", ".join(store.missing_fields) or "nothing"),
        ("images", "; ".join(_images(store)) or "none: act render"),
        ("size", f"{store.size_bytes() / 1e6:.1f} MB"),
        ("fingerprint", store.fingerprint or "none until the dataset is finished"),
        ("command", store.info.command),
        ("sources", "; ".join(map(_origin, store.info.parents)) or "none"),
    ]
    for parent in store.info.parents:
        rows += [("lost or assumed", note) for note in parent.get("notes", [])]
    rows += [
        ("versions", ", ".join(map(" ".join, store.info.versions.items()))),
        ("commit", store.info.git_commit or "unknown"),
    ]
    table = Table(title=str(dataset), title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value, overflow="fold"))
    console.print(table)
    if verify:
        if store.fingerprint != store.compute_fingerprint():
            raise DatasetError(
                f"{dataset} does not match its fingerprint: it was changed or damaged. Fix: collect it again."
            )
        for camera in ImageStore.cameras(store):
            damaged = ImageStore(store, camera).damaged_episodes()
            if damaged:
                raise DatasetError(
                    f"{dataset}: the images of {camera} in {len(damaged)} episodes (the first: {damaged[0]}) differ "
                    f"from what was rendered. Fix: {ImageStore(store, camera).command} --overwrite"
                )
        info("The content matches the fingerprint.")


def _origin(parent: dict[str, Any]) -> str:
    """Describe one source of a dataset: path, format and fingerprint."""
    return " ".join(filter(None, [str(parent["path"]), parent.get("format"), parent["fingerprint"][:8]]))


def _init_states(store: EpisodeStore) -> str:
    """Describe the distribution and the seed of the initial states."""
    if not store.has_init_states:
        return "not recorded"
    return store.info.init_distribution + ("" if store.info.seed is None else f", seed {store.info.seed}")


def _sources(store: EpisodeStore) -> list[str]:
    """Return for each demonstrator the number of its episodes and, if recorded, of its successes."""
    import numpy as np

    sources = np.array(store.sources)
    texts: list[str] = []
    for source in dict.fromkeys(store.sources):
        steps = store.success_steps[sources == source]
        successes = f", {(steps >= 0).sum()} with success" if "success" in store.fields else ""
        texts.append(f"{source}, {len(steps)} episodes{successes}")
    return texts


def _images(store: EpisodeStore) -> list[str]:
    """Describe the images of each camera."""
    from act_kit.datasets.images import ImageStore

    texts: list[str] = []
    for camera in ImageStore.cameras(store):
        image = ImageStore(store, camera)
        part = "" if image.is_complete else f", {image.num_episodes} of {store.num_episodes} episodes"
        texts.append(f"{camera} at {image.settings} by {image.renderer}{part}")
    return texts


@app.command()
def verify(dataset: Dataset, workers: Workers = 0) -> None:
    """Replay the recorded actions from the recorded initial states and compare every step.

    The replay is bit-exact on the processor type of the recording; others may round the gripper opening and distances.
    """
    from act_kit.collection.verify import replay as replay_dataset
    from act_kit.datasets.store import EpisodeStore
    from act_kit.errors import DatasetError
    from act_kit.parallel import LocalExecutor
    from act_kit.processors import num_cpus

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
            "edited. Check with: act data info --verify"
        )
