"""Memory of a GPU: how torch and ONNX Runtime say that there is not enough, and how what lies idle is given back.

Imports nothing but the standard library, so that whoever only reads messages stays light.
"""

from __future__ import annotations

import gc
import re
import sys

OUT_OF_MEMORY = "gpu_out_of_memory"
"""Code of a run that needs more memory than its GPU has."""

# torch's allocator; the driver's and the runtime's own names; the libraries that both call; ONNX Runtime's allocator.
_LACKS = re.compile(
    r"CUDA out of memory|CUDA (?:error|failure)[^\n]{0,80}out of memory|CUDA_ERROR_OUT_OF_MEMORY|"
    r"cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED|CUSOLVER_STATUS_ALLOC_FAILED|CUSPARSE_STATUS_ALLOC_FAILED|"
    r"CUFFT_ALLOC_FAILED",
    re.IGNORECASE,
)
# ONNX Runtime's arena does not say whose memory it is: that of the provider it works for, which comes first on a GPU.
_ARENA = re.compile(
    r"bfc_arena.{0,200}(?:Failed to allocate memory for requested buffer of size|"
    r"Available memory of \d+ is smaller than requested bytes of)",
    re.IGNORECASE | re.DOTALL,
)


def says_out_of_memory(text: str, *, on_gpu: bool = False) -> bool:
    """Whether a message tells of too little memory on a GPU.

    Args:
        text: What a library said.
        on_gpu: The run uses a GPU, and what does not say whose memory was short is taken to mean the GPU's.

    >>> says_out_of_memory("CUDA error: out of memory")
    True
    >>> says_out_of_memory("std::bad_alloc", on_gpu=True)
    False
    """
    return _LACKS.search(text) is not None or (on_gpu and _ARENA.search(text) is not None)


def is_out_of_memory(error: BaseException, *, on_gpu: bool = False) -> bool:
    """Whether too little memory on a GPU is behind an exception; as `says_out_of_memory`."""
    seen: BaseException | None = error
    while seen is not None:
        if says_out_of_memory(str(seen), on_gpu=on_gpu):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def release() -> None:
    """Give back what torch's allocator keeps for later: ONNX Runtime, in the same process, cannot use it.

    Nothing happens where torch was not imported or has not touched a GPU.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
