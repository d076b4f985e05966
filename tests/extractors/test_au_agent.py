"""The LLM makers: prompts, batching, adapters, refusals; on a tiny random model, with a stand-in for vLLM."""

import shutil
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from affect.au_json import AuAnalysis, sentences
from affect.conversation import SYSTEM, question_ids
from extractors.au_agent import AuAgent, build_agent
from extractors.au_text import frame_prompt

FRAMES = [
    {"AU12_r": 1.5},
    {},
    {"AU01_r": 2.77, "AU02_r": 0.89, "AU04_r": 3.27, "AU26_r": 1.54, "AU25_r": 2.0},
    {"AU06_r": 0.84, "AU07_r": 1.8},
    {"AU45_r": 4.0},
]

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE


def _with_template(base, folder, template):
    """Copy a model and give its tokenizer a chat template."""
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain_llm(tiny_llm, tmp_path_factory):
    """Folder of a tiny language model without a chat template, whose weights are large enough to heed the prompt."""
    folder = tmp_path_factory.mktemp("plain") / "llm"
    shutil.copytree(tiny_llm, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(2)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_llm(plain_llm, tmp_path_factory):
    """The same model with a chat template."""
    return _with_template(plain_llm, tmp_path_factory.mktemp("chat") / "llm", TEMPLATE)


@pytest.fixture(scope="module")
def adapter(chat_llm, tmp_path_factory):
    """Folder of a tiny random LoRA adapter."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(chat_llm), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("templated", [True, False], ids=["template", "plain"])
def test_batched_answers_equal_those_one_at_a_time(plain_llm, chat_llm, templated):
    model = chat_llm if templated else plain_llm
    together = AuAgent(model, batch_size=4, max_new_tokens=12).describe(FRAMES)
    alone = AuAgent(model, batch_size=1, max_new_tokens=12)
    assert together == [pair for frame in FRAMES for pair in alone.describe([frame])]
    assert len({answer for _, answer in together}) == len(FRAMES)


def test_answer_alone_is_the_tail_of_the_exchange(chat_llm):
    for frame, (whole, answer) in zip(FRAMES, AuAgent(chat_llm, max_new_tokens=8).describe(FRAMES), strict=True):
        assert answer and whole == f"system\n{SYSTEM}\nuser\n{frame_prompt(frame)}\nassistant\n{answer}"


def test_adapter_changes_the_answers_and_is_named(chat_llm, adapter):
    plain, tuned = AuAgent(chat_llm, max_new_tokens=8), AuAgent(chat_llm, adapter, max_new_tokens=8)
    assert plain.describe(FRAMES) != tuned.describe(FRAMES)
    assert str(adapter) in tuned.made_by and str(adapter) not in plain.made_by
    assert tuned.describe(FRAMES) == AuAgent(chat_llm, adapter, batch_size=2, max_new_tokens=8).describe(FRAMES)


def test_chat_template_shapes_the_prompt(chat_llm, plain_llm, monkeypatch):
    def prompt_of(model):
        agent, seen = AuAgent(model, max_new_tokens=1), []
        monkeypatch.setattr(agent.model, "generate", lambda input_ids, **_: seen.append(input_ids) or input_ids)
        agent.describe([{"AU12_r": 1.5}])
        return agent.tokenizer.decode(seen[0][0])

    user = frame_prompt({"AU12_r": 1.5})
    chat = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(chat_llm) == chat
    assert prompt_of(plain_llm) == f"system\n{SYSTEM}\nuser\n{user}\nassistant\n"


def test_template_and_tokenizer_do_not_both_open_the_text(chat_llm, plain_llm, monkeypatch):
    opening = TemplateProcessing(single="<|im_end|> $A", special_tokens=[("<|im_end|>", 2)])
    for model, openings in ((chat_llm, 0), (plain_llm, 1)):
        agent, seen = AuAgent(model, max_new_tokens=1), []
        agent.tokenizer.backend_tokenizer.post_processor = opening
        monkeypatch.setattr(
            agent.model, "generate", lambda input_ids, seen=seen, **_: seen.append(input_ids) or input_ids
        )
        agent.describe([{"AU12_r": 1.5}])
        assert seen[0][0].tolist()[:1].count(2) == openings


def test_template_that_knows_no_system_turn_gets_the_rules_from_the_user(plain_llm, tmp_path, monkeypatch):
    agent, seen = AuAgent(_with_template(plain_llm, tmp_path / "llm", NO_SYSTEM), max_new_tokens=1), []
    monkeypatch.setattr(agent.model, "generate", lambda input_ids, **_: seen.append(input_ids) or input_ids)
    agent.describe([{}])
    text = agent.tokenizer.decode(seen[0][0])
    assert text == f"<|im_start|>user\n{SYSTEM}\n{frame_prompt({})}<|im_end|>\n<|im_start|>assistant\n"


def test_rules_forbid_emotion():
    assert "Do not name" in SYSTEM and "emotion" in SYSTEM


def test_turns_that_the_model_makes_up_are_dropped(chat_llm, monkeypatch):
    agent = AuAgent(chat_llm, max_new_tokens=4)
    said = agent.tokenizer("The lips part.\nuser\nMore?\nassistant\nNo.", return_tensors="pt")["input_ids"]
    monkeypatch.setattr(agent.model, "generate", lambda input_ids, **_: torch.cat([input_ids, said], dim=1))
    ((whole, answer),) = agent.describe([{"AU25_r": 1.0}])
    assert answer == "The lips part." and whole.endswith("\nassistant\nThe lips part.")


def test_models_own_settings_count_for_sampling_only(plain_llm, tmp_path):
    folder = tmp_path / "llm"
    shutil.copytree(plain_llm, folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    others = [i for i in range(model.config.vocab_size) if i != tokenizer.convert_tokens_to_ids("e")]
    model.generation_config.update(do_sample=True, suppress_tokens=others)
    model.save_pretrained(folder)
    greedy = AuAgent(folder, max_new_tokens=8).describe(FRAMES)
    assert greedy == AuAgent(plain_llm, max_new_tokens=8).describe(FRAMES)
    ((_, sampled),) = AuAgent(folder, max_new_tokens=8, do_sample=True).describe(FRAMES[:1])
    assert sampled == "e" * 8


def test_sampling_varies_and_follows_the_seed(plain_llm):
    agent = AuAgent(plain_llm, max_new_tokens=8, do_sample=True)
    torch.manual_seed(0)
    first = [agent.describe(FRAMES[:1]) for _ in range(4)]
    torch.manual_seed(0)
    assert first == [agent.describe(FRAMES[:1]) for _ in range(4)]
    assert any(answer != first[0] for answer in first)


def test_answers_stop_at_the_end_token_and_at_the_limit(chat_llm):
    agent = AuAgent(chat_llm, max_new_tokens=6)
    inputs = agent.tokenizer("The lips part.", return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    made = agent.model.generate(input_ids=ids, attention_mask=mask)[0, ids.shape[1] :]
    assert len(made) == 6
    agent.model.generation_config.eos_token_id = [int(made[1])]
    assert len(agent.model.generate(input_ids=ids, attention_mask=mask)[0]) == ids.shape[1] + 2


def test_end_tokens_of_model_and_tokenizer_both_count(chat_llm, tmp_path):
    folder = tmp_path / "llm"
    shutil.copytree(chat_llm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    stops = AuAgent(folder).model.generation_config.eos_token_id
    assert stops == [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_agent_fills_an_analysis_as_the_templates_do(chat_llm):
    clip = AuAnalysis(
        per_frame_au_descriptions=[{"frame": i + 1, "active_aus": aus} for i, aus in enumerate(FRAMES)],
        au_info={"total_frames": 5, "frames_without_face": [[2, 2]]},
    )
    agent = AuAgent(chat_llm, max_new_tokens=6)
    told = agent.describe_clip(clip, [0, 1, 2])
    assert list(told.summary_description) == ["1", "3"] and len(sentences(told)) == 2
    assert told.per_frame_au_descriptions[2]["fine_grained_description"].endswith(told.summary_description["3"])
    assert told.provenance["sentences"] == agent.made_by


def test_no_frames_need_no_answers(chat_llm):
    assert AuAgent(chat_llm).describe([]) == []


def test_name_of_weights_is_looked_up(chat_llm, monkeypatch):
    monkeypatch.setenv("AFFECT_AU_AGENT", str(chat_llm))
    assert AuAgent("AU_AGENT", max_new_tokens=4).describe(FRAMES[:1])


def test_missing_folders_are_named(chat_llm, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the model folder .*gone does not exist"):
        AuAgent(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"the adapter folder .*gone does not exist"):
        AuAgent(chat_llm, tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="the model folder gone/away/too"):
        AuAgent("./gone/away/too")


def test_folders_that_hold_something_else_are_refused_in_one_sentence(chat_llm, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(chat_llm, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    for model, adapter in ((tmp_path / "empty", None), (cut, None), (chat_llm, tmp_path / "empty")):
        with pytest.raises(ValueError, match="cannot be loaded") as caught:
            AuAgent(model, adapter)
        assert "\n" not in str(caught.value) and str(adapter or model) in str(caught.value)


def test_hub_id_that_cannot_be_fetched_is_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="nobody/no-such-model cannot be loaded"):
        AuAgent("nobody/no-such-model")


def test_sizes_below_one_are_refused(chat_llm):
    with pytest.raises(ValueError, match="batch_size is 0"):
        AuAgent(chat_llm, batch_size=0)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        AuAgent(chat_llm, max_new_tokens=0)


def test_a_padding_token_that_the_model_does_not_know_is_not_needed(tiny_llm, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<|beyond the embedding|>"})
    tokenizer.save_pretrained(folder)
    made = AuAgent(folder, max_new_tokens=4).describe([{"AU12_r": 2.0}, {"AU04_r": 3.0, "AU12_r": 1.0}])
    assert len(made) == 2


# -- many clips ------------------------------------------------------------------------------------

UNITS = ["AU01_r", "AU02_r", "AU04_r", "AU06_r", "AU07_r", "AU10_r", "AU12_r", "AU25_r"]


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


def _count_generated(agent, monkeypatch) -> list[tuple[int, int]]:
    """Return a list that collects the shape of every batch from here on."""
    shapes, generate = [], agent.model.generate

    def counting(input_ids, **rest):
        shapes.append(tuple(input_ids.shape))
        return generate(input_ids=input_ids, **rest)

    monkeypatch.setattr(agent.model, "generate", counting)
    return shapes


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_clips_together_get_what_each_gets_alone(chat_llm, batch_size):
    together = AuAgent(chat_llm, batch_size=batch_size, max_new_tokens=10).describe_clips(CLIPS)
    assert together == [AuAgent(chat_llm, max_new_tokens=10).describe_clip(*clip) for clip in CLIPS]
    assert [told.source_path for told in together] == ["a.mp4", "b.mp4", "c.mp4"]
    assert len({text for told in together for text in sentences(told)}) == DISTINCT


def test_equal_prompts_are_asked_once_and_the_longest_first(chat_llm, monkeypatch):
    agent = AuAgent(chat_llm, batch_size=2, max_new_tokens=2)
    shapes = _count_generated(agent, monkeypatch)
    agent.describe_clips(CLIPS)
    assert [rows for rows, _ in shapes] == [2, 2, 1]
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1] + 50


def test_sampling_asks_for_every_frame_anew(chat_llm, monkeypatch):
    agent = AuAgent(chat_llm, max_new_tokens=8, do_sample=True)
    shapes = _count_generated(agent, monkeypatch)
    frames = [{"AU12_r": 2.0}, {}, {"AU12_r": 2.0}]
    first, _, third = agent.describe(frames)
    assert sum(rows for rows, _ in shapes) == 3 and first != third
    assert ["AU12: 2.00" in whole for whole, _ in agent.describe(frames)] == [True, False, True]


def test_clips_tried_again_one_by_one_cost_nothing_new(chat_llm, monkeypatch):
    agent, asked = AuAgent(chat_llm, max_new_tokens=4), Counter()
    empty = question_ids(agent.tokenizer, [(SYSTEM, frame_prompt({"AU12_r": 3.0}))])[0]

    def generate(prompts):
        for ids in prompts:
            asked[tuple(ids)] += 1
            yield "" if ids == empty else "The lips part."

    monkeypatch.setattr(agent, "_generate", generate)
    with pytest.raises(ValueError, match=r"^b\.mp4: language model .* gave an empty sentence for frame 3"):
        agent.describe_clips(CLIPS)
    assert [sentences(agent.describe_clip(*CLIPS[i])) for i in (0, 2)] == [["The lips part."] * 2] * 2
    with pytest.raises(ValueError, match=r"^b\.mp4"):
        agent.describe_clip(*CLIPS[1])
    assert len(asked) == DISTINCT and set(asked.values()) == {1}


def test_answers_of_earlier_calls_are_forgotten(chat_llm, monkeypatch):
    agent = AuAgent(chat_llm, max_new_tokens=2)
    shapes = _count_generated(agent, monkeypatch)
    for clip in (CLIPS[0], CLIPS[1], CLIPS[0]):
        agent.describe_clip(*clip)
    assert [rows for rows, _ in shapes] == [2, 2, 1]  # the face at rest is in both clips


def test_answers_that_end_early_are_not_filled_up(plain_llm, tmp_path, monkeypatch):
    folder = tmp_path / "llm"
    shutil.copytree(plain_llm, folder)
    free, rows = AuAgent(plain_llm, max_new_tokens=16), []
    generate = free.model.generate
    monkeypatch.setattr(free.model, "generate", lambda **given: rows.append(generate(**given)) or rows[0])
    endless = free.describe(FRAMES)
    made = [set(row[3:8]) for row in rows[0][:, -16:].tolist()]
    # a stop that is an ordinary token, and that some answers reach early and others do not
    stop = next(
        token for token in sorted(set.union(*made), reverse=True) if 0 < sum(token in row for row in made) < len(made)
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = stop
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    together = AuAgent(folder, max_new_tokens=16).describe(FRAMES)
    alone = AuAgent(folder, batch_size=1, max_new_tokens=16)
    assert together == [alone.describe([frame])[0] for frame in FRAMES]
    cut = [full.startswith(answer) and full != answer for (_, answer), (_, full) in zip(together, endless, strict=True)]
    assert any(cut) and not all(cut)


def test_clips_after_clips_need_one_load(chat_llm, monkeypatch):
    loads, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **rest: loads.append(args) or load(*args, **rest)
    )
    agent = build_agent(chat_llm, max_new_tokens=2)
    for clip in CLIPS:
        agent.describe_clips([clip])
    assert len(loads) == 1


# -- backends --------------------------------------------------------------------------------------


@pytest.fixture
def vllm(monkeypatch):
    """A stand-in for the module that answers with the same weights through transformers; it keeps what it was given."""
    given = SimpleNamespace(engine=None, calls=[])

    class LLM:
        def __init__(self, model, **engine):
            given.engine = engine
            self.tokenizer = AutoTokenizer.from_pretrained(model)
            self.model = AutoModelForCausalLM.from_pretrained(model)

        def get_default_sampling_params(self):
            return SimpleNamespace(temperature=0.7, max_tokens=16)

        def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
            given.calls.append((prompts, sampling_params, lora_request))
            return [SimpleNamespace(outputs=[SimpleNamespace(text=self.answer(p, sampling_params))]) for p in prompts]

        def answer(self, prompt, sampling):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            made = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=sampling.max_tokens
            )
            return self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

    module, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams = LLM, SimpleNamespace
    request.LoRARequest = lambda name, number, path: (name, number, path)
    for part in (module, lora, request):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    monkeypatch.delitem(sys.modules, "extractors.au_agent_vllm", raising=False)
    yield given
    sys.modules.pop("extractors.au_agent_vllm", None)  # it has the stand-in inside


def test_backends_ask_and_answer_alike(chat_llm, vllm):
    agent = build_agent(chat_llm, device="cuda", backend="vllm", max_new_tokens=10)
    assert agent.describe_clips(CLIPS) == build_agent(chat_llm, max_new_tokens=10).describe_clips(CLIPS)
    ((prompts, sampling, lora),) = vllm.calls
    assert len(prompts) == DISTINCT and lora is None and vllm.engine == {}
    assert (sampling.temperature, sampling.max_tokens) == (0.0, 10)


def test_adapter_reaches_vllm_with_room_for_its_rank(chat_llm, vllm, tmp_path):
    config = LoraConfig(r=4, rank_pattern={"q_proj": 20}, target_modules="all-linear")
    get_peft_model(AutoModelForCausalLM.from_pretrained(chat_llm), config).save_pretrained(tmp_path)
    agent = build_agent(chat_llm, tmp_path, "cuda:0", "vllm", gpu_memory_utilization=0.5, max_new_tokens=2)
    agent.describe(FRAMES)
    assert vllm.engine == {"enable_lora": True, "max_lora_rank": 32, "gpu_memory_utilization": 0.5}
    assert vllm.calls[0][2] == ("au_agent", 1, str(tmp_path))
    assert str(tmp_path) in agent.made_by


def test_sampling_on_vllm_follows_the_models_own_settings(chat_llm, vllm):
    build_agent(chat_llm, device="cuda", backend="vllm", max_new_tokens=3, do_sample=True).describe([{}, {}])
    ((prompts, sampling, _),) = vllm.calls
    assert len(prompts) == 2 and (sampling.temperature, sampling.max_tokens) == (0.7, 3)


def test_vllm_is_refused_what_it_cannot_do(chat_llm, vllm, tmp_path):
    for device in ("cpu", "cuda:1"):
        with pytest.raises(ValueError, match=f"device is '{device}', but vllm takes the first GPU"):
            build_agent(chat_llm, device=device, backend="vllm")
    with pytest.raises(FileNotFoundError, match=r"the model folder .*gone does not exist"):
        build_agent(tmp_path / "gone", device="cuda", backend="vllm")
    with pytest.raises(ValueError, match=r"with adapter .* cannot be loaded"):
        build_agent(chat_llm, tmp_path, "cuda", "vllm")


def test_absence_of_vllm_is_said_in_one_sentence(chat_llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "extractors.au_agent_vllm", raising=False)
    with pytest.raises(
        ImportError, match=r"^AU agent: backend vllm needs .* install affect\[vllm\], or use backend hf$"
    ):
        build_agent(chat_llm, device="cuda", backend="vllm")


def test_unknown_backend_is_refused(chat_llm):
    with pytest.raises(ValueError, match="backend 'tgi' is unknown: expected hf or vllm"):
        build_agent(chat_llm, backend="tgi")
