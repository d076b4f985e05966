"""What a camera sees, frame by frame."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cv2
import numpy as np

from affect.core.errors import MediaError


def camera_frames(number: int, most: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Yield what a camera sees, at most `most` frames: seconds since the first one, uint8 RGB [H, W, 3].

    Raises MediaError for a camera that is not there or gives no picture.
    """
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)  # it would print what the sentences below say
    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise MediaError(f"camera {number} cannot be opened; expected one that is connected, so try another number")
        start, count = None, 0
        while most is None or count < most:
            there, frame = camera.read()
            if not there:
                if not count:
                    raise MediaError(f"camera {number} gives no picture; close what else uses it, or try another")
                return
            now = time.monotonic()
            start = now if start is None else start
            yield now - start, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            count += 1
    finally:
        camera.release()
        cv2.utils.logging.setLogLevel(level)
