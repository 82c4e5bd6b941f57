"""Memory on the host: how the C library treats what torch frees, and networks that are built before their weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import Module, Parameter
from torch.nn.modules.module import register_module_parameter_registration_hook

LARGEST_THRESHOLD = 32 * 2**20  # bytes; glibc raises its thresholds up to this size, not further


def keep_freed_memory() -> None:
    """Let the allocator keep freed activations instead of returning them to the kernel after every forward pass.

    glibc maps each large block anew, page by page, until a block of that size has been freed once. Freeing one of
    almost the largest size that it heeds settles the matter for the life of the process. On the CPU this doubles the
    speed of a small network whose activations take a few megabytes; elsewhere it does nothing.
    """
    torch.empty(LARGEST_THRESHOLD - 2**16, dtype=torch.uint8)


@contextmanager
def parameters_elsewhere() -> Iterator[None]:
    """Parameters of modules that are made inside have shapes, but neither values nor memory; buffers are as ever.

    For weights that are then loaded with `assign=True`. Holds for all threads.
    """

    def shape_only(module: Module, name: str, value: Parameter) -> Parameter | None:
        return None if value.is_meta else Parameter(value.to("meta"), value.requires_grad)

    hook = register_module_parameter_registration_hook(shape_only)
    try:
        yield
    finally:
        hook.remove()
