"""What made the features of a folder: its sidecar, and whether two of them agree."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from affect.core.au_json import AuAnalysis
from affect.core.reading import quoted, read_object
from affect.core.schema import AU_VALUES
from affect.features.arrays import FeatureError

SIDECAR = "provenance.json"

_MAY_MOVE = {"versions", "device"}
"""Under a long extraction libraries move, and what is left goes to another machine; what was computed may not."""
_UNSAID = {"frame_geometry": "crop"}
"""What holds where a sidecar is older than a key."""
AU_MAKERS = {"measured_by", "sentences_by", "sentences_of"}
"""What clips of one data set share that come through AU JSON; a sidecar that does not know one agrees with any."""


def au_makers(analysis: AuAnalysis, encoder: str) -> dict[str, str]:
    """Return what features of action units rest on, as far as the AU JSON says it; AU_VALUES do without sentences."""
    makers = {"measured_by": analysis.measured_by}
    if encoder != AU_VALUES and (analysis.summary_description or analysis.fine_grained_descriptions):
        makers["sentences_by"] = str(analysis.provenance.get("sentences", "another program"))
        makers |= {"sentences_of": str(analysis.provenance["described"])} if "described" in analysis.provenance else {}
    return makers


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return what a sidecar says (raises FeatureError where it is no JSON object)."""
    return read_object(path, "JSON that says how the features were made", "extract them anew", FeatureError)


def said(sidecar: dict[str, Any], key: str) -> Any:
    """Return what a sidecar says of a key, or what holds where it is older than the key."""
    return sidecar.get(key, _UNSAID.get(key))


def check_as_packed(path: Path, found: dict[str, Any], packed: dict[str, Any]) -> None:
    """Raise FeatureError where a sidecar is not what it was when features of its folder were packed."""
    if key := first_difference(found, packed):
        raise FeatureError(
            f"{path}: {key} is {quoted(said(found, key))}, but features of this folder were packed when it was "
            f"{packed[key]!r}; bring that sidecar back, or keep the two kinds under different --save_root"
        )


def first_difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Return the first key on which a sidecar disagrees with what is expected, or None."""
    for key in sorted(expected.keys() - _MAY_MOVE - (AU_MAKERS - found.keys())):
        values = [said(found, key), expected[key]]
        if key in ("encoder", "sentences_by"):
            values = [encoder_identity(str(value)) for value in values]
        if values[0] != values[1]:
            return key
    return None


def encoder_identity(encoder: str) -> str:
    """Return an encoder's name without the machine: a path is cut to its last part, hub ids and plain names stay.

    A path is what begins with `/`, `~`, `.` or a drive, or has more than one `/`; `org/model` is a hub id.
    `hf:/models/some dir` -> `hf:some dir`; `open_clip:ViT-B-16//weights/b16.pt` -> `open_clip:ViT-B-16/b16.pt`;
    a run of the image track is its folder: `fer:output/rafdb/best.safetensors` -> `fer:rafdb`.
    Different weights of the same last part share a folder name; the weights hash in its sidecar keeps them apart.
    """
    kind, rest = re.fullmatch(r"((?:[A-Za-z_-]{2,}:)*)(.*)", encoder, re.DOTALL).groups()
    model = ""
    if kind == "open_clip:" and "/" in rest:
        model, _, rest = rest.partition("/")
        model += "/"
    path = rest.replace("\\", "/")
    if kind == "fer:":
        last = "/last.safetensors" if path.endswith("/last.safetensors") else ""
        folder = path.removesuffix("/best.safetensors").removesuffix(last)
        return f"{kind}{PurePosixPath(folder).name}{last}"
    if re.match(r"[/~.]|[A-Za-z]:/", path) or path.count("/") > 1:
        rest = PurePosixPath(path).name
    return f"{kind}{model}{rest}"
