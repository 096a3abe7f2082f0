"""C kernels for operations that torch lacks or computes slowly on CPUs, run on torch's own threads.

The kernels are built at installation if there is a C compiler; otherwise torch computes the same, slower. Each replaces
a bottleneck found by profiling the search and the training (docs/performance.md).
"""

import ctypes
import functools
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

SWITCH = "A2D_NATIVE"
"""Environment variable that disables this package's kernels and layers if it is ``0``."""

SMALL = 2**14
"""Largest number of elements that a single thread processes; larger tensors use all of torch's threads."""

_POINTER, _LONG, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double


_TYPES = (Tensor, torch.nn.Parameter)


class Kernels:
    """Functions of the C library.

    The first argument of each function is the number of elements of the tensors, which determines the number of
    threads. The others are those of the C function after its ``threads``: numbers, and addresses of tensors. A function
    raises MemoryError if memory is short.

    Args:
        library: The built library.
        openmp: The OpenMP library that torch uses.

    Raises:
        AttributeError: If the library is of another release.
    """

    def __init__(self, library: ctypes.CDLL, openmp: ctypes.CDLL) -> None:
        self._library = library
        library.a2d_use_openmp(*[ctypes.cast(f, _POINTER) for f in (openmp.GOMP_parallel, openmp.omp_get_thread_num)])
        self.batch_norm = self._function("batch_norm", _LONG, _LONG, _INT, _DOUBLE, _DOUBLE, *[_POINTER] * 7)
        self.batch_norm_backward = self._function("batch_norm_backward", _LONG, _LONG, _INT, *[_POINTER] * 7)
        self.depthwise_of_weight = self._function("depthwise_of_weight", *[_LONG] * 7, *[_POINTER] * 3)
        self.weighted_sum = self._function("weighted_sum", _LONG, _LONG, *[_POINTER] * 3)
        self.weighted_sum_backward = self._function("weighted_sum_backward", _LONG, _LONG, *[_POINTER] * 5)

    def _function(self, name: str, *arguments: Any) -> Callable[..., None]:
        function = self._library[f"a2d_{name}"]
        function.argtypes = [ctypes.c_uint, *arguments]

        def call(elements: int, *values: Any) -> None:
            if function(torch.get_num_threads() if elements > SMALL else 1, *values):
                raise MemoryError(f"{name} of {elements} elements")

        return call


def addresses(tensors: Sequence[Tensor]) -> Any:
    """Return the addresses of the tensors' data as a C array of ``void *``."""
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def are_plain(*tensors: Tensor) -> bool:
    """Return whether kernels may be used: all tensors are plain CPU tensors, and no operations are being recorded.

    Tracing, compiling, exporting and functorch's transforms record torch's operations. The writes of a C kernel would
    be missing from the record.
    """
    for tensor in tensors:  # called for each layer; a generator would take twice the time
        if type(tensor) not in _TYPES or not tensor.is_cpu:
            return False
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or (torch._C._len_torch_dispatch_stack() > 0 and get_proxy_mode() is not None)
    )


@functools.cache
def kernels() -> Kernels | None:
    """Return the kernels, or None where they cannot be used.

    The library must have been built, torch must use GCC's OpenMP, and :data:`SWITCH` must not be ``0``.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    found = importlib.util.find_spec("a2d_lightning.cpu._kernels")
    openmp = gcc_openmp()
    if found is None or found.origin is None or openmp is None:
        return None
    try:
        return Kernels(ctypes.CDLL(found.origin), openmp)
    except (OSError, AttributeError) as error:
        warnings.warn(
            f"the C kernels of a2d_lightning cannot be used ({error}); reinstall the package. Until then, slower "
            "torch operations compute the same results.",
            stacklevel=2,
        )
        return None


@functools.cache
def gcc_openmp() -> ctypes.PyDLL | None:
    """Return the OpenMP library that torch uses, or None if it is not GCC's."""
    if sys.platform != "linux":
        return None
    try:
        # already loaded; a symbol is also looked up in the libraries that this one depends on
        openmp = ctypes.PyDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        found = openmp.GOMP_parallel_start, openmp.GOMP_parallel_end
    except (OSError, AttributeError):
        return None
    del found
    return None if hasattr(openmp, "kmp_set_blocktime") else openmp  # present in LLVM's and Intel's only
