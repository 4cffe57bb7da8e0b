"""How a run is spread over processes and made to fit their memory: DDP, FSDP2, batch norm, recomputation, averages.

Stands between ``module`` (the model in training) and ``run`` (the job). One process and many compute the same: the
losses see the global batch, and what a strategy does to parameters changes where they lie, never their values.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any, TypeVar

import timm.layers
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from cloc.config import ConfigError, TrainerConfig
from cloc.engine.process_group import any_process, barrier, broadcast, limit, rank_and_world, timeout
from cloc.models.model import Cloc
from cloc.models.protocols import as_module, blocks, recompute

# Every parameter takes part in every step (losses/objective.py), so DDP need not search for unused ones.
T = TypeVar("T")
DDP_OPTIONS: dict[str, Any] = {"find_unused_parameters": False, "gradient_as_bucket_view": True}


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has spread the model's parameters over the processes."""
    return isinstance(model, FSDPModule)


def build_strategy(options: TrainerConfig) -> str | Strategy:
    """Lightning's strategy for ``trainer.strategy``; where several processes were started, ``auto`` is ``ddp``."""
    if options.strategy == "ddp" or (options.strategy == "auto" and rank_and_world()[1] > 1):
        return Ddp(timeout=timeout(), **DDP_OPTIONS)
    if options.strategy == "fsdp":
        return Fsdp2(rank_and_world()[1])
    return options.strategy


class _Controlled:
    """Decisions and meetings of a strategy by the control group, which waits for no GPU."""

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all processes."""
        barrier()

    def broadcast(self, obj: T, src: int = 0) -> T:
        """An object of one process, in all of them."""
        return broadcast(obj, src)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether it is so in all processes, or in any."""
        return not any_process(not decision)[0] if all else any_process(decision)[0]


class Ddp(_Controlled, DDPStrategy):
    """Lightning's DDP, which asks the control group."""


