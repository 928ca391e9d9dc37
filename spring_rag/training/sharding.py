"""A frozen backbone whose layers are spread over the processes of a training run."""

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from spring_rag.errors import TrainingError


def shard_backbone(hf_model: PreTrainedModel) -> None:
    """Split the weights of the backbone's layers over all processes (FSDP); each layer is gathered while it runs.

    Embeddings and head stay whole on every process: virtual tokens start as rows of the one, and logits are computed at the
    answer's positions only. Training itself stays data parallel, for the matrix is the only thing that learns. Call it
    in every process, after loading and before training; the process group is started if it isn't yet.

    Args:
        hf_model: on the CPU or on the process's own device; its layers are changed in place.

    Raises:
        TrainingError: not in a process of torchrun or accelerate launch, or a backbone without a list of layers.
    """
    if not distributed.is_torchelastic_launched() and not distributed.is_initialized():
        msg = "sharding a backbone (--shard) needs several processes; start them with torchrun or accelerate launch"
        raise TrainingError(msg)
    cuda = torch.cuda.is_available()
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    mesh = init_device_mesh("cuda" if cuda else "cpu", (distributed.get_world_size(),))
    # The list of its layers is the longest one that a decoder has.
    stacks = [module for module in hf_model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        msg = f"{type(hf_model).__name__} has no list of layers that could be sharded"
        raise TrainingError(msg)
    for layer in max(stacks, key=len):
        fully_shard(layer, mesh=mesh)
