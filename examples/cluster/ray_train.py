"""Ray: ray job submit -- python examples/cluster/ray_train.py CONFIG

The settings' output_dir, the data and the base are on a file system that all nodes share.
"""

from __future__ import annotations

import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def train(settings: dict[str, str]) -> None:
    """In each process: Ray has told it its place, and has started the group of processes."""
    import offbook

    # Where no run has begun, it starts; so a run that Ray starts again goes on.
    offbook.train(offbook.Config.load(settings["config"]), resume=True, monitor=print)


if __name__ == "__main__":
    TorchTrainer(
        train,
        train_loop_config={"config": sys.argv[1]},
        scaling_config=ScalingConfig(num_workers=16, use_gpu=True),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=3)),
        # Messages go over gloo; Ray alone would start NCCL, which cannot send them.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl"),
    ).fit()