class Fsdp2(_Controlled, ModelParallelStrategy):
    """Lightning's FSDP2 with ordinary checkpoints: one file, gathered on the first process.

    Any later run reads it, whatever its strategy. Lightning alone numbers the optimizer's states by the order of the
    model's parameters, where every other strategy (and PyTorch) numbers them by their place in the optimizer's groups.

    Args:
        world: number of processes.
    """

    def __init__(self, world: int) -> None:
        super().__init__(
            data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout()
        )

    def setup_environment(self) -> None:
        """Lightning makes groups of its own, which would wait by a clock of their own."""
        super().setup_environment()
        limit(self.device_mesh.get_all_groups())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole state of the optimizer on the first process, empty on the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        named: dict[str, Any] = get_optimizer_state_dict(self._own_model(), optimizer, options=options)
        names = [name for group in named.get("param_groups", []) for name in group["params"]]
        return _renamed(named, {name: number for number, name in enumerate(names)}) if names else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a whole checkpoint and keep this process's shards of it."""
        checkpoint: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
        task: Any = self.lightning_module
        task.adopt(checkpoint)
        model = self._own_model()
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, checkpoint["state_dict"], options=options)
        names = {parameter: name for name, parameter in model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            set_optimizer_state_dict(model, optimizer, _renamed(state, dict(enumerate(own))), options=options)
        return checkpoint

    def _own_model(self) -> nn.Module:
        assert self.model is not None  # Lightning connects it before it asks for anything
        return self.model


def _renamed(state: dict[str, Any], keys: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state dict with other keys of its parameters."""
    groups = [group | {"params": [keys[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {keys[key]: value for key, value in state["state"].items()}, "param_groups": groups}


def prepare(model: Cloc, options: TrainerConfig) -> list[str]:
    """Settle batch norm, recomputation and compilation, before the weights are spread.

    Returns:
        What was done, in words, for the log.

    Raises:
        ConfigError: batch norm would train on each process's own pictures, nothing can be recomputed, or nothing
            compiles here.
    """
    notes = [_settle_batch_norm(model, rank_and_world()[1], options.accumulate)]
    if options.checkpoint_activations:
        notes.append(_checkpoint_activations(model))
    if options.compile:
        notes.append(_compile(model))
    if options.strategy == "fsdp":
        notes.append(_unsharded(model))
    return [note for note in notes if note]


def _compile(model: Cloc) -> str:
    """Compile the towers block by block: blocks of one kind share their code, so a tower compiles as fast as a block.

    Hooks that gather a block's shards (FSDP2) would break the graph of a whole tower. Texts are trimmed, so the shapes
    of their blocks change from step to step; pictures have one shape.
    """
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    if not torch.cuda.is_available() and not any(map(shutil.which, filter(None, compilers))):
        raise ConfigError(
            "trainer.compile=true: without a GPU, torch.compile needs a C++ compiler, and there is no g++, clang++ or "
            "c++ here; install one (Debian: apt-get install g++), or set trainer.compile=false"
        )
    said = []
    # Both towers' blocks may be one piece of code, which is compiled for each kind of mask, with and without gradients.
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    towers = ("image", as_module(model.image), None), ("text", as_module(model.text), True)
    for name, tower, dynamic in towers:
        parts = [part for part in blocks(tower) or [tower] if any(value.requires_grad for value in part.parameters())]
        for part in parts:
            part.compile(dynamic=dynamic)
        kind = "the whole" if parts == [tower] else f"{len(parts)} blocks of the" if parts else "nothing of the frozen"
        said.append(f"{kind} {name} tower")
    return f"compiled: {' and '.join(said)}"


def _settle_batch_norm(model: Cloc, world: int, accumulate: int) -> str:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    trained = [module for module in norms if module.training]
    if not norms:
        return ""
    if not trained:
        return f"batch norm: {len(norms)} layers frozen"
    if accumulate > 1:
        raise ConfigError(
            f"trainer.accumulate={accumulate} with {len(trained)} batch-norm layers that are trained: they would take "
            "the statistics of a micro-batch, and take them twice; freeze the backbone (model.image.tune_last=0), take "
            "one without batch norm, or set trainer.accumulate=1"
        )
    if world == 1:
        return f"batch norm: {len(trained)} layers use the statistics of the batch"
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{len(trained)} batch-norm layers are trained by {world} processes, and PyTorch synchronizes them on GPUs "
            "only; freeze the backbone (model.image.tune_last=0), take one without batch norm, or use one process"
        )
    # timm's conversion keeps the activation that its own layers carry.
    model.image = timm.layers.convert_sync_batchnorm(model.image)
    return f"batch norm: {len(trained)} layers synchronized over {world} processes"


def _checkpoint_activations(model: Cloc) -> str:
    done = recompute(model.image) + recompute(model.text)
    if not done:
        raise ConfigError(
            "trainer.checkpoint_activations=true, but no trained part of either tower can recompute its activations; "
            "set it to false"
        )
    return f"activations recomputed in {', '.join(done)}"


def _unsharded(model: Cloc) -> str:
    whole = [name for name, tower in (("image", model.image), ("text", model.text)) if not blocks(tower)]
    return f"sharded as a whole, without blocks of its own: the {' and the '.join(whole)} tower" if whole else ""


def shard(model: Cloc, mesh: DeviceMesh) -> None:
    """FSDP2: shard every block, then what remains.

    Frozen parameters stay whole in each process. They have no gradient and no optimizer state; and a frozen tower that
    remembers what it has seen runs at different times in different processes, where gathering shards would hang.
    """
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    for parameter in set(model.parameters()) - frozen:
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no channels-last weights
    for block in (block for part in model.children() for block in blocks(part)):
        if any(parameter.requires_grad for parameter in block.parameters()):
            fully_shard(block, mesh=mesh, ignored_params=frozen)
    # The rest stays gathered from forward to backward: the Prompter is asked by methods other than forward.
    fully_shard(model, mesh=mesh, ignored_params=frozen, reshard_after_forward=False)
