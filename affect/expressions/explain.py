"""Where a network looks: Grad-CAM.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (ICCV 2017).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from affect.core.plots import colormap
from affect.expressions.models import ExpressionModel

STRENGTH = 0.5
"""Share of the colours in a picture of the heat over a face."""


def grad_cam(model: ExpressionModel, images: Tensor, classes: Tensor) -> np.ndarray:
    """Return how much each place of images [B, C, S, S] speaks for the classes [B]: float32 [B, S, S], 0 to 1.

    A map is all zero where nothing in the image speaks for the class. The network's gradients, hooks and modes are
    left as they were. Raises ValueError for a network whose `cam_layer` gives no map [B, C, h, w].
    """
    maps: list[Tensor] = []

    def keep(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        if model.as_map(output).ndim != 4:
            raise ValueError(
                f"Grad-CAM needs a layer with places, a map [B, C, h, w]; the network's cam_layer gives "
                f"{list(output.shape)}"
            )
        # a leaf of its own, for all before may be frozen; the first one, for checkpointed blocks run twice
        maps.append(output.detach().requires_grad_())
        return maps[-1].clone()  # what comes after may work in place

    hook = model.cam_layer.register_forward_hook(keep)
    try:
        with torch.enable_grad(), _eval_mode(model):
            logits = model(images)
            scores = logits.gather(1, classes.to(logits.device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(scores, maps[0])
    finally:
        hook.remove()
    weights = model.as_map(gradient).mean(dim=(2, 3), keepdim=True)
    heat = (weights * model.as_map(maps[0].detach())).sum(dim=1, keepdim=True).relu()
    heat = interpolate(heat.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    highest = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / highest.clamp_min(torch.finfo(heat.dtype).tiny)).cpu().numpy()


def draw_heat(face: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a face uint8 [H, W, 3] and, beside it, the same under its heat map [S, S]: uint8 [H, 2 W, 3]."""
    height, width = face.shape[:2]
    scaled = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    colours = colormap("turbo")(np.clip(np.asarray(scaled), 0, 1))[..., :3] * 255
    mixed = (1 - STRENGTH) * face + STRENGTH * colours
    return np.concatenate([face, np.round(mixed).astype(np.uint8)], axis=1)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation, and each back to what it was (a frozen part may differ from the rest)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
