"""``act data convert``: conversion to and from other dataset formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.api.progress import Progress
from act_kit.cli.console import info, shown_progress
from act_kit.cli.options import Overwrite
from act_kit.errors import DatasetError
from act_kit.outputs import require_no_overlap, restore_output
from act_kit.preflight import require_free


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A dataset; a folder of ACT's episode_*.hdf5; or a Diffusion Policy replay buffer, zipped or not.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Path of the converted dataset.", show_default=False)],
    to: Annotated[str, typer.Option(help="Output format: act_kit, act-hdf5, diffusion-policy or lerobot.")] = "act_kit",
    task: Annotated[
        str, typer.Option(help="Task of imported data that do not name one.", show_default="the name of IN")
    ] = "",
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
    """
    restore_output(source)
    if not source.exists():
        raise DatasetError(f"{source} does not exist: a dataset was expected.")
    require_no_overlap(out, [source])
    require_free(out, overwrite=overwrite, otherwise="Nothing was converted")
    from act_kit.datasets.formats.content import Keys
    from act_kit.datasets.formats.convert import convert as convert_dataset

    with shown_progress() as show:
        origin, content = convert_dataset(
            source,
            out,
            to=to,
            task=task,
            overwrite=overwrite,
            keys=Keys(state=state, action=action),
            on_progress=lambda num_done, num: show(Progress(stage="convert", num_done=num_done, num=num)),
        )
    info(f"{out}: {content.info.task}, from {origin} to {to}.")
    info("Lost or assumed:" if content.notes else "Lost or assumed: nothing.")
    for note in content.notes:
        info(f"- {note}")
