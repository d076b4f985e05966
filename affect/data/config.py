"""Typed configuration: YAML with the sections model, datasets, run and inference.

Every wrong key, type and contradiction of a file is reported at once. Keys that users'
files have and that nothing here needs are accepted with one line that says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model
from pydantic import model_validator as check

from affect.core.config import ConfigError as ConfigError
from affect.core.config import RunSettings, Section, Unset, also, parse, read_yaml, save_yaml
from affect.core.layouts import LAYOUTS, SPELLINGS, Layout
from affect.core.schema import Modality
from affect.features.store import FeatureSpec

FusionType = Literal["qformer", "attention", "mean"]
QuestionKind = Literal[
    "description", "ovlabel", "hybird", "onehot_w_candidates", "onehot_wo_candidates", "sentiment", "valence"
]
"""What is asked of a clip; hybird (as users' files spell it) is description or ovlabel, half and half."""
Sampling = Literal["uniform", "headtail", "emotion_peak"]


def _known_layout(name: str) -> str:
    name = SPELLINGS.get(name, name)
    if name not in LAYOUTS:
        raise ValueError(f"expected one of {', '.join(LAYOUTS)}")
    return name


LayoutName = Annotated[str, AfterValidator(_known_layout)]
Paths = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]

_PROCESSORS = "pictures and text are prepared by the encoder that makes the features"
_SEE_DATASETS = "the data set's section says it"
_LAUNCHER = "torchrun says how many processes there are and where"


