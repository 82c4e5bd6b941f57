"""How the C library treats memory that torch frees on the host."""

import torch

LARGEST_THRESHOLD = 32 * 2**20  # bytes; glibc raises its thresholds up to this size, not further


def keep_freed_memory() -> None:
    """Let the allocator keep freed activations instead of returning them to the kernel after every forward pass.

    glibc maps each large block anew, page by page, until a block of that size has been freed once. Freeing one of
    almost the largest size that it heeds settles the matter for the life of the process. On the CPU this doubles the
    speed of a small network whose activations take a few megabytes; elsewhere it does nothing.
    """
    torch.empty(LARGEST_THRESHOLD - 2**16, dtype=torch.uint8)
