"""What published weights are called here, file by file.

Each function takes a file's name of a weight and returns the name here, or None for one that the forward pass
of the file's own network has no use for. An unknown name comes back as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

from affect.expressions.models.ir50 import UNITS


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
