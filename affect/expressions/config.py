"""Typed configuration of the image track: `task: expressions` (fer) with the sections model, images, run and predict.

Flags of the systems that users come from are accepted as keys (`aliases`); an option without a section goes into
the section that knows it, so `--options lr=5e-4 epochs=50` works.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic import model_validator as check

from affect.core.config import ConfigError, Device, RunSettings, Section, also, parse, read_yaml
from affect.expressions.samples import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD, InputSpec

Arch = Literal["poster_v2", "ir50_vit", "compact", "timm"]
Block = Literal["baseline", "cls_only", "cat_before_mlp", "cat_after_mlp", "add_patches", "expand"]
IMAGE_SIZES: dict[str, int] = {"poster_v2": 224, "ir50_vit": 112, "compact": 48, "timm": 224}
"""Architecture -> pixels a side that it is meant for."""


def _stage(value: Any) -> Any:
    return f"stage{value}" if value in (3, 4, "3", "4") else value


_NOT_NEEDED = {
    "evaluate": "tools/evaluate.py fer --ckpt … --data_root … evaluates",
    "num_classes": "the data say how many classes there are",
}


class ImageModelConfig(Section):
    """The network."""

    arch: Arch = "poster_v2"
    backbone: str = "resnet18"
    """arch timm: name of any timm model."""
    pretrained: bool = False
    """arch timm: start from timm's own weights, from the hub."""
    weights: str | None = None
    """File to start from: an own checkpoint or published weights of the whole network, without another classifier."""
    ir50_weights: str | None = None
    """Published weights of the image backbone (ir50.pth)."""
    face_weights: str | None = None
    """arch poster_v2: published weights of the face landmark network (MobileFaceNet)."""
    img_size: int | None = Field(None, gt=0, le=4096)
    """Pixels a side; what the architecture is meant for, when not given."""
    width: float = Field(1.0, gt=0, le=1)
    """Share of the published channels, for trials; not for timm."""
    depth: int | None = Field(None, gt=0, le=1000)
    """Transformer blocks: 2 for poster_v2, 8 for ir50_vit, when not given."""
    block: Block = "cls_only"
    """arch ir50_vit: what a transformer block does with the class token and the patches."""
    stage: Annotated[Literal["stage3", "stage4"], BeforeValidator(_stage)] = "stage3"
    """arch ir50_vit: units of the backbone's last layer, one (stage3) or three (stage4)."""
    qk_norm: bool = False
    """arch ir50_vit: normalise queries and keys, against NaN at high rates."""
    attn_drop: float = Field(0.0, ge=0, lt=1)
    proj_drop: float = Field(0.0, ge=0, lt=1)
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Highest rate of stochastic depth; 0.25 for poster_v2, else 0, when not given."""
    grad_checkpointing: bool = False
    """Compute activations anew in the backward pass instead of keeping them."""
    channels_last: bool = True
    """Memory layout of the convolutions; docs/expression_images.md has the measured difference."""
    compile: bool = False
    """Compile the network with torch.compile."""

    aliases = also(grad_checkpointing="gradient_checkpointing")
    not_needed = _NOT_NEEDED

    @property
    def input_size(self) -> int:
        """Pixels a side of the input."""
        return self.img_size or IMAGE_SIZES[self.arch]

    @property
    def gray(self) -> bool:
        """Whether the network reads one channel."""
        return self.arch == "compact"


DataType = Literal["RAF-DB", "AffectNet-7", "AffectNet-8", "CAER-S", "FERPlus", "FER2013"]
Share = Annotated[float, Field(ge=0, lt=1)]


class ImagesConfig(Section):
    """Labelled images, their splits, and how training changes them."""

    data_root: str = "data"
    """Folder of images in one of three layouts, or the FER2013 CSV file."""
    data_type: DataType | None = None
    """Known data set: gives class names for numbered folders, their order, and normalisation."""
    votes_csv: str | None = None
    """FER+ votes (fer2013new.csv) for the images of a FER2013 CSV file."""
    votes_target: Literal["majority", "soft", "multi_label"] = "majority"
    """What the votes of an image become: one class, a distribution, or every class that enough voted for."""
    classes: list[str] | None = None
    """Class names in the order of the outputs; those of data_type or of the training folders, when not given."""
    val_split: Share = 0.1
    """Share cut from the training images where there is no val folder; 0 validates on test."""
    test_split: Share = 0.0
    """Share cut for testing from a flat folder."""
    split_seed: int = Field(42, ge=0)
    mean: list[float] | None = None
    """Normalisation; that of the data set, when not given."""
    std: list[float] | None = None
    check_images: bool = True
    """Decode every image once before training; those that fail are listed in failures.csv and left out."""
    align: bool = False
    """Find the face in each image, turn it upright and cut it out; off for data that is aligned."""
    balanced: bool = False
    """Draw every class equally often."""

    augment: bool = True
    """Random flips, and below what is set."""
    crop: float = Field(0.0, ge=0, lt=1)
    """Random crops that keep at least 1 - this share of the area."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Degrees of random rotation either way."""
    color_jitter: float = Field(0.0, ge=0, le=1)
    """Strength of random brightness, contrast and saturation."""
    auto_augment: bool = False
    random_erasing: float = Field(0.0, ge=0, le=1)
    """Chance to erase a part of the image."""
    erasing_scale: tuple[float, float] = (0.02, 0.33)
    """Share of the area that is erased, from - to."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (True: mixup_alpha)."""
    mixup_alpha: float = Field(0.2, gt=0)
    cutmix: float = Field(0.0, ge=0)
    """Alpha of CutMix; with mixup, each batch draws one of the two."""

    aliases = also(data_root="data data_csv")
    not_needed = _NOT_NEEDED

    @check(mode="before")
    @classmethod
    def _mixup_flag(cls, content: Any) -> Any:
        """Users write `mixup: True` beside mixup_alpha, too."""
        if isinstance(content, dict) and isinstance(content.get("mixup"), bool):
            return {**content, "mixup": content.get("mixup_alpha", 0.2) if content["mixup"] else 0.0}
        return content

    @check(mode="after")
    def _fits_together(self) -> ImagesConfig:
        if self.val_split + self.test_split >= 1:
            raise ValueError(f"val_split {self.val_split} and test_split {self.test_split} leave nothing to train on")
        low, high = self.erasing_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"erasing_scale [{low}, {high}]: expected 0 < from <= to <= 1")
        if (self.mean is None) != (self.std is None):
            raise ValueError("found one of mean and std, expected both or none")
        if self.votes_target != "majority" and self.votes_csv is None:
            raise ValueError(f"votes_target {self.votes_target} needs the votes; set votes_csv to fer2013new.csv")
        return self


