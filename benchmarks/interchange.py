"""Whether others read what ``act data convert`` writes, and it reads what they write: equal numbers, similar frames.

    act collect --task button-press-topdown-v3 --randomize --n 5 --out DATA
    act render DATA --look fast --camera corner4 --camera topview --size 128
    python benchmarks/interchange.py export DATA --out FOLDER
    python benchmarks/interchange.py act FOLDER --utils utils.py
    dp/bin/python benchmarks/interchange.py diffusion-policy FOLDER --replay-buffer replay_buffer.py
    peer/bin/python benchmarks/interchange.py lerobot FOLDER
    peer/bin/python benchmarks/interchange.py write-lerobot FOLDER
    python benchmarks/interchange.py read-lerobot FOLDER

``utils.py`` is of github.com/tonyzhaozh/act, ``replay_buffer.py`` of github.com/real-stanford/diffusion_policy (in
``diffusion_policy/common``). Two of the three need environments of their own, in which act_kit is not imported;
PYTHONPATH must be unset there, since the folder ``datasets`` of this repository would hide Hugging Face's:

    python -m venv dp
    dp/bin/pip install "zarr<3" "numcodecs<0.16" "numpy<2"

and ``peer`` as benchmarks/lerobot_act.py says. Each prints one line of JSON, or stops at what differs.

``write-lerobot`` writes the steps with lerobot's own writer, with the features of its Meta-World datasets, once with
videos and once with PNG images, in the version of the format that it has: 3.0 with lerobot 0.4.4, 2.1 with 0.3.2. For
the latter, install it next to ``peer``, ``peer/bin/pip install --no-deps --target v21 lerobot==0.3.2``, and set
PYTHONPATH=v21.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
import types
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("act-hdf5", "diffusion-policy", "lerobot")


def export(options: argparse.Namespace) -> None:
    """Write a dataset in each format, and its steps as plain arrays."""
    from act_kit.datasets.formats.convert import convert
    from act_kit.datasets.images import ImageStore
    from act_kit.datasets.store import EpisodeStore

    store = EpisodeStore.open(options.dataset)
    for name in FORMATS:
        convert(options.dataset, options.folder / name, to=name, task="", overwrite=True)
    arrays: dict[str, Any] = {name: store.steps(name) for name in store.fields}
    for camera in ImageStore.cameras(store):
        arrays[f"images/{camera}"] = np.concatenate([images for _, images in ImageStore(store, camera).blocks()])
    np.savez(options.folder / "steps.npz", ends=store.episode_ends, fps=store.info.control_hz, **arrays)


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[slice], int]:
    """Return the plain arrays: of steps, of frames by camera, where the episodes are, and the rate."""
    with np.load(folder / "steps.npz") as file:
        arrays = dict(file)
    ends, fps = arrays.pop("ends"), int(arrays.pop("fps"))
    images = {name.removeprefix("images/"): arrays.pop(name) for name in list(arrays) if name.startswith("images/")}
    return arrays, images, [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)], fps


def require(same: Any, what: str) -> None:
    """Stop unless it is the same."""
    if not np.all(same):
        raise SystemExit(f"Differs: {what}")


def load_module(path: Path) -> Any:
    """Import a file of theirs."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def act(options: argparse.Namespace) -> None:
    """Read the HDF5 files with ACT's ``EpisodicDataset``, once per episode, from a step that it draws."""
    sys.modules.setdefault("IPython", types.SimpleNamespace(embed=None))  # type: ignore[arg-type]  # for debugging
    theirs = load_module(options.utils)
    arrays, images, episodes, _ = load(options.folder)
    identity = {"action_mean": 0, "action_std": 1, "qpos_mean": 0, "qpos_std": 1}
    dataset = theirs.EpisodicDataset(range(len(episodes)), options.folder / "act-hdf5", list(images), identity)
    for index, episode in enumerate(episodes):
        frames, qpos, actions, is_pad = (part.numpy() for part in dataset[index])
        begin = episode.start + int(is_pad.sum())  # it pads as many as it skipped
        require(qpos == arrays["state"][begin].astype(np.float32), f"qpos in {index}")
        require(actions[~is_pad] == arrays["action"][begin : episode.stop], f"action in {index}")
        for number, (camera, of_camera) in enumerate(images.items()):
            theirs_HW3 = np.moveaxis(frames[number], 0, -1)
            require(theirs_HW3 == of_camera[begin].astype(np.float32) / np.float32(255), f"{camera} in {index}")
    print(json.dumps({"reader": "ACT's EpisodicDataset", "episodes": len(episodes), "same": True}))


