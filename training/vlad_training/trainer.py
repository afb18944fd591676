"""The training loop."""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlad_configs.errors import ConfigError
from vlad_configs.training import TrainConfig
from vlad_engines.model.pi0 import Pi0
from vlad_engines.processing.normalization import NormStats
from vlad_training.distributed import Processes
from vlad_training.draws import draws_ahead
from vlad_training.errors import TrainingError
from vlad_training.flow_matching import FlowMatchingLoss
from vlad_training.frames import Frames
from vlad_training.initial_weights import openpi_weights
from vlad_training.layer_checkpointing import checkpoint_layers
from vlad_training.loading import StepSampler, batches
from vlad_training.optimizer import MovingAverage, learning_rate, make_optimizer
from vlad_training.policy_files import write_policy
from vlad_training.prepared_frames import PreparedFrames
from vlad_training.progress import Progress
from vlad_training.run_directory import RunDirectory

logger = logging.getLogger("vlad.training")


@dataclasses.dataclass(frozen=True)
class Materials:
    """What a run is made from, beside its configuration.

    Attributes:
        model: from `initial_weights.trainable_network`, on the device.
        frames: of the dataset.
        norm_stats, tokenizer: go into every checkpoint.
    """

    model: Pi0
    frames: Frames | PreparedFrames
    norm_stats: NormStats
    tokenizer: pathlib.Path


class Trainer:
    """Trains from the newest checkpoint of a run, or from the beginning, to the last step.

    Raises:
        ConfigError: for a batch that the processes cannot share, or a dataset that is smaller than it.
    """

    def __init__(
        self, config: TrainConfig, materials: Materials, run: RunDirectory, group: Processes
    ) -> None:
        if config.batch_size % group.world_size:
            raise ConfigError(
                f"batch_size {config.batch_size} is no multiple of {group.world_size} processes"
            )
        self._config, self._materials, self._run, self._group = config, materials, run, group
        model = materials.model
        self._cameras = materials.frames.cameras
        self._parameters = dict(model.named_parameters())
        trained = [parameter for parameter in self._parameters.values() if parameter.requires_grad]
        self._trained = trained
        self._optimizer = make_optimizer(trained, config)
        self._average = None
        if config.ema_decay is not None:
            self._average = MovingAverage(self._parameters, config.ema_decay)
        self._first_step = self._restore()
        loss = FlowMatchingLoss(model, config, self._cameras)
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        self._loss: nn.Module = loss
        if group.world_size > 1:
            on_gpu = group.device.type == "cuda"
            self._loss = DistributedDataParallel(
                loss, device_ids=[group.device] if on_gpu else None, gradient_as_bucket_view=True
            )

    def train(self, workers: int) -> None:
        """Run all steps that are left.

        Args:
            workers: processes that prepare batches; 0 prepares them here.

        Raises:
            TrainingError: where the loss is no number.
        """
        config, group = self._config, self._group
        steps = range(self._first_step, config.num_steps)
        sampler = StepSampler(
            len(self._materials.frames), config.batch_size, config.seed, steps, group.rank, group.world_size
        )
        on_gpu = group.device.type == "cuda"
        feed = batches(self._materials.frames, sampler, workers, pinned=on_gpu)
        drawn = draws_ahead(config, steps, len(self._cameras), group.rank, group.world_size, pinned=on_gpu)
        with Progress(self._run.path, self._first_step, config.num_steps, silent=not group.is_first) as bar:
            started, timed = time.perf_counter(), self._first_step
            for step, batch, draws in zip(steps, feed, drawn, strict=True):
                rate = learning_rate(config.learning_rate, step)
                loss = self._loss(batch.to(group.device), draws.to(group.device), self._pruning_noise(step))
                norm = self._update(loss, rate)
                bar.advance()
                if step % config.log_every == 0 or step + 1 == config.num_steps:
                    value = group.mean(loss.detach()).item()
                    if not math.isfinite(value):
                        raise TrainingError(f"the loss of step {step} is {value}; lower the learning rate")
                    now = time.perf_counter()
                    speed = (step + 1 - timed) / (now - started)
                    started, timed = now, step + 1
                    numbers = {"loss": value, "learning_rate": rate, "gradient_norm": norm.item()}
                    bar.log(step, {**numbers, "steps_per_s": speed})
                if (step + 1) % config.save_every == 0 or step + 1 == config.num_steps:
                    self._save(step + 1)

    def _update(self, loss: Tensor, rate: float) -> Tensor:
        """One step of the optimizer; returns the gradient's norm before clipping."""
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self._trained, self._config.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        if self._average is not None:
            self._average.update(self._parameters)
        return norm

    def _pruning_noise(self, step: int) -> float:
        pruning = self._config.pruning
        if pruning is None:
            return 0.0
        return pruning.noise * (1.0 - step / max(1, self._config.num_steps - 1))

    def _save(self, step: int) -> None:
        if self._group.is_first:
            served = self._parameters if self._average is None else self._average.values
            weights = openpi_weights(self._materials.model, served)
            state: dict[str, Any] = {
                "step": step,
                "parameters": {name: parameter.detach() for name, parameter in self._parameters.items()},
                "optimizer": self._optimizer.state_dict(),
                "average": None if self._average is None else self._average.values,
            }
            self._run.save(
                step,
                lambda path: write_policy(
                    path, self._config, weights, self._materials.norm_stats, self._materials.tokenizer
                ),
                state,
            )
        self._group.barrier()

    def _restore(self) -> int:
        state = self._run.last_state(self._group.device)
        if state is None:
            return 0
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state["parameters"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.values = state["average"]
        step = int(state["step"])
        if self._group.is_first:
            self._run.cut_metrics(step)
            logger.info("continuing %s from step %d", self._run.path, step)
        return step
