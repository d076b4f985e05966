"""A whole step of the reference, from its checkpoint file to loss and gradients, through our program."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import Qwen2Config

from affect.cli import convert_checkpoint
from affect.core.layouts import LAYOUTS
from affect.core.schema import Batch, Clip, Modality
from affect.data.collate import Collator
from affect.data.config import read_config
from affect.data.dataset import make_sample, query_tokens
from affect.data.prompts import load_prompts
from affect.models.affectgpt import AffectGPT, build_affectgpt
from affect.models.llm import answer_logits
from affect.models.saved import load_weights
from affect.tasks.reference_checkpoint import FACES, LLM, adapter_to_reference, fusion_to_reference

WEIGHTS = {
    "attention_face": "attention_face",
    "attention_face_frame": "attention_face",
    "qformer_face_frame": "qformer_face_frame",
}
"""Family of cases -> the file that holds its weights."""
FEATURES = {Modality.FACE: "faces", Modality.FRAME: "frames", Modality.AUDIO: "audios"}


@dataclass
class Reference:
    """One family of whole-step goldens and the model that answers it."""

    meta: dict
    arrays: dict[str, np.ndarray]
    model: AffectGPT
    prompt_file: str

    def golden(self, case: dict, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[f"{case['case']}/{name}"])

    def batch(self, case: dict) -> Batch:
        """The batch of a case, made of its clips by our prompts and collator."""
        prompts, tokens = load_prompts(self.prompt_file), query_tokens(self.model.config)
        kind = case["case"].split("_")[1]
        samples = []
        for row, known in enumerate(case["samples"]):
            target = known["target"].removesuffix("###")
            labels = re.sub(r".*emotional state is (.*)\.", r"\1", target).split(", ")
            subtitle = re.search(r"<Subtitle>(.*)</Subtitle>", known["prompt"])[1]
            clip = Clip(known["name"], "toy", subtitle, labels=tuple(labels), description=target)
            names = {s: f"{case['case']}/{name}" for s, name in FEATURES.items()}
            features = {s: self.arrays[name][row] for s, name in names.items() if name in self.arrays}
            answer = prompts.answer(kind, clip)
            samples.append(make_sample(clip, features, self.meta["face_or_frame"], prompts, kind, tokens, answer))
        return Collator(self.model.tokenizer, 1024)(samples)


def save_llm(folder, meta, state, tokenizer) -> None:
    """Write the golden's language model and tokenizer as a Hugging Face folder."""
    base = {key.removeprefix(f"{LLM}base_model.model."): weight for key, weight in state.items() if LLM in key}
    base = {key.replace(".base_layer.", "."): weight for key, weight in base.items() if ".lora_" not in key}
    folder.mkdir()
    save_file(base, folder / "model.safetensors", metadata={"format": "pt"})
    Qwen2Config(**meta["llm_config"]).save_pretrained(folder)
    for path in tokenizer.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def save_prompts(path, shared) -> None:
    """Write the reference's wording as a prompt file of ours."""
    known = json.loads((shared / "goldens/prompts/prompts.json").read_text())
    content = {
        "start": "",
        "streams": {},
        "end": "",
        "answer_end": "###",
        "questions": known["qa"],
        "layouts": known["prompt_template"],
    }
    path.write_text(yaml.safe_dump(content))


def save_config(path, folder, meta) -> None:
    """Write a configuration as a user of the reference has it."""
    fusion, tokens = meta["fusion"], meta["query_tokens"]
    model = {f"{kind}_fusion_type": fusion for kind in ("multi", "video", "audio")}
    model |= {f"num_{kind}_query_token": count for kind, count in tokens.items()}
    model |= {"preextracted_visual_dim": 24, "preextracted_acoustic_dim": 32, "preextracted_au_dim": 512}
    model |= {"qformer_hidden_size": 64, "qformer_heads": 4, "qformer_intermediate_size": 128}
    model |= {"llama_model": str(folder / "llm"), "prompt_file": str(folder / "prompts.yaml")}
    datasets = {"mercaptionplus": {"face_or_frame": meta["face_or_frame"], "use_preextracted_features": True}}
    path.write_text(yaml.safe_dump({"model": model, "datasets": datasets}))


