"""Spread a frozen backbone's layers over the processes of a training run."""

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from spring_rag.errors import TrainingError


def shard_backbone(hf_model: PreTrainedModel) -> None:
    """Split the weights of the backbone's layers over all processes (FSDP); each layer is gathered while it runs.

    Embeddings and head stay whole on every process: virtual tokens start as rows of the embedding table, and logits are computed only
    at the answer's positions. Training itself stays data parallel, since only the matrix learns. Call this function
    in every process, after loading and before training. It starts the process group unless that is running.

    Args:
        hf_model: the backbone, on the CPU or on the process's own device; its layers are changed in place.

    Raises:
        TrainingError: the process isn't one of torchrun or accelerate launch, or the backbone has no list of layers.
    """
    if not distributed.is_torchelastic_launched() and not distributed.is_initialized():
        msg = "sharding a backbone (--shard) needs several processes; start them with torchrun or accelerate launch"
        raise TrainingError(msg)
    cuda = torch.cuda.is_available()
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    mesh = init_device_mesh("cuda" if cuda else "cpu", (distributed.get_world_size(),))
    # The longest module list of a decoder is that of its layers.
    stacks = [module for module in hf_model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        msg = f"{type(hf_model).__name__} has no list of layers that could be sharded"
        raise TrainingError(msg)
    for layer in max(stacks, key=len):
        fully_shard(layer, mesh=mesh)