class ModelConfig(Section):
    """The network: language model, LoRA, fusion, and the widths of the features it reads."""

    arch: Literal["affectgpt"] = "affectgpt"
    llama_model: str = "Qwen25"
    """Name (see affect/core/weights.py), folder or hub id of a causal language model."""
    ckpt: Annotated[str | None, Unset] = None
    """Checkpoint folder whose weights training starts from (a run's own are resumed by themselves)."""
    max_length: int = Field(1024, gt=0)
    """Most tokens of a prompt, and of an answer."""
    prompt_file: str | None = None
    """YAML or JSON with other prompt wording than affect/data/prompts.yaml."""

    lora_r: int = Field(16, gt=0, le=4096)
    lora_alpha: int = Field(32, gt=0)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    frozen_llm: bool = False
    """True leaves the LoRA weights as they start, too."""
    load_in_4bit: bool = False
    """Keep the frozen base of the language model in 4 bits (needs bitsandbytes and a GPU)."""

    multi_fusion_type: Literal["qformer", "attention"] = "qformer"
    """Pre-fusion; attention reads two streams only (video and sound), qformer reads AU too."""
    video_fusion_type: FusionType = "qformer"
    audio_fusion_type: FusionType = "qformer"
    au_fusion_type: FusionType = "qformer"
    image_fusion_type: Literal["token", "mean"] = "token"
    fuse_au: bool = True
    """False: AU has tokens of its own but no part in the pre-fusion, as in checkpoints of the reference."""
    score_single_picture: bool = False
    """video_fusion_type attention: weight a single picture, too, as checkpoints trained on raw video expect."""
    num_multi_query_token: int = Field(16, gt=0, le=4096)
    num_video_query_token: int = Field(1, gt=0, le=4096)
    num_audio_query_token: int = Field(1, gt=0, le=4096)
    num_au_query_token: int = Field(1, gt=0, le=4096)
    num_image_query_token: int = Field(1, gt=0, le=4096)
    qformer_hidden_size: int = Field(768, gt=0, le=65_536)
    qformer_layers: int = Field(2, gt=0, le=1000)
    qformer_heads: int = Field(12, gt=0, le=65_536)
    qformer_intermediate_size: int = Field(3072, gt=0, le=262_144)

    standardize_features: bool = False
    """Features are standardised by the training set's mean and deviation and clamped at 4."""
    normalize_tokens: bool = False
    """Projected tokens are layer-normed and scaled to the deviation of the language model's embeddings."""

    frozen_multi_Qformer: bool = False
    frozen_video_Qformer: bool = False
    frozen_audio_Qformer: bool = False
    frozen_au_Qformer: bool = False
    frozen_multi_llama_proj: bool = False
    frozen_video_proj: bool = False
    frozen_audio_proj: bool = False
    frozen_au_proj: bool = False

    preextracted_visual_dim: int = Field(768, gt=0, le=65_536)
    preextracted_acoustic_dim: int = Field(1024, gt=0, le=65_536)
    preextracted_au_dim: int = Field(512, gt=0, le=65_536)

    skip_encoders: bool = False
    """True: use_preextracted_features counts as True; switches of single streams count all the same."""
    use_au_agent: bool = False
    """Let a language model write the AU sentences that AU JSON files lack, before training or inference begins."""
    au_agent_base_model: str = "Qwen25"
    au_agent_lora_weights: Annotated[str | None, Unset] = None
    au_agent_device: str = "auto"

    not_needed: ClassVar = {
        "model_type": "the language model's own folder says what it is",
        "ckpt_2": "one checkpoint holds everything",
        **dict.fromkeys(("vis_processor", "text_processor", "img_processor"), _PROCESSORS),
        **dict.fromkeys(("acoustic_encoder", "visual_encoder", "use_preextracted_features"), _SEE_DATASETS),
    }

    @check(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.qformer_hidden_size % self.qformer_heads:
            raise ValueError(f"qformer_hidden_size {self.qformer_hidden_size} is no multiple of qformer_heads")
        return self

    def feature_dim(self, modality: Modality) -> int:
        """Return the width of the features of one modality."""
        if modality == Modality.AUDIO:
            return self.preextracted_acoustic_dim
        return self.preextracted_au_dim if modality == Modality.AU else self.preextracted_visual_dim


class FeatureConfig(Section):
    """Where clips and their features are, and which encoders made them; shared by data sets and inference."""

    frame_n_frms: int = Field(8, gt=0)
    frame_sampling: Sampling = "uniform"
    frame_geometry: Literal["squash", "crop"] | None = None
    """What an encoder saw: whole frames brought to 224 x 224, or what its own preprocessing leaves of them; not given,
    stored features are taken as they are."""
    preextracted_root: str = "./preextracted_features"
    visual_encoder: str = "CLIP_VIT_LARGE"
    acoustic_encoder: str = "HUBERT_LARGE"
    au_encoder: str = "CLIP_VITB32"
    encoder_precision: Literal["float32", "bfloat16", "float16"] | None = None
    """Numbers that encoders compute in on the fly; not given, what the device is quickest in."""
    clips_per_video: int = Field(8, gt=0)
    mer_factory_output: str | None = None
    """Root of the AU JSON files: {root}/{Dataset}/{name}/{name}_au_analysis.json."""
    allow_mismatch: bool = False
    """Take AU JSON that was measured on another number of frames than the video has, where AU is encoded on the fly."""
    use_preextracted_features: bool = True
    """False (unless model.skip_encoders is True): frames, faces and sound are encoded when a clip is asked for."""
    use_preextracted_frame: bool | None = None
    use_preextracted_face: bool | None = None
    use_preextracted_audio: bool | None = None
    """The same for one stream; as use_preextracted_features has it, when not given."""
    use_preextracted_au: bool | None = None
    """False: the sentences of AU JSON files are encoded when a clip is asked for."""
    use_nonverbal_text: bool = False
    """A clip's action units are words of its prompt (its caption) instead of features."""
    nonverbal_json: str | None = None
    """Captions, {data set: {clip: {"caption": text}}}; the sentences of AU JSON files, when not given."""
    data_root: str = "data"
    """Folder that holds the data sets' own folders."""
    video_root: str | None = None
    audio_root: str | None = None
    face_root: str | None = None
    """Raw clips, for encoding on the fly; where the data set keeps them, when not given."""

    negated: ClassVar = {"use_au_clip_realtime": "use_preextracted_au"}

    def spec(self, modality: Modality, dim: int) -> FeatureSpec:
        """Return which features of `modality` this section names."""
        if modality == Modality.AUDIO:
            return FeatureSpec(modality, self.acoustic_encoder, dim, self.clips_per_video)
        if modality == Modality.AU:
            return FeatureSpec(modality, self.au_encoder, dim)
        if modality in (Modality.FACE, Modality.IMAGE):
            return FeatureSpec(modality, self.visual_encoder, dim)
        return FeatureSpec(
            modality, self.visual_encoder, dim, self.frame_n_frms, self.frame_sampling, self.frame_geometry
        )


class DatasetConfig(FeatureConfig):
    """One data set: its table, its features, what is asked of it."""

    face_or_frame: LayoutName = "multiface_audio_face_frame_au_text"
    label_type: QuestionKind = "hybird"
    candidate_labels: list[str] | None = None
    """Labels to choose from where label_type is onehot_w_candidates; the data set's own, when not given."""
    valence_range: tuple[float, float] | None = None
    """Lowest and highest valence, where label_type is valence; the data set's own, when not given."""
    modality_dropout: float = Field(0.0, ge=0, lt=1)
    """Chance that a stream is left out of a training sample, so that the model learns to do without it."""
    ann_paths: Paths = Field(default_factory=list)
    """A known data set's own files of labels, whose folder counts as the data set's; or a table, as csv_path."""
    csv_path: str | None = None
    """Table of clips; where a known data set keeps its own, when not given."""
    csv_column: str = "name"
    subtitle_column: str = "subtitle"
    label_column: str = "openset"
    description_column: str = "reason"
    valence_column: str = "valence"
    split_column: str = "split"
    """A table without this column counts as training and test data alike."""

    aliases: ClassVar = also(ann_paths="eval_file_path")
    not_needed: ClassVar = {"data_type": "every data set is one of clips"}

    @property
    def layout(self) -> Layout:
        """Which streams become tokens: those of face_or_frame, action units only where they are no text."""
        layout = LAYOUTS[self.face_or_frame]
        return layout.without(Modality.AU) if self.use_nonverbal_text else layout

    @property
    def captioned(self) -> bool:
        """Whether prompts show action units as text."""
        return self.use_nonverbal_text and Modality.AU in LAYOUTS[self.face_or_frame].branches

    def live(self, skip_encoders: bool) -> list[Modality]:
        """Return the streams that are encoded when a clip is asked for, in the order of the layout."""
        return [stream for stream in self.layout.needed if not self._is_stored(stream, skip_encoders)]

    def _is_stored(self, stream: Modality, skip_encoders: bool) -> bool:
        own = getattr(self, f"use_preextracted_{stream}", None)
        return (self.use_preextracted_features or skip_encoders or stream not in _MEDIA) if own is None else own

    def over(self, given: Mapping[str, Any]) -> DatasetConfig:
        """Return the section with other settings in it; use_preextracted_features counts before switches of before."""
        before = dict.fromkeys(_SWITCHES) if "use_preextracted_features" in given else {}
        return self.model_copy(update={**before, **given})


class RunConfig(RunSettings):
    """How long, how fast and where to train."""

    iters_per_epoch: int = Field(1000, gt=0)
    """Steps of an epoch."""
    bucket_by_length: bool = False
    """Put clips of like length into one batch, so that less is padding."""
    val_split: str | None = None
    """Split of the tables whose loss is measured after every epoch, e.g. val."""
    check_features: bool = True
    """Read every feature once before training; on a million clips that takes minutes, so it can be left out."""

    passing: ClassVar[Set[str]] = RunSettings.passing | {"check_features", "val_split"}
    not_needed: ClassVar = {
        "task": "the task at the top of the file says it",
        "lr_sched": "run.scheduler says it",
        "evaluate": "inference.py evaluates",
        "train_splits": "the split column of the table says it",
        "batch_size_eval": "inference.batch_size says it",
        **dict.fromkeys(("world_size", "dist_url", "distributed"), _LAUNCHER),
    }

    @check(mode="after")
    def _steps_fit(self) -> RunConfig:
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} is more than the run's {self.total_steps} steps "
                "(max_epoch x iters_per_epoch)"
            )
        watching = "early_stop" if self.early_stop else "scheduler plateau" if self.scheduler == "plateau" else ""
        if watching and self.val_split is None:
            raise ValueError(f"{watching} watches the loss of a validation split; set val_split too, e.g. val")
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.max_epoch * self.iters_per_epoch


