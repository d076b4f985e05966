"""Some real clips and the driver run on them, as the tests of extraction want it."""

from dataclasses import dataclass, replace

from affect.core.schema import Modality
from extractors.encoders import build_encoder
from extractors.run import driver
from extractors.run.journal import read_states
from extractors.run.session import Session, Settings
from extractors.run.workers import ClipWorkers

NAMES = {
    Modality.FRAME: "DCT",
    Modality.FACE: "DCT",
    Modality.AUDIO: "PROSODY",
    Modality.AU: "HASHED_NGRAMS",
}


POOL: list[ClipWorkers] = []
"""The processes of the module that runs."""


def encoder(stream):
    return build_encoder(stream, NAMES[stream])


@dataclass
class Plan:
    """Some clips and what is made of them."""

    names: list[str]
    settings: Settings

    def session(self, **more):
        return Session(self.settings, "0of1", **more)

    @property
    def store(self):
        return self.session().store

    @property
    def specs(self):
        return self.session().specs


def plan(tmp_path, names, sources, streams=tuple(NAMES), **settings):
    encoders = {"visual_encoder": "DCT", "acoustic_encoder": "PROSODY", "au_encoder": "HASHED_NGRAMS"}
    more = {**encoders, "streams": tuple(streams), **settings}
    return Plan(names, replace(sources, save_root=tmp_path / "features", **more))


def run(p, describe, encoders):
    """Run the driver with the processes that the fixture `workers` started."""
    session = p.session(describe=describe, build=lambda stream, *_: encoders(stream))
    return driver.run(session, p.names, POOL[0])


def state(p, name):
    return read_states(p.store.root)[name]


def log_lines(p):
    return (p.store.root / "journal" / "0of1.jsonl").read_text().splitlines()
