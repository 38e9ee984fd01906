"""How too little memory on a GPU is told from other errors. The messages are those of the libraries' sources."""

from __future__ import annotations

import pytest
import torch

from compression import gpu

TORCH = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 18.00 GiB is "
    "free. Including non-PyTorch memory, this process has 61.10 GiB memory in use."
)
# CUDAAllocator::Alloc, on the first allocation and on each the arena makes.
ALLOCATOR = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_allocator.cc ; line=47 ; expr=cudaMalloc()"
)
ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'conv1' "
    "Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
    "Failed to allocate memory for requested buffer of size 8589934592"
)
FULL_ARENA = (
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:342 void* onnxruntime::BFCArena::AllocateRawInternal"
    "(size_t, bool) Available memory of 1024 is smaller than requested bytes of 4194304"
)


@pytest.mark.parametrize(
    "text",
    [
        TORCH,
        ALLOCATOR,
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cudaErrorMemoryAllocation: out of memory",
        "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
    ],
)
def test_messages_that_name_the_gpu(text):
    assert gpu.says_out_of_memory(text)


@pytest.mark.parametrize("text", [ARENA, FULL_ARENA])
def test_the_arena_is_the_gpus_where_there_is_one(text):
    assert gpu.says_out_of_memory(text, on_gpu=True)
    assert not gpu.says_out_of_memory(text)


@pytest.mark.parametrize(
    "text",
    [
        "std::bad_alloc",
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: can't allocate memory: you tried to",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered\nthe machine ran out of memory",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_other_errors_are_others(text):
    assert not gpu.says_out_of_memory(text, on_gpu=True)


def test_it_is_found_behind_other_errors():
    error = ValueError("the step failed")
    error.__cause__ = RuntimeError("while running")
    error.__cause__.__context__ = torch.OutOfMemoryError(TORCH)
    assert gpu.is_out_of_memory(error)
    assert not gpu.is_out_of_memory(ValueError("the step failed"))


def test_giving_back_does_nothing_without_a_gpu():
    assert torch.cuda.is_initialized() is False or torch.cuda.is_available()
    gpu.release()
