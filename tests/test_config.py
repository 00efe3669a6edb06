"""Configuration: any input becomes a valid dataclass or a clear error."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from act_kit.config.collection import CollectConfig, TeleopConfig
from act_kit.config.evaluation import EvalConfig
from act_kit.config.policy import ACTConfig
from act_kit.config.training import TrainConfig
from act_kit.errors import ConfigError
from act_kit.options import Options, build, declared, override, to_dict
from act_kit.overrides import compose, train_overrides


@pytest.mark.parametrize("kind", [CollectConfig, TrainConfig, EvalConfig])
def test_defaults_are_complete_and_survive_a_round_trip(kind: type[Options]) -> None:
    config = compose(kind)
    assert build(kind, to_dict(config)) == config
    assert len(declared(kind)) > 5
    assert kind() == config, "the defaults of the dataclass are those of the default preset"


@pytest.mark.parametrize("kind", [CollectConfig, TrainConfig, EvalConfig])
def test_every_option_is_documented(kind: type[Options]) -> None:
    assert all(option.help.endswith((".", ".)")) for option in declared(kind).values())
    groups = [type(field.default) for field in dataclasses.fields(kind) if isinstance(field.default, Options)]  # type: ignore[arg-type]
    for group in (kind, *groups):
        assert list(group.help) == [field.name for field in dataclasses.fields(group)]  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("\\'\"$${}[]=, "), max_size=20))
def test_an_override_is_read_back_as_the_same_value(text: str) -> None:
    assert compose(TrainConfig, [override("wandb_project", text)]).wandb_project == text


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer.lr=3e-7", "trainer.steps=12", "policy.dropout=0.5"],
        ["policy=act", "chunking.temporal_ensemble=true", "chunking.temporal_ensemble_coeff=-0.01"],
        ["policy=act_image_small", "policy.cameras=[corner4,gripperPOV]", "trainer.ema_decay=0.999", "trainer.seed=3"],
        ["policy=act_image", "policy.backbone_weights='a b/[1]=${x}.pth'", "compute.image_storage=disk"],
    ],
)
def test_train_overrides_compose_to_the_same_configuration(overrides: list[str]) -> None:
    config = compose(TrainConfig, [text.replace("${", "\\${") for text in overrides])
    assert compose(TrainConfig, train_overrides(config, {})) == config
    changed = compose(TrainConfig, train_overrides(config, {"trainer.steps": 77}))
    assert changed == replace(config, trainer=replace(config.trainer, steps=77))


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=30))
def test_any_override_is_accepted_or_refused_with_a_configerror(text: str) -> None:
    try:
        config = compose(CollectConfig, [text])
    except ConfigError:
        return
    assert build(CollectConfig, to_dict(config)) == config


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(list(declared(TrainConfig))), st.text(max_size=12))
def test_any_value_is_accepted_or_refused_with_a_configerror(key: str, value: str) -> None:
    try:
        config = compose(TrainConfig, [f"{key}={value}"])
    except ConfigError:
        return
    assert build(TrainConfig, to_dict(config)) == config


def test_flags_take_precedence_and_are_never_parsed() -> None:
    config = compose(CollectConfig, ["n=3"], {"n": 7, "task": "a=b(c)", "seed": None})
    assert (config.n, config.task, config.seed) == (7, "a=b(c)", 0)


def test_the_command_contains_the_options_that_determine_the_bytes() -> None:
    config = compose(CollectConfig, [], {"task": "push-v3", "n": 9, "num_init_states": 1, "noise": 0.1})
    assert config.command == ("act collect --task push-v3 --n 9 --num-init-states 1 --noise 0.1")


def test_presets_replace_the_policy() -> None:
    paper = compose(TrainConfig, ["policy=act"])
    assert (paper.policy.chunk_size, paper.trainer.batch_size, paper.trainer.lr) == (100, 8, 1e-5)
    assert compose(TrainConfig, ["policy=act", "trainer.lr=3e-5"]).trainer.lr == 3e-5
    changed = compose(TrainConfig, ["policy=act", "policy.chunk_size=20"]).policy
    assert isinstance(changed, ACTConfig)
    assert (changed.chunk_size, changed.dim_model) == (20, 512)


@pytest.mark.parametrize("kind", [CollectConfig, EvalConfig])
def test_every_option_is_used_by_a_test(kind: type) -> None:
    """Training options are changed one by one in tests/training/test_options.py."""
    here = Path(__file__)
    tests = "".join(file.read_text() for file in here.parent.rglob("*.py") if file != here)
    for option in declared(kind):
        assert f"{option}=" in tests or f'"--{option}"' in tests, option


AWKWARD = "a b/[ü]=c~ 'd' ${e}, {f}"


@pytest.mark.parametrize("key", ["dagger.run", "task", "teleop.operator"])
def test_the_value_of_a_string_option_is_not_parsed(key: str) -> None:
    overrides = ["demonstrator=policy", "dagger.run=somewhere", f"{key}={AWKWARD}"]
    config: object = compose(CollectConfig, overrides)
    for name in key.split("."):
        config = getattr(config, name)
    assert config == AWKWARD


def test_a_flag_that_was_not_given_does_not_replace_an_override() -> None:
    config = compose(CollectConfig, ["task=push-v3", "demonstrator=teleop"], {"task": None, "demonstrator": "scripted"})
    assert (config.task, config.demonstrator) == ("push-v3", "scripted")


def test_composing_keeps_the_callers_hydra_and_works_in_threads(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, "app.py"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "4 app\n"), done.stderr


SCRIPT = """
from concurrent.futures import ThreadPoolExecutor
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from act_kit import TrainConfig, compose

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    before = GlobalHydra.instance().hydra
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(compose, TrainConfig, ["trainer.seed=1"]) for _ in range(4)]
        seeds = [run.result().trainer.seed for run in runs]
    assert GlobalHydra.instance().hydra is before
    print(sum(seeds), HydraConfig.get().job.name)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CollectConfig(n="5"), "n='5': expected an integer"),  # type: ignore[arg-type]
        (lambda: CollectConfig(n=5.0), "n=5.0: expected an integer"),  # type: ignore[arg-type]
        (lambda: TeleopConfig(operator="a\nb"), "teleop.operator='a\\nb': expected up to 100 printable characters"),
        (lambda: CollectConfig(n=True), "n=True: expected an integer"),
        (lambda: CollectConfig(noise=math.inf), "noise=inf: expected a finite number"),
        (lambda: CollectConfig(rewards="no"), "rewards='no': expected True or False"),  # type: ignore[arg-type]
        (lambda: CollectConfig(sim="fast"), "sim='fast': expected a SimConfig"),  # type: ignore[arg-type]
        (lambda: ACTConfig(cameras="corner4"), "cameras='corner4': expected strings"),  # type: ignore[arg-type]
    ],
)
def test_python_values_of_the_wrong_type_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


def test_numpy_numbers_become_python_numbers() -> None:
    config = CollectConfig(n=np.int64(3), noise=np.float32(0.5))  # type: ignore[arg-type]
    assert json.dumps([config.n, config.noise]) == "[3, 0.5]"
    policy = ACTConfig(inputs="image+state", cameras=["corner4"])  # type: ignore[arg-type]
    assert policy.cameras == ("corner4",)
