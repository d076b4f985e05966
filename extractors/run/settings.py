"""Everything that decides what a run makes, in plain values that can be sent to other processes and machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from affect.core.schema import STORED_MODALITIES, Modality

STAGES = ("au_json", "au_text", "features")
TEMPLATES = "templates"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the raw material of clips is, what is made of it, how, and to where.

    A folder holds files that are named after the clips. The defaults are those of the extraction command.
    """

    dataset: str
    save_root: Path = Path("preextracted_features")
    video_root: Path | None = None
    audio_root: Path | None = None
    face_root: Path | None = None
    openface_root: Path | None = None
    """OpenFace tables {name}.csv; new ones are put there."""
    openface_executable: str | None = None
    openface_args: tuple[str, ...] = ()
    au_root: Path | None = None
    """AU JSON files (MER-Factory's output folder)."""
    au_backend: str = "openface"
    """What measures the action units of a clip without AU JSON: one of `extractors.au.backends.AU_BACKENDS`."""
    streams: tuple[Modality, ...] = STORED_MODALITIES
    stages: tuple[str, ...] = STAGES
    visual_encoder: str = "CLIP_VIT_LARGE"
    acoustic_encoder: str = "HUBERT_LARGE"
    au_encoder: str = "CLIP_VITB32"
    au_maker: str = TEMPLATES
    au_adapter: str | None = None
    au_agent_backend: str = "hf"
    sampling: str = "uniform"
    frame_count: int = 8
    clips_per_video: int = 8
    face_finder: str = "auto"
    device: str = "cpu"
    dtype: str = "float32"
    """Numbers that features are stored in: float32 or float16."""
    workers: int = 2
    time_limit: float = 60.0
    """Seconds that measuring and decoding one clip may take."""
    progress: bool = True
    """Whether to draw a progress bar."""
    overwrite: bool = False
    retry_failed: bool = False
    """Try clips again that failed before, even where their files have not changed."""

    @property
    def features(self) -> tuple[Modality, ...]:
        """Streams whose features are made."""
        return self.streams if "features" in self.stages else ()

    @property
    def wants_au(self) -> bool:
        """Whether action units are measured or read at all."""
        return Modality.AU in self.features or self.sampling == "emotion_peak" or "features" not in self.stages

    @property
    def measures(self) -> bool:
        """Whether action units are measured where there is no AU JSON."""
        return "au_json" in self.stages

    @property
    def parts(self) -> set[str]:
        """Stages and streams that a clip can fail at."""
        return {"name", *(("au_json", "au_text") if self.wants_au else ()), *map(str, self.features)}

    def encoder_name(self, stream: Modality) -> str:
        """Return the name of the encoder of a stream."""
        return {Modality.AUDIO: self.acoustic_encoder, Modality.AU: self.au_encoder}.get(stream, self.visual_encoder)
