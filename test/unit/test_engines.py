# SPDX-License-Identifier: Apache-2.0
"""One contract for all engines: two small graphs with a shared tensor, a free dimension and a byte input."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FakeApi, FakeCuda, FakeEngine

from lidargen_ros.engines.base import Signature, chain_inputs
from lidargen_ros.engines.onnxruntime_engine import PROVIDERS, OnnxRuntimeEngine
from lidargen_ros.engines.tensorrt_engine import TensorRTEngine
from lidargen_ros.errors import EngineError

FIRST = Signature(
    {"bytes": ("uint8", ("n", 4)), "weight": ("float32", (4, 3))}, {"mixed": ("float32", ("n", 3))}
)
SECOND = Signature(
    {"mixed": ("float32", ("n", 3)), "shift": ("float32", (1, 3))}, {"result": ("float32", ("n", 3))}
)
GRAPHS = ("first", "second")
RNG = np.random.default_rng(0)
WEIGHT, SHIFT = RNG.standard_normal((4, 3), np.float32), RNG.standard_normal((1, 3), np.float32)


def expected(pixels, shift=SHIFT):
    return np.tanh(pixels.astype(np.float32) / 255 @ WEIGHT) + shift


def onnx_graphs(folder):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    kinds = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    nodes = {
        "first": [
            helper.make_node("Cast", ["bytes"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Constant", [], ["scale"], value_float=1 / 255),
            helper.make_node("Mul", ["floats", "scale"], ["unit"]),
            helper.make_node("MatMul", ["unit", "weight"], ["mixed"]),
        ],
        "second": [
            helper.make_node("Tanh", ["mixed"], ["bounded"]),
            helper.make_node("Add", ["bounded", "shift"], ["result"]),
        ],
    }
    paths = {}
    for name, signature in zip(GRAPHS, (FIRST, SECOND), strict=True):
        values = [
            [helper.make_tensor_value_info(k, kinds[d], s) for k, (d, s) in specs.items()]
            for specs in (signature.inputs, signature.outputs)
        ]
        graph = helper.make_graph(nodes[name], name, *values)
        paths[name] = folder / f"{name}.onnx"
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), paths[name]
        )
    return paths


def torch_engine(folder, mode):
    torch = pytest.importorskip("torch")
    from lidargen_ros.engines.torch_engine import TorchEngine, TorchGraph

    class First(torch.nn.Module):
        def forward(self, pixels, weight):
            return pixels.to(weight.dtype) / 255 @ weight

    class Second(torch.nn.Module):
        def forward(self, mixed, shift):
            return torch.tanh(mixed) + shift

    graphs = {"first": TorchGraph(First(), FIRST), "second": TorchGraph(Second(), SECOND)}
    return TorchEngine(graphs, device="cpu", mode=mode, packages=folder, threads=1)


def tensorrt_engine(cuda):
    engines = {
        "first.engine": FakeEngine(
            lambda pixels, weight: (pixels.astype(np.float32) / 255 @ weight,),
            {"bytes": (-1, 4), "weight": (4, 3)},
            {"mixed": (-1, 3)},
            cuda,
            {"bytes": "uint8"},
        ),
        "second.engine": FakeEngine(
            lambda mixed, shift: (np.tanh(mixed) + shift,),
            {"mixed": (-1, 3), "shift": (1, 3)},
            {"result": (-1, 3)},
            cuda,
        ),
    }
    return TensorRTEngine({n: Path(f"{n}.engine") for n in GRAPHS}, FakeApi(engines), cuda=cuda)


def make_engine(kind, folder):
    if kind == "onnxruntime-cpu":
        return OnnxRuntimeEngine(onnx_graphs(folder), threads=1)
    if kind == "tensorrt-rtx":
        return tensorrt_engine(FakeCuda())
    return torch_engine(folder, kind.partition("-")[2] or "eager")


@pytest.fixture(
    scope="module",
    params=[
        "onnxruntime-cpu",
        "tensorrt-rtx",
        "torch",
        pytest.param("torch-compile", marks=pytest.mark.slow),
        pytest.param("torch-aoti", marks=pytest.mark.slow),
    ],
)
def engine(request, tmp_path_factory):
    made = make_engine(request.param, tmp_path_factory.mktemp("engine"))
    assert made.name == request.param
    yield made
    made.close()


def frame(engine, pixels, **changed):
    engine.write({"bytes": pixels, **changed})
    engine.run(GRAPHS, ("result",))
    return engine.read(("result",))["result"]


def pixels(rows):
    return RNG.integers(0, 256, (rows, 4), dtype=np.uint8)


def test_frames_of_changing_size_agree(engine):
    engine.write({"weight": WEIGHT, "shift": SHIFT})
    kept = []
    for rows in (5, 5, 2, 5):
        given = pixels(rows)
        kept.append((frame(engine, given), expected(given)))
    for found, wanted in kept:  # what was read belongs to the reader: later frames have not changed it
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_was_written_stays_and_the_array_is_free(engine):
    shift = SHIFT.copy()
    engine.write({"weight": WEIGHT, "shift": shift})
    shift[:] = np.nan
    given = pixels(3)
    np.testing.assert_allclose(frame(engine, given), expected(given), rtol=1e-5, atol=1e-6)
    given = pixels(3)
    found = frame(engine, given, shift=SHIFT + 1)
    np.testing.assert_allclose(found, expected(given, SHIFT + 1), rtol=1e-5, atol=1e-6)


def test_graphs_one_by_one_and_rows_written_apart(engine):
    engine.write({"weight": WEIGHT, "shift": SHIFT})
    given = pixels(4)
    engine.write({"bytes": list(given)})
    engine.run(("first",), ("mixed",))
    mixed = engine.read(("mixed",))["mixed"]
    engine.write({"mixed": mixed * 2})
    engine.run(("second",), ("result",))
    found = engine.read(("result", "mixed"))
    np.testing.assert_allclose(found["result"], np.tanh(mixed * 2) + SHIFT, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["mixed"], mixed * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"elsewhere": np.zeros(3, np.float32)}, "no graph has an input elsewhere"),
        ({"bytes": np.zeros((3, 4), np.float32)}, r"bytes is float32 \(3, 4\)"),
        ({"bytes": np.zeros((3, 5), np.uint8)}, r"bytes is uint8 \(3, 5\)"),
        ({"bytes": np.zeros(4, np.uint8)}, r"bytes is uint8 \(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused(engine, given, words):
    with pytest.raises(EngineError, match=words):
        engine.write(given)


@pytest.mark.parametrize("kind", ["onnxruntime-cpu", "tensorrt-rtx", "torch"])
def test_inputs_that_were_never_written(kind, tmp_path):
    fresh = make_engine(kind, tmp_path)
    fresh.write({"weight": WEIGHT, "shift": SHIFT})
    with pytest.raises(EngineError, match="bytes was never written"):
        fresh.run(GRAPHS, ("result",))
    with pytest.raises(EngineError, match="result was never written"):
        fresh.read(("result",))


def test_inputs_of_a_chain():
    assert chain_inputs({"first": FIRST, "second": SECOND}, GRAPHS) == ("bytes", "weight", "shift")


# --- ONNX Runtime -------------------------------------------------------------------------------------------------


def test_a_provider_that_is_not_there(tmp_path):
    import onnxruntime as ort

    name = next(
        (n for n, needed in PROVIDERS.items() if set(needed) - set(ort.get_available_providers())), None
    )
    if name is None:
        pytest.skip("every provider is installed")
    with pytest.raises(EngineError, match="install onnxruntime-gpu"):
        OnnxRuntimeEngine({}, name=name)


def test_a_provider_that_does_not_start(tmp_path, monkeypatch):
    """Where CUDA's libraries are missing the runtime would compute on the CPU without a word."""
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("CUDA may well start here")
    monkeypatch.setattr(ort, "get_available_providers", lambda: PROVIDERS["onnxruntime-cuda"])
    with pytest.warns(UserWarning), pytest.raises(EngineError, match="CUDAExecutionProvider does not start"):
        OnnxRuntimeEngine(onnx_graphs(tmp_path), name="onnxruntime-cuda")


