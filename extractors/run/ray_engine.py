"""Extraction on a cluster: a pool of Ray Data actors, each doing blocks of clips as one process would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from extractors.run.driver import extract
from extractors.run.journal import Journal, RunReport, read_states
from extractors.run.session import Session, Settings
from extractors.run.workers import ClipWorkers

CLIPS_PER_BLOCK = 256


class ExtractionActor:
    """One process of the pool: encoders, decode workers and a log of its own, kept from block to block."""

    def __init__(self, settings: Settings) -> None:
        import ray

        writer = f"ray-{ray.get_runtime_context().get_actor_id()[:12]}"
        self._session = Session(settings, writer)
        root = self._session.store.root
        self._journal = Journal(root, writer).__enter__()  # both end with this process
        self._workers = ClipWorkers(settings.workers, settings.time_limit)
        self._earlier = {name: state.failures for name, state in read_states(root).items()}

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Extract the clips of a block; return what was done as one line of JSON."""
        names = [str(name) for name in block["name"]]
        report = extract(self._session, names, self._workers, self._journal, self._earlier)
        done = {"made": report.made, "complete": report.complete, "left_alone": report.left_alone}
        return {"report": [json.dumps({**done, "stopped": report.stopped})]}


def run_on_ray(settings: Settings, names: Sequence[str], actors: int | None = None) -> RunReport:
    """Extract clips on the Ray cluster that this process can reach, or on this machine, into a store that all share.

    actors: size of the pool; by default one for each GPU, or without any as many as the processors allow, less
    one that Ray itself needs. Raises ModuleNotFoundError where ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "engine 'ray' is asked for, but that package is not installed: install it with pip install 'affect[ray]', "
            "or leave --engine out"
        ) from error

    ray.init(ignore_reinit_error=True)
    on_gpu = settings.device.startswith("cuda")
    cluster = ray.cluster_resources()
    # an actor counts its encoder and its decode workers; with every processor taken Ray would wait for ever
    cores = settings.workers + 1
    room = int((cluster.get("CPU", 1) - 1) // cores)
    pool = actors or max(1, min(int(cluster.get("GPU", 0)), room) if on_gpu else room)
    blocks = ray.data.from_items([{"name": name} for name in names]).repartition(
        max(pool, -(-len(names) // CLIPS_PER_BLOCK))
    )
    done = blocks.map_batches(
        ExtractionActor,
        fn_constructor_args=(_with_absolute_paths(settings),),
        batch_size=None,  # a block each: batches of a size would be put together from the blocks of several actors
        concurrency=pool,
        num_cpus=min(cores, max(1, int(cluster.get("CPU", 1)) - 1)),
        num_gpus=1 if on_gpu else 0,
    )
    report = RunReport(len(names))
    for row in done.take_all():
        block = json.loads(row["report"])
        report.made.update(block["made"])
        report.complete += block["complete"]
        report.left_alone += block["left_alone"]
        report.stopped = report.stopped or block["stopped"]
    return report


def _with_absolute_paths(settings: Settings) -> Settings:
    """Return the settings for processes that run in another folder."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return replace(settings, **{key: value.resolve() for key, value in values.items() if isinstance(value, Path)})
