"""Frames of a part of a video, decoded by ffmpeg, and of PNG and JPEG images."""

from __future__ import annotations

import io
import re
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.datasets.damage import as_dataset_error
from act_kit.errors import DatasetError
from act_kit.files import require_regular

_MAX_PIXELS = 1024 * 1024
_SECONDS_PER_EPISODE = 600
"""Time after which the decoding of an episode is stopped: 1,500 frames of 480x640 take 5 s."""


def decode_video(path: Path, begin_s: float, fps: float, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Decode frames of a video that begin at ``begin_s`` seconds, uint8 (T, H, W, 3).

    Raises:
        DatasetError: The video is missing or damaged, has fewer frames, or frames of another size.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    with as_dataset_error(f"{path} cannot be read"):
        require_regular(path)
    num, height, width, _ = shape
    # The first frame that is not earlier than half a step before the beginning. ffmpeg seeks to it exactly.
    seek = ["-ss", f"{begin_s - 0.5 / fps:.6f}"] if begin_s > 0.5 / fps else []
    command = [
        get_ffmpeg_exe(),
        "-nostdin",
        "-v",
        "quiet",
        "-max_pixels",
        str(_MAX_PIXELS),
        "-protocol_whitelist",
        "file",
    ]
    command += [*seek, "-f", "mov", "-i", f"file:{path.absolute()}", "-map", "0:v:0", "-frames:v", str(num)]
    command += ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    frames = np.empty(shape, np.uint8)
    # A frame begins with its size, so that frames of another size are recognized.
    header = f"P6\n{width} {height}\n255\n".encode()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        timer = threading.Timer(_SECONDS_PER_EPISODE, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for step in range(num):
                found = process.stdout.read(len(header))
                if found != header:
                    raise DatasetError(f"{path}: {_describe(found, step, shape)}.")
                pixels = process.stdout.read(height * width * 3)
                if len(pixels) != height * width * 3:
                    raise DatasetError(f"{path}: {_describe(b'', step, shape)}.")
                frames[step] = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
        finally:
            timer.cancel()
            process.kill()
    return frames


def _describe(header: bytes, step: int, shape: tuple[int, int, int, int]) -> str:
    num, height, width, _ = shape
    size = re.match(rb"P6\n(\d+) (\d+)\n", header)
    if size:
        return f"its frames are {int(size[2])}x{int(size[1])}; {height}x{width} were expected"
    return f"it is damaged, or has fewer frames than its episode: {step} of {num} can be decoded"


def decode_images(cells: Iterable[Any], where: str, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Decode PNG or JPEG images, each the value of a struct with the field ``bytes``, to uint8 (T, H, W, 3).

    Raises:
        DatasetError: An image is missing or damaged, or has another size.
    """
    from PIL import Image

    frames = np.empty(shape, np.uint8)
    for step, cell in enumerate(cells):
        data = cell["bytes"] if isinstance(cell, dict) else None
        if not isinstance(data, bytes):
            raise DatasetError(f"{where}: image {step} is not in the Parquet file. Fix: embed the images.")
        with (
            as_dataset_error(f"{where}: image {step} is damaged"),
            Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image,
        ):
            if (image.height, image.width) != shape[1:3]:
                size, expected = f"{image.height}x{image.width}", f"{shape[1]}x{shape[2]}"
                raise DatasetError(f"{where}: image {step} has {size} px; {expected} were expected.")
            frames[step] = np.asarray(image.convert("RGB"))
    return frames