_MEDIA = (Modality.FRAME, Modality.FACE, Modality.AUDIO)
"""Streams that use_preextracted_features is about."""
_SWITCHES = [f"use_preextracted_{stream}" for stream in _MEDIA]

Overrides = create_model(
    "Overrides",
    __base__=Section,
    **{name: (field.rebuild_annotation() | None, None) for name, field in FeatureConfig.model_fields.items()},
)
"""The keys of `FeatureConfig`, each of which may be left out."""


class InferenceConfig(Overrides):
    """Which checkpoint answers, how it decodes, where the answers go.

    Keys that data sets have too (layout, encoders, roots) override the data set's when given.
    """

    ckpt_root: Annotated[str | None, Unset] = None
    """Folder of a run, or of many runs (then `ckpt_name` names one)."""
    ckpt_name: Annotated[str | None, Unset] = None
    test_epoch: Annotated[int | None, Unset] = None
    """Epoch of the checkpoint; the last one when not given."""
    test_epochs: Annotated[str | None, Unset] = None
    """Several, as first-last, e.g. 10-30."""
    skip_epoch: int = Field(1, gt=0)
    """Of test_epochs take only those that this number divides."""
    base_root: str = "output/results"
    split: str = "test"
    without: list[Modality] = Field(default_factory=list)
    """Streams to leave out, as if no clip had them: shows what the answers rest on."""
    batch_size: int = Field(8, gt=0, le=1_000_000)
    max_new_tokens: int = Field(256, gt=0)
    do_sample: bool = False
    top_p: float = Field(0.9, gt=0, le=1)
    temperature: float = Field(1.0, gt=0)
    seed: int = 42
    """What do_sample draws from."""
    backend: Literal["hf", "vllm"] = "hf"
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""
    gpu: int | None = Field(None, ge=0)
    """Index of the GPU, as users' files have it; device says the same."""

    face_or_frame: Annotated[LayoutName | None, Unset] = None
    aliases: ClassVar = also(batch_size="batch_size_eval")
    negated: ClassVar = FeatureConfig.negated
    not_needed: ClassVar = {
        "task": "the task at the top of the file says it",
        **dict.fromkeys(("vis_processor", "text_processor", "img_processor"), _PROCESSORS),
    }

    def override(self, dataset: DatasetConfig) -> DatasetConfig:
        """Return the data set's section with what this section sets anew.

        Files that have a switch for faces or sound here and none for frames mean that frames around a peak are
        stored and others are not.
        """
        shared = DatasetConfig.model_fields.keys() & InferenceConfig.model_fields.keys()
        given = {key: getattr(self, key) for key in shared if getattr(self, key) is not None}
        section = dataset.over(given)
        if {"use_preextracted_face", "use_preextracted_audio"} & given.keys() and not (
            {"use_preextracted_frame", "use_preextracted_features"} & given.keys()
        ):
            section.use_preextracted_frame = section.frame_sampling == "emotion_peak"
        return section


