"""What ``act eval`` can evaluate besides runs: Python objects by name, policy servers by address, LeRobot policies."""

from __future__ import annotations

import hashlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from act_kit.errors import ConfigError, install_hint
from act_kit.imports import attempt, import_object, is_object_name
from act_kit.serving.addresses import check_address

if TYPE_CHECKING:
    from act_kit.config.evaluation import EvalConfig, ServedConfig
    from act_kit.policies.lerobot import LeRobotAgent
    from act_kit.rollouts.agents import Agent
    from act_kit.serving.client import ServedAgent

AgentKind = Literal["run", "python", "server", "lerobot"]
_LEROBOT = "lerobot:"


def kind_of_agent(what: str) -> AgentKind:
    """Return what an argument of ``act eval`` names: a run, ``MODULE:NAME``, a policy server, or ``lerobot:FOLDER``.

    Raises:
        ConfigError: The address has no host or no port.
    """
    if what.startswith(("ws://", "wss://")):
        check_address(what)
        return "server"
    if what.startswith(_LEROBOT):
        return "lerobot"
    return "python" if is_object_name(what) and not Path(what).exists() else "run"


def folder_name(what: str, tasks: list[str]) -> str:
    """Return the default name of the folder for the evaluation of an agent: its name and its task."""
    name = re.sub(r"^wss?://|\?.*", "", what)
    name = re.sub(r"[^\w.-]+", "-", name).strip("-")
    return f"{name}-{tasks[0]}" if len(tasks) == 1 else f"{name}-{len(tasks)}-tasks"


def choose_action_steps(given: int | None, config: EvalConfig) -> int | None:
    """Return how many actions of a chunk to execute: as given, or as the protocol says; None for neither."""
    return config.protocol.n_action_steps or None if given is None else given


def refuse_chunking(
    name: str, kind: AgentKind, *, n_action_steps: int | None, temporal_ensemble: bool | None, sweep_chunking: bool
) -> None:
    """Refuse options of action chunking that have no effect on an agent of a kind.

    Raises:
        ConfigError: One is given.
    """
    if kind == "run":
        return
    if (kind == "python" and n_action_steps is not None) or temporal_ensemble is not None or sweep_chunking:
        raise ConfigError(
            f"options of action chunking, or protocol.n_action_steps: {name} chooses its actions itself. "
            "Fix: leave them out."
        )


def connect(address: str, config: ServedConfig, *, n_action_steps: int | None = None, token: str = "") -> ServedAgent:
    """Return an agent that asks the policy server at ``ws://HOST:PORT``.

    Raises:
        ConfigError: The address is none, or a package is missing.
        ServingError: There is no policy server.
    """
    try:
        from act_kit.serving.client import ServedAgent
    except ModuleNotFoundError as error:
        raise serving_missing(error) from error
    return ServedAgent(address, config, n_action_steps=n_action_steps, token=token)


def load_lerobot(what: str, config: ServedConfig, *, n_action_steps: int | None, device: str) -> LeRobotAgent:
    """Return an agent that runs the LeRobot policy at ``lerobot:FOLDER``.

    Raises:
        ConfigError: lerobot is not installed, or an option does not fit the policy.
        CheckpointError: The folder contains no LeRobot policy for Meta-World.
    """
    from act_kit.policies.lerobot import LeRobotAgent  # imports PyTorch, which a refusal must not

    return LeRobotAgent(Path(what.removeprefix(_LEROBOT)), config, n_action_steps=n_action_steps, device=device)


def serving_missing(error: ModuleNotFoundError) -> ConfigError:
    """Return the error to raise where a package of the extra ``serve`` is not installed."""
    return ConfigError(f"Policy servers need {error.name}, which is not installed. Fix: {install_hint('serve')}")


def import_agent(name: str) -> Agent:
    """Return the agent at ``MODULE:NAME``, found on ``sys.path`` and in the current folder.

    It is an agent, a function from states (B, 39) to actions, or a class or function without arguments that returns one
    of them.

    Raises:
        ConfigError: There is none, or its code fails; the message names the place.
    """
    from act_kit.eval.evaluate import FunctionAgent
    from act_kit.rollouts.agents import Agent

    module, found = import_object(name)
    if not isinstance(found, Agent) and _is_factory(found):
        found = attempt(found, f"{name}: calling {name.partition(':')[2]}()")
    if not isinstance(found, Agent):
        if not callable(found):
            raise ConfigError(
                f"{name} is a {type(found).__name__}: expected an Agent, a function from states (B, 39) to actions "
                "(B, 4) or (B, N, 4), or a class or function without arguments that returns one of them."
            )
        found = FunctionAgent(found)
    agent: Agent = found
    agent.provenance = {"kind": "python", "name": name, "source_sha256": _source_hash(module)}
    return agent


def _is_factory(found: object) -> bool:
    """Return True if something is called without arguments to make an agent: a class, or such a function."""
    if isinstance(found, type):
        return True
    try:
        inspect.signature(found).bind()  # type: ignore[arg-type]
    except (TypeError, ValueError):  # it needs arguments, is not callable, or is written in C
        return False
    return True


def _source_hash(module: Any) -> str | None:
    """Return the SHA-256 of a module's file; None if it has none."""
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
