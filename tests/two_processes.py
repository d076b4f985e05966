"""What two processes of `torchrun --nproc-per-node 2` do for tests/engine/test_distributed.py: one run after another.

Arguments: the folder with the configurations ddp.yaml, stopped.yaml, broken.yaml and sharded.yaml.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState

import affect.engine.loop
import affect.engine.trainer
from affect.cli import train
from affect.engine.sharding import sharding_plugin
from affect.models.affectgpt import AffectGPT


def without_dropout(model: AffectGPT, mode: bool = True) -> torch.nn.Module:
    """Keep a model as it is when it answers: dropout differs between processes, and they are to be compared."""
    return torch.nn.Module.train(model, False)


def main(folder: Path) -> None:
    AffectGPT.train = without_dropout
    run(folder / "ddp.yaml")
    step = affect.engine.trainer.training_step

    def stopped_step(*arguments):
        report = step(*arguments)
        if os.environ["RANK"] == "1" and (folder / "stopped").is_dir():
            os.kill(os.getpid(), signal.SIGTERM)  # one of the two only
        return report

    def broken_step(task, model, optimizer, window, *arguments):
        if os.environ["RANK"] == "1":
            for batch in window:
                batch.features = {stream: features * float("nan") for stream, features in batch.features.items()}
        return step(task, model, optimizer, window, *arguments)

    affect.engine.trainer.training_step = stopped_step
    (folder / f"code_{os.environ['RANK']}").write_text(str(run(folder / "stopped.yaml")))
    affect.engine.trainer.training_step = broken_step
    try:
        run(folder / "broken.yaml")
    except FloatingPointError as error:
        (folder / f"error_{os.environ['RANK']}").write_text(str(error))
    affect.engine.trainer.training_step = step
    start = affect.engine.loop.start_accelerator

    def sharded(settings):
        """Accelerate divides weights over GPUs only; the code that does it runs on processors as well."""
        accelerator = start(settings)
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, sharding_plugin()
        return accelerator

    affect.engine.loop.start_accelerator = sharded
    run(folder / "sharded.yaml")


def run(path: Path) -> int:
    AcceleratorState._reset_state()
    return train.main(["--cfg-path", str(path)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
