"""MediaPipe behind a pipe, with the interpreter of an environment of its own: `affect.faces.mediapipe_pipe` runs it.

In: a line of JSON, `{"ask": "faces" or "mesh", "shape": [H, W, 3], "first": …}`, and so many bytes of RGB. Out: a line
of JSON, `{"found": …}` or `{"error": …}`. Needs nothing but the standard library and what mediapipe brings.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Answer until the other end is closed; an error is told and ends the process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    try:
        for found in _answers():
            print(json.dumps({"found": found}), file=answers, flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)


def _answers() -> Any:
    """Yield what is found in each picture; places are shares of its width and height."""
    import numpy as np
    from mediapipe.python.solutions import face_detection, face_mesh

    detector, mesh = None, None
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        height, width, _ = asked["shape"]
        picture = np.frombuffer(sys.stdin.buffer.read(height * width * 3), np.uint8).reshape(asked["shape"])
        if asked["ask"] == "mesh":
            if asked["first"]:  # the mesh follows a face from frame to frame, so no clip may see another's
                mesh = face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=True)
            found = mesh.process(picture).multi_face_landmarks
            yield [(point.x, point.y, point.z) for point in found[0].landmark] if found else None
        else:
            detector = detector or face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.5)
            found = detector.process(picture).detections or []
            places = [(each.location_data.relative_bounding_box, each.score[0]) for each in found]
            yield [(box.xmin, box.ymin, box.width, box.height, score) for box, score in places]


if __name__ == "__main__":
    main()