class FerRunConfig(RunSettings):
    """What all tasks share, and the loss."""

    init_lr: float = Field(3e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    batch_size_train: int = Field(64, gt=0, le=1_000_000)
    """Images of a batch."""
    amp: bool = True
    """Mixed precision on a GPU: bfloat16 where it can, else float16 with a scaler."""
    keep_checkpoints: int = Field(1, gt=0)
    """Checkpoints to go on from; best.safetensors and last.safetensors are kept beside them."""
    loss_type: Literal["ce", "focal"] = "ce"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    focal_gamma: float = Field(2.0, ge=0)
    class_weight: Literal["balanced"] | list[float] | None = None
    """balanced: every class counts alike in the loss."""

    aliases = RunSettings.aliases | also(label_smoothing="beta")
    not_needed = _NOT_NEEDED

    @check(mode="after")
    def _fits_one_card(self) -> FerRunConfig:
        if self.fsdp:
            raise ValueError("fsdp: networks of the image track fit on one card; leave it out")
        return self


class PredictConfig(Section):
    """Which network names expressions, and where the answers go."""

    ckpt: str | None = None
    """best.safetensors or last.safetensors of a run, or the run's folder."""
    output_dir: str = "output/expressions"
    batch_size: int = Field(32, gt=0, le=1_000_000)
    device: Device = "auto"
    flip: bool = False
    """Mean of the probabilities of an image and its mirror image."""
    face_finder: str = "auto"
    """opencv, mediapipe, or auto: mediapipe where there is an environment of it."""
    faces: Literal["find", "whole"] = "find"
    """whole: the image is one face, cut out already."""
    align: bool | None = None
    """Turn faces upright; as the network was trained, when not given."""
    min_margin: float = Field(0.1, ge=0, le=1)
    """Warn when the highest probability is less than this above one in the number of classes."""
    frame_rate: float = Field(5.0, gt=0)
    """Frames of a video to look at, a second."""


class FerConfig(Section):
    """A whole file."""

    task: Literal["expressions"] = "expressions"
    model: ImageModelConfig = Field(default_factory=ImageModelConfig)
    images: ImagesConfig = Field(default_factory=ImagesConfig)
    run: FerRunConfig = Field(default_factory=FerRunConfig)
    predict: PredictConfig = Field(default_factory=PredictConfig)

    flat_options: ClassVar[bool] = True
    uncompared: ClassVar[Set[str]] = {"predict", "model.channels_last", "model.compile", "model.grad_checkpointing"}
    """Sections and keys that do not make a run another one."""

    @check(mode="after")
    def _batches_have_statistics(self) -> FerConfig:
        if self.model.arch == "compact" and self.run.batch_size_train == 1:
            raise ValueError("run.batch_size 1: compact normalises over the batch; set at least 2")
        return self

    @property
    def multi_label(self) -> bool:
        """Whether several classes may be true of an image."""
        return self.images.votes_target == "multi_label"


def load_fer_config(path: str | Path, options: Sequence[str] = ()) -> FerConfig:
    """Read a YAML file, apply `section.key=value` or `key=value` options and return the typed configuration.

    Raises ConfigError with every fault at once: file, key, what was found and expected.
    """
    return parse(FerConfig, read_yaml(path), str(path), options)


def input_spec(model: ImageModelConfig, mean: Sequence[float] | None, std: Sequence[float] | None) -> InputSpec:
    """Return what a network sees; without mean and deviation those of ImageNet, or of FER2013 where it reads gray.

    Raises ConfigError where their number does not fit the channels.
    """
    known = (GRAY_MEAN, GRAY_STD) if model.gray else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = (known[0] if mean is None else tuple(mean), known[1] if std is None else tuple(std))
    channels = len(known[0])
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ConfigError(
            f"images.mean and images.std: expected {channels} numbers each (std above 0) for {model.arch}, "
            f"found {list(mean)} and {list(std)}"
        )
    return InputSpec(model.input_size, model.gray, mean, std)
