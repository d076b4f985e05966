"""Published weights under the names of the networks here.

Known are the files of POSTER V2's authors (the whole network, ir50.pth, mobilefacenet_model_best.pth.tar), IR-50
as face.evoLVe and insightface publish it, timm's own files, and checkpoints of the image track. Pickled files
are read with weights_only, so that none can run code.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affect.core.config import ConfigError
from affect.core.reading import reading
from affect.core.tensors import read_pickled, read_tensors
from affect.expressions.config import ImageModelConfig
from affect.expressions.models.base import ExpressionModel
from affect.expressions.models.ir50 import UNITS, Ir50
from affect.expressions.network_file import find_model, is_network, read_network

logger = logging.getLogger(__name__)

Rename = Callable[[str], str | None]
"""A file's name of a weight -> the name here, None for one that its own network never uses; unknown ones stay."""
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
        weights = rename(read_weights(Path(config.ir50_weights)), name_of)
        fill(model.image_net, _of_used_layers(weights, model.image_net), config.ir50_weights, what)
    if config.face_weights:
        weights = rename(read_weights(Path(config.face_weights)), face_net_name)
        fill(model.face_net, weights, config.face_weights, "MobileFaceNet")


def read_weights(path: Path) -> Weights:
    """Return the tensors in a .pth or .tar file, out of any wrapper and without `module.` before their names."""
    content = read_pickled(path, "weights", ConfigError, _HARMLESS)
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
        weights = read_weights(path)
        if config.arch == "poster_v2":
            return path, rename(weights, poster_v2_name)
        return path, _named_as_here(weights, model) if config.arch == "timm" else weights
    if config.arch == "timm" and path.is_file() and not is_network(path):  # as timm's hub has them
        return path, _named_as_here(read_tensors(path, "weights in safetensors", ConfigError), model)
    with reading(path, "weights", kind=ConfigError):
        path = find_model(path)
        card, weights = read_network(path)
    if card.model.arch != config.arch:
        raise ConfigError(f"{path}: expected weights of {config.arch}, as model.arch says, found {card.model.arch}")
    return path, weights


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


def poster_v2_name(key: str) -> str | None:
    """Return what a weight of the published POSTER V2 is called here, or None where its forward pass has no use for it.

    The joined attn.qkv of a block keeps its name, for `rename` to part.
    """
    part, _, rest = key.partition(".")
    if part in ("ir_back", "face_landback"):
        net, name_of = ("image_net", ir50_name) if part == "ir_back" else ("face_net", face_net_name)
        name = name_of(rest)
        return name and f"{net}.{name}"
    if part == "VIT":
        if re.match(r"(patch_embed|eca_block|CON1|IRLinear\d|blocks\.\d+\.conv)\.", rest):
            return None
        return _replace_start(rest, _POSTER_VIT)
    if part.startswith("embed_"):
        return f"embed.{'qkv'.index(part[-1])}.{rest.replace('proj', '0')}"
    if scaled := re.fullmatch(r"(attn|window|conv|ffn)([123])", part):
        if rest == "relative_position_index":
            return None
        return f"fusions.{int(scaled[2]) - 1}." + _replace_start(f"{scaled[1]}.{rest}", _POSTER_FUSION)
    return _replace_start(key, {"last_face_conv": "narrow"})


def ir50_name(key: str) -> str | None:
    """Return what a weight of face.evoLVe's IR-50 is called here; its units may be counted through or by layers."""
    if key.startswith("output_layer."):
        return None
    key = _replace_start(key, {"input_layer": "stem"})
    if found := re.match(r"body(\d?)\.(\d+)\.", key):
        if found[1]:
            layer, unit = int(found[1]) - 1, int(found[2])
        else:
            layer = sum(int(found[2]) >= first for first in _LATER_LAYERS)
            unit = int(found[2]) - [0, *_LATER_LAYERS][layer]
        return f"layers.{layer}.{unit}." + _replace_start(key[found.end() :], _IR50_UNIT)
    return key


def iresnet_name(key: str) -> str | None:
    """Return what a weight of insightface's iresnet50 is called here."""
    if re.match(r"(bn2|fc|features)\.", key):
        return None
    if found := re.match(r"layer(\d)\.(\d+)\.", key):
        return f"layers.{int(found[1]) - 1}.{found[2]}." + _replace_start(key[found.end() :], _IRESNET_UNIT)
    return _replace_start(key, {"conv1": "stem.0", "bn1": "stem.1", "prelu": "stem.2"})


def face_net_name(key: str) -> str | None:
    """Return what a weight of the published MobileFaceNet is called here; its head for landmarks is not used."""
    step, _, rest = key.partition(".")
    if step == "output_layer":
        return None
    if step not in _FACE_STEPS:
        return key
    name = _FACE_STEPS[step]
    if found := re.match(r"model\.(\d+)\.", rest):  # a residual unit; the unit that halves is the first here
        name, rest = f"{name}.{int(found[1]) + 1}", rest[found.end() :]
    if found := re.match(r"(conv|conv_dw|project)\.(?=conv|bn|prelu)", rest):
        name, rest = f"{name}.{_FACE_UNIT[found[1]]}", rest[found.end() :]
    return f"{name}.{_replace_start(rest, {'conv': '0', 'bn': '1', 'prelu': '2'})}"


_LATER_LAYERS = list(accumulate(UNITS))[:-1]
_IR50_UNIT = {f"res_layer.{i}": name for i, name in enumerate(("norm1", "conv1", "act", "conv2", "norm3"))}
_IR50_UNIT |= {"shortcut_layer": "shortcut"}
_IRESNET_UNIT = {"bn1": "norm1", "bn2": "norm2", "prelu": "act", "bn3": "norm3", "downsample": "shortcut"}
_FACE_STEPS = {"conv1": "stem.0", "conv2_dw": "stem.1", "conv_23": "low.0", "conv_3": "low", "conv_34": "middle.0"}
_FACE_STEPS |= {"conv_4": "middle", "conv_45": "high.0", "conv_5": "high", "conv_6_sep": "high.3"}
_FACE_UNIT = {"conv": "widen", "conv_dw": "depthwise", "project": "project"}
_POSTER_VIT = {"pos_embed": "positions", "se_block.linear1": "gate.0", "se_block.linear2": "gate.2"}
_POSTER_VIT |= {"head.linear": "head"}
_POSTER_FUSION = {"window.norm": "norm1", "conv": "down", "attn.qkv": "attn.kv"}
_POSTER_FUSION |= {"attn.relative_position_bias_table": "attn.bias", "attn.proj": "attn.proj"}
_POSTER_FUSION |= {"ffn.gamma1": "scale1", "ffn.gamma2": "scale2", "ffn.norm": "norm2", "ffn.mlp": "mlp"}


def _replace_start(key: str, names: Mapping[str, str]) -> str:
    """Return the key with the parts at its start that are known renamed."""
    for start, name in names.items():
        if key == start or key.startswith(f"{start}."):
            return name + key[len(start) :]
    return key