@pytest.fixture(scope="module", params=WEIGHTS)
def reference(request, shared, tmp_path_factory) -> Reference:
    folder, goldens = tmp_path_factory.mktemp(request.param), shared / "goldens/e2e"
    meta = json.loads((goldens / "meta.json").read_text())[request.param]
    weights = np.load(goldens / f"{WEIGHTS[request.param]}.npz")
    state = {key.removeprefix("state/"): torch.from_numpy(weights[key]) for key in weights.files if "state/" in key}
    save_llm(folder / "llm", meta, state, goldens / "nano_tokenizer")
    save_prompts(folder / "prompts.yaml", shared)
    save_config(folder / "users.yaml", folder, meta)
    trained = {key: weight for key, weight in state.items() if LLM not in key or ".lora_" in key}
    source = folder / "checkpoint_000030_loss_0.623.pth"
    torch.save({"model": trained, "optimizer": {}, "config": {}, "scaler": None, "epoch": 30}, source)
    convert_checkpoint.main([str(source), str(folder / "run"), "--cfg-path", str(folder / "users.yaml")])
    checkpoint = folder / "run" / source.stem
    config = read_config(checkpoint)
    model = build_affectgpt(config.model, [LAYOUTS[meta["face_or_frame"]]]).eval()
    load_weights(checkpoint, model)
    arrays = dict(np.load(goldens / f"{request.param}.npz"))
    return Reference(meta, arrays, model, config.model.prompt_file)


def test_batches_are_the_reference_s(reference):
    for case in reference.meta["cases"]:
        batch = reference.batch(case)
        assert torch.equal(batch.input_ids, reference.golden(case, "input_ids")), case["case"]
        assert torch.equal(batch.labels, reference.golden(case, "labels"))
        # the reference masks what equals its padding, so also the token that ends an answer, after which nothing comes
        masked = batch.attention_mask.bool() & (batch.input_ids != reference.model.tokenizer.eos_token_id)
        assert torch.equal(masked, reference.golden(case, "attention_masks"))


def test_fused_tokens_take_the_reference_s_places(reference):
    for case in reference.meta["cases"]:
        with torch.no_grad():
            embeddings = reference.model.embed(reference.batch(case))
        torch.testing.assert_close(embeddings, reference.golden(case, "inputs_embeds"), atol=1e-5, rtol=1e-5)


def test_loss_and_logits_are_the_reference_s(reference):
    for case in reference.meta["cases"]:
        batch = reference.batch(case)
        places = torch.zeros_like(batch.labels, dtype=torch.bool)
        places[tuple(reference.golden(case, "label_positions").T)] = True
        with torch.no_grad():
            embeddings = reference.model.embed(batch)
            where = places.flatten().nonzero().flatten()
            logits = answer_logits(reference.model.llm, embeddings, batch.attention_mask, where)
            torch.testing.assert_close(logits, reference.golden(case, "logits_at_labels"), atol=1e-4, rtol=0)
            loss = reference.model(batch)
            assert loss.item() == pytest.approx(case["loss"], abs=1e-5)


def test_gradient_norms_are_the_reference_s(reference):
    model = reference.model
    for case in reference.meta["cases"]:
        model.zero_grad()
        model(reference.batch(case)).backward()
        grads = {name: weight.grad for name, weight in model.trainable().items()}
        for name in grads:
            if ".stream_marks." in name:  # the reference has none, so they have no part in its positions
                grads[name] = torch.zeros_like(grads[name])
        lora = {name.removeprefix("llm."): grad for name, grad in grads.items() if name.startswith("llm.")}
        adapter = {name.replace(".default.", "."): grad for name, grad in lora.items()}
        fusion = {name: grad for name, grad in grads.items() if not name.startswith("llm.")}
        found = adapter_to_reference(adapter) | fusion_to_reference(fusion, FACES)
        norms = {key: grad.norm().item() for key, grad in found.items()}
        # a key's bias moves every score of a softmax alike: its gradient is rounding
        assert norms == pytest.approx(case["grad_norms"], rel=1e-3, abs=1e-6)