def diffusion_policy(options: argparse.Namespace) -> None:
    """Read the replay buffer with diffusion policy's ``ReplayBuffer``, from disk and into memory."""
    zarr: Any = import_module("zarr")  # version 2 in that environment
    theirs = load_module(options.replay_buffer).ReplayBuffer
    arrays, images, episodes, _ = load(options.folder)
    path = str(options.folder / "diffusion-policy")
    buffers = (
        theirs.create_from_path(path),
        theirs.copy_from_path(path),
        theirs.copy_from_path(path, store=zarr.MemoryStore()),
    )
    for buffer in buffers:
        require(buffer.n_episodes == len(episodes), "the number of episodes")
        require(set(buffer.keys()) == {*arrays, *images}, f"the arrays {list(buffer.keys())}")
        for index, at in enumerate(episodes):
            episode = buffer.get_episode(index)
            for name, values in {**arrays, **images}.items():
                require(episode[name].dtype == values.dtype, f"the type of {name}")
                require(episode[name] == values[at], f"{name} in episode {index}")
    row = {
        "reader": "diffusion policy's ReplayBuffer",
        "zarr": version("zarr"),
        "episodes": len(episodes),
        "same": True,
    }
    print(json.dumps(row))


def lerobot(options: argparse.Namespace) -> None:
    """Read the LeRobot dataset with lerobot: all steps with what comes before and after, and its sums."""
    load_module(Path(__file__).with_name("lerobot_act.py")).declare_missing_operator()
    arrays, images, episodes, fps = load(options.folder)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        keys = {camera: f"observation.images.{camera}" for camera in images}
        deltas = {"action": [i / fps for i in range(10)], **{key: [-1 / fps, 0.0] for key in keys.values()}}
        dataset = LeRobotDataset("act_kit/export", root=options.folder / "lerobot", delta_timestamps=deltas)
        require(len(dataset) == len(arrays["action"]) and dataset.fps == fps, "its length or rate")
        worst, total, from_earlier = 0.0, 0.0, 0.0
        for index, episode in enumerate(episodes):
            for step in range(episode.start, episode.stop):
                item = dataset[step]
                where = f"in step {step}"
                require(item["episode_index"] == index and item["task"], f"episode or task {where}")
                state = np.concatenate([item["observation.state"], item["observation.environment_state"]])
                require(state == arrays["state"][step].astype(np.float32), f"state {where}")
                later = np.arange(step, step + 10)
                require(item["action_is_pad"].numpy() == (later >= episode.stop), f"action_is_pad {where}")
                require(item["action"].numpy() == arrays["action"][later.clip(max=episode.stop - 1)], f"action {where}")
                require(item["next.success"].item() == arrays["success"][step], f"next.success {where}")
                for camera, key in keys.items():
                    shown = np.moveaxis(item[key].numpy(), 1, -1) * 255
                    recorded = images[camera][[max(step - 1, episode.start), step]]
                    difference = np.abs(shown - recorded)
                    worst, total = max(worst, float(np.percentile(difference, 99))), total + float(difference.mean())
                    from_earlier += float(np.abs(shown - recorded[0]).mean(axis=(1, 2, 3))[1])
        if images:
            require(total < from_earlier, "the frames: they are nearer to those of one step earlier")
        stats = dataset.meta.stats["action"]
        for name, value in (("mean", arrays["action"].mean(axis=0)), ("std", arrays["action"].std(axis=0))):
            require(np.abs(stats[name] - value) < 1e-5, f"the {name} of the actions")
    row = {
        "reader": "lerobot's LeRobotDataset",
        "lerobot": version("lerobot"),
        "steps": len(dataset),
        "same": True,
        "frames_differ_by_mean": round(total / (len(dataset) * max(1, len(keys))), 2),
        "99_percent_of_every_frame_within": round(worst),
    }
    print(json.dumps(row))


