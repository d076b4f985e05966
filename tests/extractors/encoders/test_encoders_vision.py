"""Picture encoders of transformers and open_clip against the models run by hand."""

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image

from extractors.encoders import build_encoder
from extractors.encoders.pretrained import WeightsError
from tiny_encoders import MEAN, STD, check_batch_equals_single, encode, frames, save

KINDS = ["clip", "clip_vision_tower", "siglip", "dinov2", "vit_classifier", "convnext", "open_clip"]
ITEMS = [frames(5), frames(0), frames(1, 90, 40, seed=1), frames(3, 3, 3, seed=2), frames(66, 20, 20, seed=3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    return {kind: save(kind, place) for kind in KINDS}


def encoder_of(folders, kind):
    return build_encoder("frame", f"{'open_clip' if kind == 'open_clip' else 'hf'}:{folders[kind]}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_items_give_one_by_one(folders, kind):
    check_batch_equals_single(encoder_of(folders, kind), ITEMS)


def pixels(picture: np.ndarray, mean, std, resample, size: tuple[int, int], left: int) -> torch.Tensor:
    """One picture as the papers' code prepares it, by Pillow alone."""
    small = Image.fromarray(picture).resize(size, resample).crop((left, 0, left + 32, 32))
    return torch.tensor(((np.asarray(small) / 255 - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)


@torch.inference_mode()
def by_hand(kind: str, folder, picture: np.ndarray) -> torch.Tensor:
    """Features [1, D] of a picture 64 high and 96 wide."""
    half, bicubic = [0.5] * 3, Image.Resampling.BICUBIC
    if kind == "clip":
        model = transformers.CLIPModel.from_pretrained(folder).eval()
        pooled = model.vision_model(pixel_values=pixels(picture, MEAN, STD, bicubic, (48, 32), 8)).pooler_output
        return model.visual_projection(pooled)
    if kind == "clip_vision_tower":
        model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
        return model(pixel_values=pixels(picture, MEAN, STD, bicubic, (48, 32), 8)).image_embeds
    if kind == "siglip":
        model = transformers.SiglipVisionModel.from_pretrained(folder).eval()
        hidden = model(pixel_values=pixels(picture, half, half, bicubic, (32, 32), 0)).last_hidden_state
        return getattr(model, "vision_model", model).head(hidden)
    if kind == "dinov2":
        model = transformers.Dinov2Model.from_pretrained(folder).eval()
        small = Image.fromarray(picture).resize((55, 37), bicubic).crop((11, 2, 43, 34))
        values = torch.tensor(((np.asarray(small) / 255 - MEAN) / STD).transpose(2, 0, 1)[None], dtype=torch.float32)
        return model(pixel_values=values).last_hidden_state[:, 0]
    if kind == "vit_classifier":
        model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
        values = pixels(picture, half, half, Image.Resampling.BILINEAR, (32, 32), 0)
        return model.vit(pixel_values=values).last_hidden_state[:, 0]
    if kind == "convnext":
        model = transformers.ConvNextModel.from_pretrained(folder).eval()
        small = Image.fromarray(picture).resize((54, 36), bicubic).crop((11, 2, 43, 34))
        values = torch.tensor(((np.asarray(small) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None], dtype=torch.float32)
        return model(pixel_values=values).pooler_output
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    openai = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return model.encode_image(pixels(picture, *openai, bicubic, (48, 32), 8))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_model_run_by_hand(folders, kind):
    picture = frames(1, 64, 96)
    expected = by_hand(kind, folders[kind], picture[0])
    np.testing.assert_allclose(encode(encoder_of(folders, kind), [picture])[0], expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind, layer, pooling",
    [
        ("clip", "image projection", "class token"),
        ("siglip", "last norm", "attention"),
        ("dinov2", "last norm", "class token"),
        ("vit_classifier", "last layer", "class token"),
        ("convnext", "last layer", "pooler"),
    ],
)
def test_provenance_says_what_is_pooled_and_how_pictures_are_prepared(folders, kind, layer, pooling):
    found = encoder_of(folders, kind).provenance()
    assert (found["layer"], found["pooling"], found["precision"]) == (layer, pooling, "float32")
    assert found["preprocessing"].endswith(")")
    assert "32 x 32" in found["preprocessing"]


@pytest.mark.parametrize("name, kind", [("SIGLIP_SO", "siglip"), ("DINO2_LARGE", "dinov2")])
def test_short_names_take_models_of_their_type_only(folders, name, kind):
    assert build_encoder("face", name, weights=str(folders[kind])).name == name
    with pytest.raises(WeightsError, match=f"'vit'; expected '{kind}'"):
        build_encoder("face", name, weights=str(folders["vit_classifier"]))


def test_a_model_that_hides_patches_at_random_is_refused(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    transformers.ViTMAEModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="another answer each time"):
        build_encoder("frame", f"hf:{tmp_path}")


def test_pictures_of_a_size_that_the_model_does_not_take_are_found_while_loading(tmp_path):
    folder = save("clip", tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(folder)
    with pytest.raises(WeightsError, match=r"cannot be used \(.*224.*32.*\); expected one that makes one row"):
        build_encoder("frame", f"hf:{folder}")
