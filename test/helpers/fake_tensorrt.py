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
        self.memory[target][:] = source.reshape(-1).view(np.uint8)

    def download(self, source, target):
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
        self.shapes, self.addresses = {}, {}

    def set_input_shape(self, name, shape):
        if shape[0] > 8:  # outside the profile that the engine was built for
            return False
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        return tuple(self.engine.shape_of(name, self.shapes))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == self.cuda.stream
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
    """``inputs`` and ``outputs``: name -> shape, -1 free; free outputs take the first free size of the inputs."""

    def __init__(self, function, inputs, outputs, cuda, dtypes=None):
        self.function, self.inputs, self.outputs, self.cuda = function, inputs, outputs, cuda
        self.names, self.dtypes = [*inputs, *outputs], dtypes or {}
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, i):
        return self.names[i]

    def get_tensor_mode(self, name):
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name={"float32": "FLOAT", "uint8": "UINT8"}[self.dtype(name)])

    def dtype(self, name):
        return self.dtypes.get(name, "float32")

    def get_tensor_shape(self, name):
        return (self.inputs | self.outputs)[name]

    def shape_of(self, name, set_shapes):
        if name in set_shapes:
            return set_shapes[name]
        free = next((shape[0] for shape in set_shapes.values()), -1)
        return tuple(free if n < 0 else n for n in self.get_tensor_shape(name))

    def create_execution_context(self):
        return FakeContext(self, self.cuda)


class FakeApi:
    """In place of ``engines.trt_api.TensorRT``; ``engines``: file name -> FakeEngine."""

    name, version = "tensorrt-rtx", "0.fake"
    module = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"))

    def __init__(self, engines):
        self.engines = engines

    def load(self, path):
        return self.engines[path.name]

    def dtype(self, kind):
        return {"FLOAT": "float32"}.get(kind.name, kind.name.lower())

    def errors(self):
        return "the fake says no"