def test_a_truncated_graph(tmp_path):
    paths = onnx_graphs(tmp_path)
    paths["first"].write_bytes(paths["first"].read_bytes()[:40])
    with pytest.raises(EngineError, match=r"first\.onnx cannot be loaded"):
        OnnxRuntimeEngine(paths)


# --- TensorRT, on a fake ------------------------------------------------------------------------------------------


def test_nothing_is_allocated_after_the_first_frame_and_the_frame_is_one_launch():
    cuda = FakeCuda()
    engine = tensorrt_engine(cuda)
    engine.write({"weight": WEIGHT, "shift": SHIFT})
    frame(engine, pixels(5))
    taken, replayed, waited = (cuda.allocated, cuda.pinned_arrays), cuda.replays, cuda.waits
    for _ in range(3):
        frame(engine, pixels(5))
    assert (cuda.allocated, cuda.pinned_arrays) == taken
    assert cuda.replays == replayed + 3
    assert cuda.waits == waited + 3  # the host waits once per frame, for the download
    engine.close()
    assert cuda.pinned_arrays == 0
    assert not cuda.memory


def test_a_graph_that_cannot_be_recorded_runs_and_says_so(caplog):
    engine = tensorrt_engine(FakeCuda(refuses_recording=True))
    engine.write({"weight": WEIGHT, "shift": SHIFT})
    given = pixels(5)
    np.testing.assert_allclose(frame(engine, given), expected(given), rtol=1e-5, atol=1e-6)
    assert "no CUDA graph" in caplog.text


