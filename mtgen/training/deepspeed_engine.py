"""A DeepSpeed engine around a step, and its complete state, which any ZeRO stage and number of workers can load."""

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtgen.config import Config, value_at
from mtgen.errors import CheckpointError
from mtgen.training.forward_timer import ForwardTimer
from mtgen.training.optimizer import GuardedAdam
from mtgen.utils.import_guards import hide_module

MOMENTS = ("exp_avg", "exp_avg_sq")


def deepspeed_config(config: Config, workers: int) -> dict[str, Any]:
    """DeepSpeed's configuration for `workers` workers; a new one for each engine, since DeepSpeed modifies it."""
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.micro_batches(workers),
        "gradient_clipping": 0.0,  # DeepSpeed's default is 1.0
        "zero_allow_untested_optimizer": True,  # GuardedAdam is a subclass of torch's Adam
        # The guard computes the norm; ZeRO's own check would skip a step before the guard could count it.
        "zero_optimization": {
            "stage": config.zero_stage,
            **({"compute_grad_norm": False} if config.zero_stage else {}),
        },
        "steps_per_print": 2**62,
    }


class Engine:
    """The DeepSpeed engine of one step, the discriminator's or the generator's, with its optimizer.

    Args:
        step: module whose forward takes (micro-batch, tuple of the frozen networks) and returns (loss, log).
        trained: the networks that the step trains; checkpoints use the names of their parameters.
        learning_rate: the first; `set_rates` changes it.
        groups: parameters of `trained` and the factor of their learning rate; default: all, and 1.
    """

    def __init__(
        self,
        config: Config,
        step: nn.Module,
        trained: nn.Module,
        learning_rate: float,
        groups: list[tuple[list[nn.Parameter], float]] | None = None,
    ) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu" if next(trained.parameters()).device.type == "cpu" else "cuda")
        with hide_module("mlflow"):  # importing it takes 2.4 s, for an autotuner that is not used here
            import deepspeed

        deepspeed.utils.logger.setLevel(logging.ERROR)
        # Only inference uses this all-reduce, and compiling it would take half a minute at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.trained = trained
        self.forward_timer = ForwardTimer(next(trained.parameters()).device.type)
        self.optimizer = GuardedAdam(
            [
                {"params": parameters, "lr": learning_rate * factor, "rate_factor": factor}
                for parameters, factor in groups or [(list(trained.parameters()), 1.0)]
            ],
            learning_rate,
            value_at(config.train.beta2, 0, config.train.images),
            partitioned=config.zero_stage > 0,
            scaled=config.precision == "fp16",
            clip=config.train.clip_factor,
        )
        self.engine, *_ = deepspeed.initialize(
            model=step,
            model_parameters=list(trained.parameters()),
            optimizer=self.optimizer,
            config=deepspeed_config(config, dist.get_world_size()),
        )
        self.optimizer.create_state()
        if not self._direct:
            # ZeRO maps parameters to their moments once, after the first step, which the guard may skip.
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def train(self, batch: Any, frozen: Any) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; after the last one of a step, also the optimizer's step."""
        with self.forward_timer.time():
            loss, log = self.engine(batch, frozen)
        self.engine.backward(loss if self.optimizer.loss_scale is None else loss * self.optimizer.loss_scale)
        self.engine.step()
        return log

    def set_rates(self, learning_rate: float, beta2: float) -> None:
        """Set the learning rate, of which each group has its fraction, and the decay of the second moment."""
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = learning_rate * group["rate_factor"], (0.0, beta2)

    @property
    def _direct(self) -> bool:
        """Whether the engine uses our optimizer directly (ZeRO 0); otherwise ZeRO wraps it and partitions its state."""
        return self.engine.optimizer is self.optimizer

    def state(self, keep: bool) -> dict[str, Tensor]:
        """Copies on the CPU of all parameters and their Adam moments, unpartitioned; empty if `keep` is false.

        Collective. Parameters are gathered one at a time, so a worker holds one whole tensor besides its partition.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        tensors: dict[str, Tensor] = {}
        for name, parameter in self.trained.named_parameters():
            if self._direct:
                whole = {"parameter": parameter, **{m: self.optimizer.state[parameter][m] for m in MOMENTS}}
            else:
                whole = {"parameter": safe_get_full_fp32_param(parameter)}
                whole |= {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}
            if keep:
                for kind, tensor in whole.items():
                    tensors[f"{kind}/{name}"] = (
                        tensor.detach().to("cpu", copy=True).reshape(parameter.shape).contiguous()
                    )
        return tensors

    @property
    def steps_taken(self) -> int:
        """Number of steps that Adam has counted."""
        return max(int(state["step"]) for state in self.optimizer.state.values())

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int, counters: dict[str, float]) -> None:
        """Restore what `state`, `steps_taken` and `counters` returned, in any ZeRO stage and on any number of workers.

        Raises:
            CheckpointError: a parameter is missing, unknown, or has another shape: the network was changed.
        """
        self._check(tensors)
        for name, parameter in self.trained.named_parameters():
            whole = {kind: tensors[f"{kind}/{name}"].to(parameter.device) for kind in ("parameter", *MOMENTS)}
            parameter.data.copy_(whole["parameter"])
            if self._direct:
                for moment in MOMENTS:
                    self.optimizer.state[parameter][moment].copy_(whole[moment])
            else:
                from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

                safe_set_full_fp32_param(parameter, whole["parameter"])
                for moment in MOMENTS:
                    safe_set_full_optimizer_state(parameter, whole[moment], moment)
        for state in self.optimizer.state.values():
            state["step"].fill_(steps)
        self.optimizer.load_counters(counters)

    def _check(self, tensors: dict[str, Tensor]) -> None:
        here = {name: tuple(p.shape) for name, p in self.trained.named_parameters()}
        there = {name.partition("/")[2]: tuple(t.shape) for name, t in tensors.items() if name.startswith("parameter/")}
        changed = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if changed:
            first = changed[0]
            readers = [n.split(".")[-4] for n in changed if ".reader.factors." in n and n not in there]
            as_before = " ".join(f"tasks.{task}.use_predictions=false" for task in dict.fromkeys(readers))
            raise CheckpointError(
                f"the network was changed since the checkpoint: {len(changed)} parameters differ, the first is {first} "
                f"({there.get(first, 'absent')} in the checkpoint, {here.get(first, 'absent')} now); "
                "train under another name (train.init_from=RUN loads the parameters that fit), or use the "
                f"configuration in the run's folder{as_before and f', with {as_before}'}"
            )
