"""Every network learns a few real faces by heart: what is wired wrong does not."""

import pytest
import torch
from torch.nn import functional as F

from affect.expressions.config import ImageModelConfig, input_spec
from affect.expressions.image_files import read_image, to_input
from affect.expressions.models import build_model

SMALL = {
    "compact": {"arch": "compact", "width": 0.5},
    "cls_only": {"arch": "ir50_vit", "width": 0.125, "img_size": 48, "depth": 2},
    "baseline": {"arch": "ir50_vit", "width": 0.125, "img_size": 48, "depth": 2, "block": "baseline", "qk_norm": True},
    "timm": {"arch": "timm", "backbone": "resnet10t", "img_size": 32},
    "poster_v2": {"arch": "poster_v2", "width": 0.125, "img_size": 112, "depth": 1, "drop_path": 0},
}


def _faces(shared, config: ImageModelConfig, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first faces of each of eight expressions: [8 * each, C, S, S], labels."""
    spec = input_spec(config, None, None)
    folders = sorted((shared / "data/images/muxspace").iterdir())
    files = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())[:each]]
    return torch.stack([to_input(read_image(path), spec) for path, _ in files]), torch.tensor([y for _, y in files])


def _steps_to_know_all(config: ImageModelConfig, images, labels, rate: float, batch: int, most: int) -> int | None:
    """Return after how many passes over the images every one is named rightly, None if not within `most`."""
    torch.manual_seed(0)
    model = build_model(config, 8)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=rate, weight_decay=0)
    for step in range(1, most + 1):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, step / 4)
        for chosen in torch.randperm(len(labels)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        if step % 5 == 0:
            model.eval()
            with torch.no_grad():
                if torch.equal(model(images).argmax(dim=1), labels):
                    return step
    return None


@pytest.mark.parametrize("name", ["compact", "cls_only", "baseline", "timm"])
def test_small_networks_know_32_faces_by_heart(shared, name):
    config = ImageModelConfig(**SMALL[name])
    images, labels = _faces(shared, config, each=4)
    assert _steps_to_know_all(config, images, labels, rate=3e-3, batch=32, most=100)


def test_small_poster_v2_knows_8_faces_by_heart(shared):
    config = ImageModelConfig(**SMALL["poster_v2"])
    images, labels = _faces(shared, config, each=1)
    assert _steps_to_know_all(config, images, labels, rate=1e-3, batch=8, most=60)


@pytest.mark.long
def test_small_poster_v2_knows_32_faces_by_heart(shared):
    config = ImageModelConfig(**SMALL["poster_v2"] | {"width": 0.25})
    images, labels = _faces(shared, config, each=4)
    assert _steps_to_know_all(config, images, labels, rate=1e-3, batch=32, most=60)
