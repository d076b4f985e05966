"""Published weights under the names of the networks here.

Known are the files of POSTER V2's authors (the whole network, ir50.pth, mobilefacenet_model_best.pth.tar), IR-50
as face.evoLVe and insightface publish it, timm's own files, and checkpoints of the image track. Pickled files
are read with weights_only, so that none can run code.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from affect.core.config import ConfigError
from affect.expressions.config import ImageModelConfig
from affect.expressions.models.base import ExpressionModel
from affect.expressions.models.ir50 import Ir50
from affect.expressions.models.published_names import face_net_name, ir50_name, iresnet_name, poster_v2_name
from affect.expressions.network_file import find_model, is_network, read_card

logger = logging.getLogger(__name__)

Rename = Callable[[str], str | None]
"""A file's name of a weight -> the name here, or None for one that its own network never uses."""
Weights = dict[str, Tensor]

_WHAT = {
    "weights": "weights of {arch}",
    "ir50_weights": "the published weights of IR-50 (ir50.pth)",
    "face_weights": "the published weights of MobileFaceNet (mobilefacenet_model_best.pth.tar)",
}
"""Setting that names a file -> what is in it."""


def require_files(config: ImageModelConfig) -> None:
    """Raise ConfigError, with where to put it, for the first file of weights that is not there."""
    for key, what in _WHAT.items():
        path = getattr(config, key)
        if path and not Path(path).exists():
            what = what.format(arch=config.arch)
            raise ConfigError(f"{path}: no such file; put {what} there, or set model.{key} to where it is")


def load_weights(model: ExpressionModel, config: ImageModelConfig) -> None:
    """Fill a network with the files that its configuration names, the whole network before its parts.

    Raises ConfigError in one sentence for a file that is missing, cut off, or of another network or shape.
    """
    require_files(config)
    if config.weights:
        path, weights = _whole_network(config, model)
        fill(model, _without_other_head(model, weights, path), path, f"{config.arch} as configured")
    if config.ir50_weights:
        poster = config.arch == "poster_v2"
        name_of, what = (ir50_name, "face.evoLVe's IR-50") if poster else (iresnet_name, "insightface's iresnet50")
        weights = rename(read_pickled(Path(config.ir50_weights)), name_of)
        fill(model.image_net, _of_used_layers(weights, model.image_net), config.ir50_weights, what)
    if config.face_weights:
        weights = rename(read_pickled(Path(config.face_weights)), face_net_name)
        fill(model.face_net, weights, config.face_weights, "MobileFaceNet")


def read_pickled(path: Path) -> Weights:
    """Return the tensors in a .pth or .tar file, out of any wrapper and without `module.` before their names."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ConfigError(
            f"{path}: expected weights, found {f'an object of {found[1]}' if found else 'no file of torch.save'}, "
            "which is not read since it may run code; save the state_dict alone"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        size = path.stat().st_size
        raise ConfigError(f"{path}: {size} bytes that are no whole file of weights; copy it again ({reason})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    weights = content if isinstance(content, dict) else {}
    weights = {str(name).removeprefix("module."): value for name, value in weights.items() if torch.is_tensor(value)}
    if not weights:
        kind = "an optimizer's state" if isinstance(content, dict) and "param_groups" in content else "none"
        raise ConfigError(f"{path}: expected tensors by name, found {kind}; take the file that holds the network")
    return weights


def rename(weights: Mapping[str, Tensor], name_of: Rename) -> Weights:
    """Return weights under the names here, joined queries, keys and values (3 D rows) parted into q and kv."""
    renamed: Weights = {}
    for key, weight in weights.items():
        name = name_of(key)
        if name is None:
            continue
        if ".qkv." in name:
            dim = len(weight) // 3
            renamed[name.replace(".qkv.", ".q.")] = weight[:dim]
            renamed[name.replace(".qkv.", ".kv.")] = weight[dim:]
        else:
            renamed[name] = weight
    return renamed


class _Inert:
    """Stands for what the authors' training script pickles beside the weights, its records; holds nothing."""

    def __init__(self, *_args: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


_RECORDS = ["__main__.RecorderMeter", "__main__.RecorderMeter1", "numpy.ndarray", "numpy.dtype"]
_RECORDS += [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
_HARMLESS = [(_Inert, name) for name in _RECORDS]


def _whole_network(config: ImageModelConfig, model: ExpressionModel) -> tuple[Path, Weights]:
    """Return the file of a whole network and its weights under the names here."""
    path = Path(config.weights or "")
    if not path.is_dir() and path.suffix != ".safetensors":
        weights = read_pickled(path)
        if config.arch == "poster_v2":
            return path, rename(weights, poster_v2_name)
        return path, _named_as_here(weights, model) if config.arch == "timm" else weights
    try:
        if config.arch == "timm" and path.is_file() and not is_network(path):  # as timm's hub has them
            return path, _named_as_here(load_file(path), model)
        path = find_model(path)
        found = read_card(path).model
    except SafetensorError as error:
        raise ConfigError(f"{path}: expected weights in safetensors, but they cannot be read ({error})") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if found.arch != config.arch:
        raise ConfigError(f"{path}: expected weights of {config.arch}, as model.arch says, found {found.arch}")
    return path, load_file(path)


def _named_as_here(weights: Weights, model: ExpressionModel) -> Weights:
    """Return timm's own weights as those of `net`, and of `head` where they are its classifier's."""
    head = f"{model.net.default_cfg.get('classifier')}."
    names = {key: f"head.{key.removeprefix(head)}" if key.startswith(head) else f"net.{key}" for key in weights}
    return {names[key]: value for key, value in weights.items()}


def _without_other_head(model: ExpressionModel, weights: Weights, path: Path) -> Weights:
    """Return the weights with the network's own classifier where the file's is of another number of classes."""
    own = {f"head.{name}": value for name, value in model.head.state_dict().items()}
    classes = len(own["head.bias"])
    found = weights.get("head.bias")
    if found is None or len(found) == classes:
        return weights
    logger.info("%s: its classifier of %d classes is left out, a new one learns %d", path, len(found), classes)
    return weights | own


def _of_used_layers(weights: Weights, net: Ir50) -> Weights:
    """Return the weights without the layers and units that the network ends before."""
    units = [len(layer) for layer in net.layers]

    def used(name: str) -> bool:
        place = re.match(r"layers\.(\d+)\.(\d+)\.", name)
        return place is None or (int(place[1]) < len(units) and int(place[2]) < units[int(place[1])])

    return {name: weight for name, weight in weights.items() if used(name)}


def fill(net: nn.Module, weights: Weights, path: str | Path, what: str) -> None:
    """Give a network the weights of a file (raises ConfigError where one is missing, unknown or of another shape)."""
    expected = net.state_dict()
    # counters of batches, which older files lack, nothing reads
    faults = [f"{name} is missing" for name in expected if name not in weights and not name.endswith("batches_tracked")]
    faults += [f"{name} has no place in it" for name in weights if name not in expected]
    for name, weight in expected.items():
        if name in weights and weights[name].shape != weight.shape:
            faults.append(f"{name} is {list(weights[name].shape)}, expected {list(weight.shape)}")
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ConfigError(f"{path}: not the weights of {what}: {faults[0]}{more}")
    net.load_state_dict(weights, strict=False)
