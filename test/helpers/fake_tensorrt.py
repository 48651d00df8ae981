# SPDX-License-Identifier: Apache-2.0
"""TensorRT and CUDA as far as the engine uses them, on numpy: a graph is a Python function, an address a key."""

import itertools
from types import SimpleNamespace

import numpy as np

from lidargen_ros.errors import EngineError


class FakeCuda:
    """Counts what it gives; ``refuses_recording`` acts like a graph that cannot be captured."""

    stream = 7

    def __init__(self, refuses_recording=False):
        self.refuses_recording = refuses_recording
        self.memory, self._addresses = {}, itertools.count(4096, 4096)
        self.allocated = self.pinned_arrays = self.waits = self.replays = 0
        self.uploads, self.downloads = [], []  # bytes of each
        self.recording = None

    def allocate(self, size):
        address = next(self._addresses)
        self.memory[address] = np.zeros(size, np.uint8)
        self.allocated += 1
        return address

    def free(self, address):
        del self.memory[address]

    def pinned(self, shape, dtype):
        self.pinned_arrays += 1
        return np.zeros(shape, dtype)

    def unpin(self, array):
        self.pinned_arrays -= 1

    def upload(self, source, target):
        self.uploads.append(source.nbytes)
        self.memory[target][:] = source.reshape(-1).view(np.uint8)

    def download(self, source, target):
        self.downloads.append(target.nbytes)
        target.reshape(-1).view(np.uint8)[:] = self.memory[source][: target.nbytes]

    def wait(self):
        self.waits += 1

    def record(self, enqueue):
        if self.refuses_recording:
            raise EngineError("cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated")
        self.recording = []
        enqueue()
        calls, self.recording = self.recording, None

        def replay():
            self.replays += 1
            for call in calls:
                call()

        return replay

    def close(self):
        self.memory.clear()


class FakeContext:
    def __init__(self, engine, cuda):
        self.engine, self.cuda = engine, cuda
        self.shapes, self.addresses, self.workspace = {}, {}, None

    def set_input_shape(self, name, shape):
        if shape[0] > self.engine.largest:  # outside the profile that the engine was built for
            return False
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        return tuple(self.engine.shape_of(name, self.shapes))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def update_device_memory_size_for_shapes(self):
        assert all(name in self.shapes for name, shape in self.engine.inputs.items() if -1 in shape)
        return 256

    def set_device_memory(self, address, size):
        assert len(self.cuda.memory[address]) >= size
        self.workspace = address

    def execute_async_v3(self, stream):
        assert stream == self.cuda.stream
        assert self.workspace in self.cuda.memory
        addresses, shapes = dict(self.addresses), {n: self.get_tensor_shape(n) for n in self.addresses}

        def work():
            named = {
                n: self.cuda.memory[addresses[n]].view(self.engine.dtype(n)).reshape(shapes[n])
                for n in addresses
            }
            results = self.engine.function(*(named[n] for n in self.engine.inputs))
            for name, result in zip(self.engine.outputs, results, strict=True):
                named[name][...] = result

        if self.cuda.recording is None:
            work()
        else:
            self.cuda.recording.append(work)
        return True


class FakeEngine:
    """``inputs`` and ``outputs``: name -> shape, -1 free; ``largest``: first size of an input that it was built for."""

    def __init__(self, function, inputs, outputs, cuda, dtypes=None, largest=8):
        self.largest = largest
        self.function, self.inputs, self.outputs, self.cuda = function, inputs, outputs, cuda
        self.names, self.dtypes = [*inputs, *outputs], dtypes or {}
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, i):
        return self.names[i]

    def get_tensor_mode(self, name):
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name={"float32": "FLOAT"}.get(self.dtype(name), self.dtype(name).upper()))

    def dtype(self, name):
        return self.dtypes.get(name, "float32")

    def get_tensor_shape(self, name):
        return (self.inputs | self.outputs)[name]

    def shape_of(self, name, set_shapes):
        shape = set_shapes.get(name, self.get_tensor_shape(name))
        if (
            -1 in shape
            and name in self.outputs
            and all(-1 not in {**self.inputs, **set_shapes}[n] for n in self.inputs)
        ):
            zeros = (np.zeros(set_shapes.get(n, s), self.dtype(n)) for n, s in self.inputs.items())
            shape = dict(zip(self.outputs, self.function(*zeros), strict=True))[name].shape
        return shape

    def create_execution_context(self, strategy):
        assert strategy == "user managed"
        return FakeContext(self, self.cuda)


class FakeApi:
    """In place of ``engines.trt_api.TensorRT``; ``engines``: file name -> FakeEngine."""

    name, version = "tensorrt-rtx", "0.fake"
    module = SimpleNamespace(
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )

    def __init__(self, engines):
        self.engines = engines

    def load(self, path):
        return self.engines[path.name]

    def dtype(self, kind):
        return {"FLOAT": "float32"}.get(kind.name, kind.name.lower())

    def errors(self):
        return "the fake says no"
