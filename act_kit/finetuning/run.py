"""The folder of a fine-tuning run: ``finetune.yaml`` beside what every run has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from act_kit import options
from act_kit.config.finetuning import FinetuneConfig
from act_kit.errors import CheckpointError, ConfigError
from act_kit.files import read_yaml, write_yaml

CONFIG = "finetune.yaml"
"""File with the options and the path of the base policy."""

_ENDS = ("minutes", "steps", "patience")
"""Options that say when a run ends, which may differ when it is resumed."""

_MEASURED = "ppo.sigma"
"""Option that the run chose by a measurement, if 0 was given."""


def write_run(folder: Path, base: Path, config: FinetuneConfig) -> None:
    """Write the options of a run."""
    write_yaml(folder / CONFIG, {"base": str(base), **options.to_dict(config)})


def load_run(folder: Path) -> tuple[Path, FinetuneConfig]:
    """Return the path of the base policy and the options of a run.

    Raises:
        CheckpointError: The file is missing, damaged or of another version.
    """
    path = folder / CONFIG
    try:
        values = read_yaml(path)
        base = Path(values.pop("base"))
        return base, options.build(FinetuneConfig, values)
    except Exception as error:  # a hand-edited file can hold anything
        raise CheckpointError(
            f"{path} is damaged, or of another version of act_kit: {error}. Fix: start the run again."
        ) from error


def check_same(folder: Path, config: FinetuneConfig, requested: FinetuneConfig, given: Sequence[str]) -> FinetuneConfig:
    """Return the options of a resumed run, with those of ``requested`` that say when it ends.

    ``given`` are the dotted keys of the options of ``requested`` that count.

    Raises:
        ConfigError: Another option differs from the one that the run was started with.
    """
    values = options.to_dict(config)
    for key in given:
        old, new = options.get(config, key), options.get(requested, key)
        if new != old and key not in _ENDS and (new or key != _MEASURED):
            raise ConfigError(
                f"{folder} was started with {key}={old}, not {new}: only {', '.join(_ENDS)} may change. Fix: leave it "
                "out, or choose another --out."
            )
        if key in _ENDS:
            values[key] = new
    return options.build(FinetuneConfig, values)
