"""``act collect``: demonstrations from randomised starts into a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.cli.console import complain, console, say
from act_kit.cli.options import Overrides, Overwrite, Workers, count_workers
from act_kit.config import CollectConfig, compose
from act_kit.errors import ConfigError

_STEP_BYTES = 3000
"""Of an uncompressed step; compressed, most take a fifth."""


def collect(
    overrides: Overrides = None,
    task: Annotated[
        str | None, typer.Option(help="One of Meta-World's 50 tasks.", show_default="pick-place-v3")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Demonstrations to keep.", show_default="50")] = None,
    randomize: Annotated[
        bool | None,
        typer.Option(
            "--randomize/--no-randomize", help="New start each time, or one and the same.", show_default="randomize"
        ),
    ] = None,
    start_law: Annotated[
        str | None, typer.Option(help="uniform, sobol, grid, fixed or tasks50.", show_default="uniform")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of starts and noise.", show_default="0")] = None,
    demonstrator: Annotated[str | None, typer.Option(help="scripted.", show_default="scripted")] = None,
    noise: Annotated[
        float | None, typer.Option(help="Std of noise on the executed action (DART).", show_default="0")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the dataset.", show_default="data/TASK")] = None,
    workers: Workers = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a collection that was stopped.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Collect successful demonstrations into a zarr dataset, by default from a new random start each.

    [dim]act collect --task pick-place-v3 --randomize --n 200[/]
    """
    from act_kit.cli.stages import run_collection
    from act_kit.collection.demonstrators import check_demonstrator
    from act_kit.files import prepare_output, require_space
    from act_kit.sim.starts import StartLaw

    config = compose(
        "collect",
        CollectConfig,
        overrides or [],
        {
            "task": task, "n": n, "seed": seed, "demonstrator": demonstrator, "noise": noise,
            "start_law": _start_law(randomize, start_law),
        },
    )  # fmt: skip
    StartLaw(config.task, config.start_law)  # an unknown task or law is refused before anything is written
    check_demonstrator(config.demonstrator)
    out = out or Path("data") / config.task
    go_on = f"{config.command} --out {out}"
    if not resume:
        prepare_output(out, overwrite=overwrite, how_to_go_on="--resume goes on with it")
    require_space(out, config.n * 150 * _STEP_BYTES, f"{config.n} demonstrations")
    if config.start_law == "fixed":
        complain(
            f"--no-randomize: all {config.n} demonstrations will begin from one and the same start. A policy trained "
            "on them memorises it and fails from every other; act train will refuse them. Use --randomize."
        )
    try:
        store = run_collection(config, out, num_workers=count_workers(workers), resume=resume)
    except KeyboardInterrupt:
        say(f"Stopped; what is complete is kept. To go on: {go_on} --resume")
        raise typer.Exit(130) from None
    attempts = store.attempts()
    say(
        f"{store.num_episodes} demonstrations, {store.num_steps} steps, {store.size_bytes() / 1e6:.1f} MB in {out} "
        f"({len(attempts) - store.num_episodes} of {len(attempts)} attempts failed)"
    )
    console.print(f"Next: [bold]act report {out}[/] and [bold]act train --data {out}[/]")


def _start_law(randomize: bool | None, start_law: str | None) -> str | None:
    if randomize is None:
        return start_law
    if randomize and start_law == "fixed":
        raise ConfigError("--randomize and --start-law fixed contradict each other: leave one of them out.")
    if not randomize and start_law not in (None, "fixed"):
        raise ConfigError(f"--no-randomize and --start-law {start_law} contradict each other: leave one of them out.")
    return (start_law or "uniform") if randomize else "fixed"