class Config(Section):
    """A whole file."""

    task: Literal["affectgpt"] = "affectgpt"
    model: ModelConfig = Field(default_factory=ModelConfig)
    datasets: dict[str, DatasetConfig] = Field(default_factory=dict)
    run: RunConfig = Field(default_factory=RunConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    evaluation_datasets_cfg: dict[str, DatasetConfig] = Field(default_factory=dict)
    """Data sets to answer; what such a section does not say, the one under datasets says."""

    aliases: ClassVar = also(run="run_cfg")
    uncompared: ClassVar[Set[str]] = {"inference", "evaluation_datasets_cfg", "model.skip_encoders"}
    """Sections and keys that may differ when a run goes on."""


def load_config(path: str | Path, options: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` options and return the typed configuration.

    Raises ConfigError with every fault at once: file, key, what was found and expected.
    """
    return parse(Config, read_yaml(path), str(path), options)


def parse_config(content: dict[str, Any], where: str) -> Config:
    """Return the typed configuration of a mapping; `where` names it in errors (raises ConfigError)."""
    return parse(Config, content, where)


def read_config(checkpoint: Path) -> Config:
    """Return the configuration that a checkpoint was trained with (raises ConfigError)."""
    return load_config(checkpoint / "config.yaml")


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration, every default included, as YAML."""
    save_yaml(config.model_dump(mode="json"), path)
