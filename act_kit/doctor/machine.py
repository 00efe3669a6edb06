"""What may be wrong with this machine."""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np
import psutil

from act_kit.doctor.finding import Checks, Result, critical, ruled_out, warning
from act_kit.errors import RenderError
from act_kit.eval.evaluate import success_rate
from act_kit.parallel import LocalExecutor
from act_kit.processors import SPIN_COUNT, cpu_quota, num_cpus, num_visible_cpus
from act_kit.rollouts.agents import ExpertAgent
from act_kit.rollouts.rollout import Outcome, RolloutPool
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.render import RenderSettings, find_gl, render_episode
from act_kit.sim.simulator import Simulator

TASKS = ("reach-v3", "pick-place-v3", "drawer-open-v3", "peg-insert-side-v3")
"""One of each kind: no object, one to carry, an articulated one, contact. Their experts nearly always succeed."""

_NUM_EPISODES = 10
_SPACE_GB = 5
_BUSY = 0.5
"""Share of the processors from which other work on them is worth a warning."""


class MachineCase:
    """This machine."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers

    @cached_property
    def expert(self) -> list[Outcome]:
        """The scripted expert of some tasks."""
        init_states = [
            init_state
            for task in TASKS
            for init_state in InitialStateDistribution(task).sample(_NUM_EPISODES, seed=0, stream="validate")
        ]
        with RolloutPool(self.num_workers) as roll:
            return roll(ExpertAgent(), init_states, stop_at_success=True)


CHECKS = Checks[MachineCase]()


@CHECKS.add("other versions than required", stage="machine", how_to_verify="pip check")
def pins(case: MachineCase) -> Result:
    """Are the packages those that act_kit was tested with?"""
    from packaging.requirements import Requirement

    wrong = []
    for line in requires("act_kit") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, required is {requirement.specifier}")
    if wrong:
        return critical("; ".join(wrong) + ".", "the installed packages", "pip install act_kit")
    shown = ", ".join(f"{name} {version(name)}" for name in ("metaworld", "mujoco", "torch", "zarr"))
    return ruled_out(f"Every requirement is met ({shown}).")


@CHECKS.add("the experts fail here", stage="machine", how_to_verify="python benchmarks/experts.py")
def experts(case: MachineCase) -> Result:
    """Does the simulator do here what it does elsewhere?"""
    rates = {
        task: success_rate([outcome for outcome in case.expert if outcome.init_state.task == task]) for task in TASKS
    }
    message = ", ".join(f"{task} {rate.successes}/{rate.num}" for task, rate in rates.items())
    failing = [task for task, rate in rates.items() if rate.value < 0.5]
    if failing:
        return critical(
            f"the scripted expert of {', '.join(failing)} fails here ({message}): mujoco {version('mujoco')} or metaworld "
            f"{version('metaworld')} is not what the tasks were made for.", "rollouts of the doctor",
            "pip install act_kit",
        )  # fmt: skip
    return ruled_out(f"The scripted experts succeed: {message}.")


@CHECKS.add("nothing draws", stage="machine", how_to_verify="python -m act_kit.sim.render")
def drawing(case: MachineCase) -> Result:
    """Can pictures be drawn, and is something on them?"""
    try:
        gl = find_gl()
    except RenderError as error:
        return warning(
            f"no pictures and videos here, everything else runs. {error}", "OpenGL",
            "apt-get install libegl1 libopengl0 libgl1-mesa-dri",
        )  # fmt: skip
    (init_state,) = InitialStateDistribution("pick-place-v3").sample(1, seed=0, stream="validate")
    simulator = Simulator("pick-place-v3")
    simulator.reset(init_state)
    job = (RenderSettings(height_px=64, width_px=64), ["corner4"], init_state, simulator.physics()[None])
    with LocalExecutor(1, gl.environment) as executor:
        (frames,) = executor.map(render_episode, [job])
    if float(np.std(frames.images)) < 5:
        return critical(f"{gl} draws an empty picture.", "a frame of pick-place-v3", "act doctor")
    return ruled_out(f"{gl} draws.")


@CHECKS.add("the GPU computes wrongly", stage="machine", how_to_verify="multiply matrices on it")
def device(case: MachineCase) -> Result:
    """Does a GPU compute, where there is one?"""
    import torch

    if not torch.cuda.is_available():
        return ruled_out(f"PyTorch {torch.__version__} computes on {torch.get_num_threads()} threads of the processor.")
    ones = torch.ones(256, 256, device="cuda")
    if float((ones @ ones).sum()) != 256.0**3:
        return critical("the GPU computes wrong products.", torch.cuda.get_device_name(), "use --device cpu")
    return ruled_out(f"{torch.cuda.get_device_name()} computes.")


@CHECKS.add("threads loop while they wait", stage="machine", how_to_verify="python benchmarks/company.py DATASET")
def waiting(case: MachineCase) -> Result:
    """Do threads that wait for each other leave their processors to other work?"""
    policy, spins = os.environ.get("OMP_WAIT_POLICY", ""), os.environ.get("GOMP_SPINCOUNT", "")
    loops = spins or policy.upper() == "ACTIVE"
    if loops and not (spins.isdigit() and int(spins) <= SPIN_COUNT):
        return warning(
            f"OMP_WAIT_POLICY={policy} GOMP_SPINCOUNT={spins}: threads that wait keep their processors busy. Beside "
            "other work training is then many times slower.",
            "environment variables",
            "unset OMP_WAIT_POLICY GOMP_SPINCOUNT",
        )
    return ruled_out(f"Threads that wait soon sleep (OMP_WAIT_POLICY={policy} GOMP_SPINCOUNT={spins}).")


@CHECKS.add("other work on the processors", stage="machine", how_to_verify="top")
def company(case: MachineCase) -> Result:
    """Are the processors free, and are there as many as one sees?"""
    quota = cpu_quota()
    limit = "" if quota is None else f", of which the container may use {quota:g}"
    num = f"{num_visible_cpus()} processors{limit}: {num_cpus()} processes and threads"
    busy = psutil.cpu_percent(interval=0.5) / 100  # this process sleeps meanwhile
    if busy > _BUSY:
        return warning(
            f"other work uses {100 * busy:.0f} % of the processors, so training and rollouts take longer ({num}).",
            "half a second of the processors' time",
            "wait for it to end, or run on other processors: taskset -c 0-7 act train …",
        )
    return ruled_out(f"{num}; other work uses {100 * busy:.0f} % of them.")


@CHECKS.add("the disk is full", stage="machine", how_to_verify="df -h .")
def disk(case: MachineCase) -> Result:
    """Is there room for datasets and runs?"""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < _SPACE_GB:
        return warning(f"only {free:.1f} GB are free at {Path.cwd()}.", Path.cwd(), "free some space")
    return ruled_out(f"{free:.0f} GB are free here.")