def write_lerobot(options: argparse.Namespace) -> None:
    """Write the steps with lerobot, as its Meta-World datasets have them, with videos and with PNG images."""
    load_module(Path(__file__).with_name("lerobot_act.py")).declare_missing_operator()
    arrays, images, episodes, fps = load(options.folder)
    columns = {
        "observation.state": arrays["state"][:, :4].astype(np.float32),
        "observation.environment_state": arrays["state"].astype(np.float32),
        "action": arrays["action"],
        "next.success": arrays["success"][:, None],
    }
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset

        for storage in ("video", "image"):
            features: dict[str, Any] = {}
            for name, values in columns.items():
                features[name] = {"dtype": str(values.dtype), "shape": values.shape[1:], "names": None}
            for camera, frames in images.items():
                names = ["height", "width", "channels"]
                features[f"observation.images.{camera}"] = {
                    "dtype": storage,
                    "shape": frames.shape[1:],
                    "names": names,
                }
            root = options.folder / f"by-lerobot-{CODEBASE_VERSION}-{storage}"
            dataset = LeRobotDataset.create(storage, fps=fps, features=features, root=root, use_videos=True)
            for episode in episodes:
                for step in range(episode.start, episode.stop):
                    frame = {name: values[step] for name, values in columns.items()}
                    frame |= {f"observation.images.{camera}": frames[step] for camera, frames in images.items()}
                    if CODEBASE_VERSION == "v2.1":
                        dataset.add_frame(frame, options.task)
                    else:
                        dataset.add_frame(frame | {"task": options.task})
                dataset.save_episode()
            if CODEBASE_VERSION != "v2.1":
                dataset.finalize()
    row = {"writer": "lerobot's LeRobotDataset", "lerobot": version("lerobot"), "format": CODEBASE_VERSION}
    print(json.dumps(row | {"episodes": len(episodes), "steps": len(arrays["action"])}))


def read_lerobot(options: argparse.Namespace) -> None:
    """Import what lerobot wrote, and compare every step."""
    from act_kit.datasets.formats.convert import convert
    from act_kit.datasets.images import ImageStore
    from act_kit.datasets.store import EpisodeStore
    from act_kit.diversity.first_observations import recover_init_states

    arrays, images, episodes, fps = load(options.folder)
    for path in sorted(options.folder.glob("by-lerobot-*")):
        with tempfile.TemporaryDirectory() as folder:
            out, began = Path(folder) / "out", time.perf_counter()
            _, (content,) = convert(path, out, to="act_kit", task="", overwrite=False, recover=recover_init_states)
            seconds = time.perf_counter() - began
            store = EpisodeStore.open(out)
            require(store.episode_ends.tolist() == [episode.stop for episode in episodes], "the episodes")
            require(store.info.control_hz == fps, "the rate")
            require(store.steps("state") == arrays["state"].astype(np.float32), "the states")
            require(store.steps("action") == arrays["action"], "the actions")
            require(store.steps("success") == arrays["success"], "the successes")
            differences: list[float] = []
            for camera, frames in images.items():
                read = ImageStore(store, camera)
                for index, episode in enumerate(episodes):
                    difference = np.abs(read.episode(index).astype(float) - frames[episode]).mean(axis=(1, 2, 3))
                    earlier = frames[np.maximum(np.arange(episode.start, episode.stop) - 1, episode.start)]
                    from_earlier = np.abs(read.episode(index).astype(float) - earlier).mean(axis=(1, 2, 3))
                    require(difference.sum() <= from_earlier.sum(), f"the frames of {camera}: they are shifted")
                    differences += difference.tolist()
            row = {"read": path.name, "task": content.info.task, "steps": store.num_steps, "same": True}
            row |= {"frames_differ_by_mean": round(float(np.mean(differences or [0])), 2), "seconds": round(seconds, 1)}
            print(json.dumps(row | {"notes": content.notes}))


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    exporting = parts.add_parser("export", help=export.__doc__)
    exporting.add_argument("dataset", type=Path, help="of Meta-World, rendered or not")
    exporting.add_argument("--out", type=Path, required=True, dest="folder")
    exporting.set_defaults(run=export)
    readers = (("act", act), ("diffusion-policy", diffusion_policy), ("lerobot", lerobot))
    for name, run in (*readers, ("write-lerobot", write_lerobot), ("read-lerobot", read_lerobot)):
        part = parts.add_parser(name, help=run.__doc__)
        part.add_argument("folder", type=Path, help="what export wrote")
        part.set_defaults(run=run)
        if run is act:
            part.add_argument("--utils", type=Path, required=True, help="ACT's file")
        if run is write_lerobot:
            part.add_argument("--task", default="Press a button from the top", help="sentence of the task")
        if run is diffusion_policy:
            part.add_argument("--replay-buffer", type=Path, required=True, help="diffusion policy's file")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
