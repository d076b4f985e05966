"""What the tests of the AU agent share: faces to describe, and models that have a chat template."""

import shutil

from transformers import AutoTokenizer

from affect.core.au_json import AuAnalysis

FRAMES = [
    {"AU12_r": 1.5},
    {},
    {"AU01_r": 2.77, "AU02_r": 0.89, "AU04_r": 3.27, "AU26_r": 1.54, "AU25_r": 2.0},
    {"AU06_r": 0.84, "AU07_r": 1.8},
    {"AU45_r": 4.0},
]

UNITS = ["AU01_r", "AU02_r", "AU04_r", "AU06_r", "AU07_r", "AU10_r", "AU12_r", "AU25_r"]

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE


def _clip(name: str, *frames: dict[str, float]) -> tuple[AuAnalysis, list[int]]:
    """A clip of frames with these active AUs, and the indices of all of them."""
    described = [{"frame": i, "active_aus": aus} for i, aus in enumerate(frames, 1)]
    return AuAnalysis(source_path=name, per_frame_au_descriptions=described), list(range(len(frames)))


CLIPS = [
    _clip("a.mp4", {}, dict.fromkeys(UNITS[:2], 1.5)),
    _clip("b.mp4", dict.fromkeys(UNITS, 2.25), {}, {"AU12_r": 3.0}),
    _clip("c.mp4", dict.fromkeys(UNITS[:5], 0.9), dict.fromkeys(UNITS[:2], 1.5)),
]
DISTINCT = 5


def with_template(base, folder, template):
    """Copy a model and give its tokenizer a chat template."""
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
