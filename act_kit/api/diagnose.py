"""``diagnose``: diagnosis of a run, a dataset, an evaluation, a foreign policy or this machine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from act_kit.api.agents import kind_of_agent
from act_kit.config.evaluation import EvalConfig
from act_kit.errors import CheckpointError, ConfigError, OutputError
from act_kit.files import quoted, write_json
from act_kit.outputs import restore_output
from act_kit.overrides import compose
from act_kit.preflight import kind_of, require_writable
from act_kit.processors import num_cpus
from act_kit.workers import end_if_importing

if TYPE_CHECKING:
    from act_kit.doctor.finding import Finding
    from act_kit.reports.report import Report


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Findings on one run, dataset, evaluation, policy or machine, the most severe first; prints itself.

    Attributes:
        name: Path of what was examined, name and task of a foreign policy, or ``this machine``.
        findings: One finding for each fault that was checked.
    """

    name: str
    findings: list[Finding]

    @property
    def is_fatal(self) -> bool:
        """True if a critical fault is confirmed."""
        return any(finding.is_fatal for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The diagnosis in a sentence."""
        from act_kit.doctor.diagnose import verdict

        return verdict(self.findings)

    @property
    def report(self) -> Report:
        """The faults with numbers, evidence and fix, what was ruled out, and the verdict."""
        from act_kit.reports.diagnosis import diagnosis_report

        return diagnosis_report(self.name, self.findings)

    def __str__(self) -> str:
        text = StringIO()
        self.report.print(text)
        return text.getvalue().rstrip()


def diagnose(
    target: str | Path | None = None,
    task: str | None = None,
    *,
    n_action_steps: int | None = None,
    token: str = "",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    workers: int = 0,
    on_diagnosis: Callable[[Diagnosis], None] = lambda diagnosis: None,
) -> list[Diagnosis]:
    """Find out why a policy fails, or check a dataset or this machine for faults, as ``act doctor`` does.

    Args:
        target: A run, a dataset, an evaluation, a folder of runs and datasets, or a foreign policy: ``MODULE:NAME``,
            ``ws://HOST:PORT`` or ``lerobot:FOLDER``; None for this machine.
        task: Task of a policy that is not a run.
        n_action_steps: Actions to execute of each chunk of a policy server or a LeRobot policy; None for all, or for
            the LeRobot policy's own number.
        token: Token of a policy server.
        overrides: What a policy server or a LeRobot policy is shown, such as ``served.look=lerobot``.
        out: JSON file for the findings.
        workers: Simulation processes; 0 = one per processor.
        on_diagnosis: Function that is called with each diagnosis as soon as it is made.

    Raises:
        ActKitError: There is nothing to examine at ``target``, an argument does not apply to it, or ``out`` is a
            folder.
    """
    end_if_importing()
    if out:
        out = Path(out)
        require_writable(out.parent)
        if out.is_dir():
            raise OutputError(f"{out} is a folder. Fix: name a file, such as --out {quoted(out / 'doctor.json')}")
    num_workers = workers or num_cpus()
    if target and kind_of_agent(str(target)) != "run":
        config = compose(EvalConfig, overrides)
        if task is None:
            raise ConfigError(f"{target} does not say which task it is for: expected --task. Fix: --task push-v3")
        if n_action_steps is not None and kind_of_agent(str(target)) == "python":
            raise ConfigError(f"--n-action-steps: {target} chooses its actions itself. Fix: leave it out.")
        diagnoses = _diagnose_foreign(
            str(target), task, config, n_action_steps=n_action_steps, token=token, num_workers=num_workers
        )
    else:
        given = (("--task", task), ("--n-action-steps", n_action_steps), ("Options", overrides))
        for name, value in given:
            if value:
                raise ConfigError(
                    f"{name}: {target or 'this machine'} is not a foreign policy (MODULE:NAME, ws://HOST:PORT, "
                    "lerobot:FOLDER). Fix: leave it out."
                )
        diagnoses = _diagnose_own(Path(target) if target else None, num_workers)
    made: list[Diagnosis] = []
    for diagnosis in diagnoses:
        made.append(diagnosis)
        on_diagnosis(diagnosis)
    if out:
        write_json(out, {diagnosis.name: diagnosis.report.data for diagnosis in made})
    return made


def _diagnose_own(target: Path | None, num_workers: int) -> Generator[Diagnosis]:
    """Diagnose a run, a dataset, an evaluation, a folder of them, or this machine."""
    if target:
        restore_output(target)
    if target and not (kind_of(target) or any(map(kind_of, target.glob("[!.]*")))):
        raise CheckpointError(
            f"There is neither a run (config.yaml) nor a dataset (zarr.json) at {target}. Fix: act doctor RUN, act "
            "doctor DATASET, act doctor MODULE:NAME, or act doctor alone for this machine."
        )
    from act_kit.doctor.diagnose import examine_machine, examine_target, find_targets

    for each in find_targets(target) if target else [None]:
        findings = examine_target(each, num_workers=num_workers) if each else examine_machine(num_workers)
        yield Diagnosis(name=str(each or "this machine"), findings=findings)


def _diagnose_foreign(
    what: str, task: str, config: EvalConfig, *, n_action_steps: int | None, token: str, num_workers: int
) -> Generator[Diagnosis]:
    """Diagnose a policy that is not a run of act_kit."""
    from act_kit.api.evaluate import open_agent
    from act_kit.doctor.diagnose import examine_foreign
    from act_kit.eval.evaluate import as_agent
    from act_kit.sim.tasks import get_task

    get_task(task)
    with open_agent(what, config, n_action_steps=n_action_steps, token=token) as opened:
        agent = as_agent(opened)
        name = agent.provenance["name"] if agent.provenance else what  # an address without its token
        yield Diagnosis(name=f"{name}, {task}", findings=examine_foreign(agent, name, task, num_workers=num_workers))
