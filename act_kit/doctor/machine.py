"""Checks of this machine."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np
import psutil

from act_kit.doctor.finding import Checks, Result, critical, ruled_out, warning
from act_kit.errors import RenderError
from act_kit.eval.results import success_rate
from act_kit.parallel import LocalExecutor
from act_kit.processors import SPIN_COUNT, cpu_quota, num_cpus, num_visible_cpus
from act_kit.rollouts.agents import ExpertAgent
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.render import RenderSettings, find_gl, render_episode
from act_kit.sim.simulator import Simulator

TASKS = ("reach-v3", "pick-place-v3", "drawer-open-v3", "peg-insert-side-v3")
"""One task of each kind: no object, a movable one, an articulated one, contact. Their experts nearly always succeed."""

_NUM_EPISODES = 10
_SPACE_GB = 5
_BUSY = 0.5
"""Fraction of processor time used by other processes above which a warning is issued."""


CHECKS = Checks[int]()
"""The checks; their case is the number of worker processes."""


@CHECKS.add("package version mismatch", "machine", "pip check")
def pins(num_workers: int) -> Result:
    """Check that the installed packages meet the requirements of act_kit."""
    from packaging.requirements import Requirement

    wrong = []
    for requirement in map(Requirement, requires("act_kit") or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, but {requirement.specifier} is required")
    if wrong:
        return critical("; ".join(wrong) + ".", "the installed packages", "pip install act_kit")
    versions = ", ".join(f"{name} {version(name)}" for name in ("metaworld", "mujoco", "torch", "zarr"))
    return ruled_out(f"Every requirement is met ({versions}).")


@CHECKS.add("the scripted experts fail", "machine", "python benchmarks/experts.py")
def experts(num_workers: int) -> Result:
    """Check that the scripted experts succeed on this machine."""
    init_states = []
    for task in TASKS:
        init_states += InitialStateDistribution(task).sample(_NUM_EPISODES, seed=0, stream="validate")
    with RolloutPool(num_workers) as roll:
        outcomes = roll(ExpertAgent(), init_states, stop_at_success=True)
    rates, failing = [], []
    for index, task in enumerate(TASKS):
        rate = success_rate(outcomes[index * _NUM_EPISODES :][:_NUM_EPISODES])
        rates.append(f"{task} {rate.successes}/{rate.num}")
        if rate.value < 0.5:
            failing.append(task)
    message = ", ".join(rates)
    if failing:
        message = (
            f"the scripted expert of {', '.join(failing)} fails on this machine ({message}): the tasks were not made "
            f"for mujoco {version('mujoco')} or metaworld {version('metaworld')}."
        )
        return critical(message, "rollouts of the doctor", "pip install act_kit")
    return ruled_out(f"The scripted experts succeed: {message}.")


@CHECKS.add("rendering fails", "machine", "python -m act_kit.sim.render")
def rendering(num_workers: int) -> Result:
    """Check that images can be rendered and are not blank."""
    try:
        gl = find_gl()
    except RenderError as error:
        message = f"this machine cannot render images and videos; everything else works. {error}"
        return warning(message, "OpenGL", "apt-get install libegl1 libopengl0 libgl1-mesa-dri")
    (init_state,) = InitialStateDistribution("pick-place-v3").sample(1, seed=0, stream="validate")
    simulator = Simulator("pick-place-v3")
    simulator.reset(init_state)
    job = (RenderSettings(height_px=64, width_px=64), ["corner4"], init_state, simulator.physics()[None])
    with LocalExecutor(1, gl.environment) as executor:
        (frames,) = executor.map(render_episode, [job])
    if float(np.std(frames.images)) < 5:
        return critical(f"{gl} renders a blank image.", "an image of pick-place-v3", "act doctor")
    return ruled_out(f"{gl} renders.")


@CHECKS.add("GPU faulty", "machine", "multiply matrices on it")
def device(num_workers: int) -> Result:
    """Check that the GPU, if there is one, computes correctly."""
    import torch

    if not torch.cuda.is_available():
        return ruled_out(f"PyTorch {torch.__version__} computes on {torch.get_num_threads()} threads of the processor.")
    ones = torch.ones(256, 256, device="cuda")
    if float((ones @ ones).sum()) != 256.0**3:
        return critical("the GPU computes wrong matrix products.", torch.cuda.get_device_name(), "use --device cpu")
    return ruled_out(f"{torch.cuda.get_device_name()} computes correctly.")


@CHECKS.add("threads spin while waiting", "machine", "python benchmarks/company.py DATASET")
def waiting(num_workers: int) -> Result:
    """Check that waiting OpenMP threads sleep instead of spinning."""
    policy, spins = os.environ.get("OMP_WAIT_POLICY", ""), os.environ.get("GOMP_SPINCOUNT", "")
    is_spinning = spins or policy.upper() == "ACTIVE"
    if is_spinning and not (spins.isdigit() and int(spins) <= SPIN_COUNT):
        message = (
            f"OMP_WAIT_POLICY={policy} GOMP_SPINCOUNT={spins}: waiting threads keep their processors busy. Training is "
            "many times slower if other processes run."
        )
        return warning(message, "environment variables", "unset OMP_WAIT_POLICY GOMP_SPINCOUNT")
    return ruled_out(f"Waiting threads soon sleep (OMP_WAIT_POLICY={policy} GOMP_SPINCOUNT={spins}).")


@CHECKS.add("processors busy", "machine", "top")
def load(num_workers: int) -> Result:
    """Check that the processors are idle, and report how many the container may use."""
    quota = cpu_quota()
    limit = "" if quota is None else f", of which the container may use {quota:g}"
    num = f"{num_visible_cpus()} processors{limit}: {num_cpus()} processes and threads"
    busy = psutil.cpu_percent(interval=0.5) / 100  # this process sleeps meanwhile
    if busy > _BUSY:
        message = (
            f"other processes use {100 * busy:.0f} % of the processors, so training and rollouts take longer ({num})."
        )
        fix = "wait until they end, or use other processors: taskset -c 0-7 act train …"
        return warning(message, "processor load during half a second", fix)
    return ruled_out(f"{num}; other processes use {100 * busy:.0f} % of them.")


@CHECKS.add("low disk space", "machine", "df -h .")
def disk(num_workers: int) -> Result:
    """Check that there is space for datasets and runs."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < _SPACE_GB:
        return warning(f"only {free:.1f} GB are free at {Path.cwd()}.", Path.cwd(), "free some space")
    return ruled_out(f"{free:.0f} GB are free at {Path.cwd()}.")