def test_a_size_that_was_not_built_for():
    engine = tensorrt_engine(FakeCuda())
    engine.write({"weight": WEIGHT, "shift": SHIFT})
    with pytest.raises(EngineError, match="first was not built for bytes of"):
        frame(engine, pixels(9))


@pytest.mark.parametrize("module", ["tensorrt_rtx_bindings", "tensorrt_lean_bindings"])
def test_names_used_from_the_real_runtimes(module):
    """The lean runtime is the part of the full TensorRT that runs engines and is on PyPI."""
    trt = pytest.importorskip(module, reason=f"{module} is not installed")
    engine = "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype get_tensor_shape create_execution_context"
    context = (
        "set_input_shape get_tensor_shape set_tensor_address execute_async_v3 "
        "update_device_memory_size_for_shapes set_device_memory"
    )
    assert not [n for n in engine.split() if not hasattr(trt.ICudaEngine, n)]
    assert not [n for n in context.split() if not hasattr(trt.IExecutionContext, n)]
    assert trt.TensorIOMode.INPUT != trt.TensorIOMode.OUTPUT
    assert "USER_MANAGED" in trt.ExecutionContextAllocationStrategy.__members__


def test_cuda_python_says_in_one_line_what_failed():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    from lidargen_ros.engines.cuda_memory import Cuda
    from lidargen_ros.engines.trt_api import current_gpu

    if current_gpu() is None:
        with pytest.raises(EngineError, match="cudaStreamCreateWithFlags failed: cudaError"):
            Cuda()
    names = (
        "cudaMalloc cudaFree cudaHostAlloc cudaHostAllocDefault cudaFreeHost cudaMemcpyAsync cudaStreamSynchronize "
        "cudaStreamBeginCapture cudaStreamEndCapture cudaGraphInstantiate cudaGraphDestroy cudaGraphLaunch "
        "cudaStreamDestroy cudaStreamNonBlocking"
    )
    assert not [n for n in names.split() if not hasattr(runtime, n)]
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(runtime.cudaMemcpyKind.__members__)
    assert "cudaErrorMemoryAllocation" in runtime.cudaError_t.__members__


def test_torch_copies_pictures_without_threads_of_its_own(tmp_path):
    """OpenMP's threads would spin after every copy, and take the cores of those who decode the next pictures."""
    torch = pytest.importorskip("torch")
    engine, before = torch_engine(tmp_path, "eager"), torch.get_num_threads()
    started = []

    def write():  # each thread that asks OpenMP for help gets threads of its own, which stay
        torch.set_num_threads(3)
        threads = len(os.listdir("/proc/self/task"))
        engine.write({"bytes": np.zeros((500_000, 4), np.uint8)})
        started.append(len(os.listdir("/proc/self/task")) - threads)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    engine.close()
    assert started == [0]
