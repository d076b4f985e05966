import os
import socket
import time
from argparse import ArgumentParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

from affect.cli import add_offline
from affect.core import weights
from affect.core.causal_lm import load_tokenizer
from affect.core.weights import resolve_weights, weights_hash, why_offline


def test_environment_comes_before_the_table_and_the_table_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.delenv("AFFECT_CLIP_VIT_LARGE", raising=False)
    assert resolve_weights("CLIP_VIT_LARGE") == "openai/clip-vit-large-patch14"
    table = tmp_path / "weights.yaml"
    table.write_text("CLIP_VIT_LARGE: /from/table\n")
    monkeypatch.setenv("AFFECT_WEIGHTS", str(table))
    assert resolve_weights("CLIP_VIT_LARGE") == "/from/table"
    monkeypatch.setenv("AFFECT_CLIP_VIT_LARGE", "/from/variable")
    assert resolve_weights("CLIP_VIT_LARGE") == "/from/variable"
    assert resolve_weights("some/other-model") == "some/other-model"


def test_a_table_that_is_no_mapping_is_refused(tmp_path, monkeypatch):
    table = tmp_path / "weights.yaml"
    table.write_text("- a\n")
    monkeypatch.setenv("AFFECT_WEIGHTS", str(table))
    with pytest.raises(ValueError, match="expected lines"):
        resolve_weights("x")


def test_hash_follows_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1" * 3_000_000)
    before = weights_hash(tmp_path)
    assert before == weights_hash(tmp_path) != ""
    (tmp_path / "model.safetensors").write_bytes(b"1" * 2_999_999 + b"2")
    assert weights_hash(tmp_path) != before
    assert weights_hash(tmp_path / "absent") == ""


@pytest.fixture
def hub(monkeypatch):
    """A hub that may be asked, at a port of this machine where nobody answers; that port is given."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    weights._why_offline.cache_clear()
    yield port
    weights._why_offline.cache_clear()


def test_a_hub_that_cannot_be_reached_is_one_sentence_and_is_not_asked_again(hub, monkeypatch):
    def retried(seconds):
        raise AssertionError("it was asked again")

    monkeypatch.setattr(time, "sleep", retried)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"the hub {constants.ENDPOINT} cannot be reached: .*refused") as error:
            load_tokenizer("some/model")
        assert "\n" not in str(error.value)
    assert os.environ["HF_HUB_OFFLINE"] == "1" and constants.HF_HUB_OFFLINE


def test_a_hub_that_takes_a_call_and_says_nothing_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(weights, "HUB_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", hub)):
        assert "cannot be reached" in why_offline("some/model")


@pytest.mark.parametrize(("status", "reached"), [(200, True), (404, True), (403, False), (502, False)])
def test_an_answer_of_a_hub_is_one_unless_a_proxy_gives_it(hub, status, reached):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", hub), Handler) as server:
        Thread(target=server.handle_request, daemon=True).start()
        assert (why_offline("some/model") == "") == reached
    assert reached != constants.HF_HUB_OFFLINE


def test_weights_in_a_folder_need_no_hub(hub, tmp_path):
    assert why_offline(tmp_path) == why_offline("/nowhere") == ""
    assert not constants.HF_HUB_OFFLINE


def test_offline_asks_no_hub(hub, monkeypatch):
    monkeypatch.setattr(weights, "_fault_of", lambda _: pytest.fail("the hub was asked"))
    parser = ArgumentParser()
    add_offline(parser)
    parser.parse_args(["--offline"])
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ValueError, match=r"no hub is asked \(--offline, HF_HUB_OFFLINE\)"):
        load_tokenizer("some/model")
