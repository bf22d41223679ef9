"""An ONNX Runtime session: which provider runs it, with one thread on a CPU, and tensors in and out.

On a CPU `run` on arrays took 5.0 ms a step of the platformer and IO binding 5.3, so binding is for CUDA alone, where
the state stays on the device.
"""

import ctypes.util
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, MissingExtra, missing_extra

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(uint8)": torch.uint8,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
}
_NUMPY = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.uint8: np.uint8,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.bool: np.bool_,
}


def runtime() -> Any:
    """The module onnxruntime; MissingExtra where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx") from error
    return onnxruntime


def providers(device: torch.device, engines: Path) -> list[Any]:
    """The providers to try for a device, best first, each with options that keep float32 exact and repeatable.

    Args:
        engines: folder where TensorRT keeps what it built, which takes minutes.

    Raises:
        MissingExtra: CUDA is wanted and this onnxruntime was built without it.
        InvalidInput: no CPU and no CUDA device.
    """
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type != "cuda":
        raise InvalidInput(f'backend="onnx" runs on "cpu" and "cuda", got the device {device}.')
    available, index = runtime().get_available_providers(), device.index or 0
    if "CUDAExecutionProvider" not in available:
        raise _no_cuda()
    # The exhaustive search picks kernels by timing them, which differs from process to process.
    cuda = {"device_id": index, "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0}
    chosen = [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    if "TensorrtExecutionProvider" in available and _has_tensorrt():
        cache = {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": True,
        }
        chosen.insert(0, ("TensorrtExecutionProvider", {"device_id": index, **cache}))
    return chosen


def _has_tensorrt() -> bool:
    return importlib.util.find_spec("tensorrt_libs") is not None or ctypes.util.find_library("nvinfer") is not None


def _no_cuda() -> MissingExtra:
    return MissingExtra(
        'this onnxruntime runs on the CPU only. Use device="cpu", or: pip uninstall onnxruntime, then '
        'pip install "lwm-env[gpu]" (the two share a module and must not both be there)'
    )


class Session:
    """A verified ONNX file, ready to run."""

    def __init__(self, file: Path, data: bytes, device: torch.device) -> None:
        """Raises CorruptFile where ONNX Runtime refuses the file, ConfigMismatch where it cannot load CUDA, and what
        `providers` raises."""
        ort = runtime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # no pool: a forked child can go on
        options.use_deterministic_compute = True
        options.log_severity_level = 3  # errors
        chosen = providers(device, file.parent)
        try:
            self._session = ort.InferenceSession(data, options, providers=chosen)
        except Exception as error:  # its classes are of a private module
            reason = str(error).splitlines()[0][:200]
            raise CorruptFile(f"{file} is refused by onnxruntime {ort.__version__}: {reason}") from error
        if device.type == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise ConfigMismatch("onnxruntime could not load CUDA or cuDNN. See its messages, or use backend='torch'.")
        self.device = device
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.inputs = {x.name: (_DTYPES.get(x.type), tuple(x.shape)) for x in self._session.get_inputs()}
        self.outputs = {x.name: (_DTYPES.get(x.type), tuple(x.shape)) for x in self._session.get_outputs()}

    @property
    def providers(self) -> list[str]:
        """Those in use, best first."""
        return self._session.get_providers()

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """All outputs, in new tensors on the device of the session."""
        inputs = {name: value.contiguous() for name, value in inputs.items()}
        if self.device.type == "cuda":
            return self._run_bound(inputs)
        results = self._session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(self.outputs, results, strict=True)}

    def _run_bound(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        binding = self._session.io_binding()
        outputs = {
            name: torch.empty(shape, dtype=dtype, device=self.device) for name, (dtype, shape) in self.outputs.items()
        }
        for name, value in inputs.items():
            binding.bind_input(name, *self._place(value))
        for name, value in outputs.items():
            binding.bind_output(name, *self._place(value))
        torch.cuda.current_stream(self.device).synchronize()  # ONNX Runtime has a stream of its own
        self._session.run_with_iobinding(binding)  # returns when the outputs are there
        return outputs

    def _place(self, value: Tensor) -> tuple[Any, ...]:
        return "cuda", self.device.index or 0, _NUMPY[value.dtype], tuple(value.shape), value.data_ptr()
