"""The kernels in C are there, and give the same bits on any number of threads."""

import ctypes
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from a2d_lightning.cpu.accelerate import accelerate
from a2d_lightning.cpu.fused_batch_norm import FusedSequential
from a2d_lightning.cpu.kernels import Kernels, kernels
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet

CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_they_were_built() -> None:
    # other tests would compare torch with itself; a C compiler is needed where the package is installed for development
    assert kernels() is not None


def gradients_of_a_supernet() -> list[Tensor]:
    torch.manual_seed(0)
    # 16 channels of 21 x 21 for 8 frames: 56,448 elements, more than one thread's share
    supernet = accelerate(Supernet(Plan((1, 1), (16, 24)), (4, 42, 42))).to(**CHANNELS_LAST)
    supernet(torch.rand(8, 4, 42, 42).to(memory_format=torch.channels_last)).square().sum().backward()
    return [p.grad for p in supernet.parameters() if p.grad is not None]


@pytest.mark.usefixtures("threads")
def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    x = torch.randn(8, 24, 40, 30).to(memory_format=torch.channels_last)
    layer = FusedSequential(torch.nn.BatchNorm2d(24), torch.nn.ReLU())
    parameters: list[Any] = list(layer.parameters())
    found = []
    for number in (1, 2, 3, 20):  # 20 is more than there are shares of the work
        torch.set_num_threads(number)
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        out = layer(leaf)
        out.square().sum().backward()
        found.append([out, leaf.grad, *[p.grad.clone() for p in parameters]])
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_a_thread_does_the_work_of_those_that_do_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # OpenMP may give fewer threads than it is asked for; here the second of those asked for comes, and no other
    spec = importlib.util.find_spec("a2d_lightning.cpu._kernels")
    assert spec is not None
    assert spec.origin is not None
    library = str(shutil.copy(spec.origin, tmp_path))  # loaded a second time, since a library keeps its OpenMP
    parallel = ctypes.CFUNCTYPE(
        None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    )
    calls = []

    def come_alone(function: Callable[[int], None], data: int, threads: int, flags: int) -> None:
        calls.append(threads)
        function(data)

    second = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
    openmp: Any = SimpleNamespace(GOMP_parallel=parallel(come_alone), omp_get_thread_num=second)
    alone = Kernels(ctypes.CDLL(library), openmp)
    monkeypatch.setattr("a2d_lightning.cpu.fused_batch_norm.kernels", lambda: alone)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    x = torch.randn(8, 24, 40, 30).to(memory_format=torch.channels_last)
    found = FusedSequential(torch.nn.BatchNorm2d(24))(x)
    assert calls == [3, 3]  # for the statistics, and for what comes out
    assert torch.allclose(found, torch.nn.BatchNorm2d(24)(x), atol=1e-5)


@pytest.mark.parametrize("missing", ["file", "openmp"])
def test_without_them_torch_computes_the_same(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_them = gradients_of_a_supernet()
    if missing == "file":
        monkeypatch.setattr("a2d_lightning.cpu.kernels.importlib.util.find_spec", lambda name: None)
    else:
        monkeypatch.setattr("a2d_lightning.cpu.kernels.gcc_openmp", lambda: None)
    kernels.cache_clear()
    try:
        assert kernels() is None
        without = gradients_of_a_supernet()
    finally:
        monkeypatch.undo()
        kernels.cache_clear()
    assert len(with_them) == len(without) > 100
    one, other = (torch.cat([gradient.flatten() for gradient in found]) for found in (with_them, without))
    # float32, and ReLUs that rounding opens or closes
    assert (one - other).norm() < 1e-4 * other.norm()


@pytest.mark.parametrize("content", [b"", "of another release"])
def test_a_library_that_does_not_fit_is_named_and_left(
    content: bytes | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "_kernels.so"
    if isinstance(content, bytes):
        library.write_bytes(content)
    else:
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"  # a library, and without our functions
    spec = SimpleNamespace(origin=str(library))
    monkeypatch.setattr("a2d_lightning.cpu.kernels.importlib.util.find_spec", lambda name: spec)
    kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="reinstall the package"):
            assert kernels() is None
    finally:
        kernels.cache_clear()


def test_a_failure_of_memory_is_one_of_python() -> None:
    run = kernels()
    assert run is not None
    with pytest.raises(MemoryError, match="weighted_sum_backward of 1 elements"):
        run.weighted_sum_backward(1, 1, 2**50, 0, 0, 0, 0, 0)  # 2^57 bytes of sums
