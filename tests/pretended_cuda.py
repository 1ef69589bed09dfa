"""A pretended CUDA device: runs what would run on a GPU where there is none, and finds what a GPU would not forgive.

A tensor "on the device" says that it is on cuda:0 and holds a tensor on the CPU. To use it together with one on the CPU
is an error, as on a GPU. What makes the host wait for the device is counted with its place in the code. A CUDA graph
records all operations of its capture and carries them out, on the same memory, at each replay; in a capture a read by
the host, or a tensor made of the host's numbers, is an error.

    with pretended_cuda.device() as gpu:
        ...                      # torch.device("cuda") works
    gpu.reads, gpu.replays

Not covered: autocast, cuDNN's kernels, the allocator, streams, NCCL.
"""

import collections
import contextlib
import traceback
from unittest import mock

import torch
from torch.optim.sgd import sgd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

aten, CUDA = torch.ops.aten, torch.device("cuda:0")
COPIES = {"aten::copy_", "aten::_to_copy"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
READS = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"),
    *("aten::bincount", "aten::equal", "aten::repeat_interleave", "aten::unique_consecutive"),
}
gpu = None  # the `Gpu` that is pretended at the moment


class PretendedError(RuntimeError):
    """What a GPU would not do."""


class Gpu:
    """What was seen of the device."""

    def __init__(self):
        self.reads = collections.Counter()  # (what makes the host wait, where) -> times
        self.replays, self.operations = 0, 0
        self.capturing = None  # the `Graph` that is being captured
        self.meta = False  # whether the operation was asked for on this device

    def waits(self, what):
        if self.capturing is not None:
            raise PretendedError(f"{what} in a capture, {place()}")
        self.reads[what, place()] += 1


def place():
    """Where in the package we are: the innermost two places."""
    frames = [frame for frame in traceback.extract_stack() if "/mnemonics/" in frame.filename]
    return " < ".join(f"{f.filename.rpartition('/mnemonics/')[2]}:{f.lineno}" for f in frames[::-1][:2])


class OnDevice(torch.Tensor):
    """A tensor on the pretended device; `inner` holds it on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        empty = torch.empty_strided(inner.size(), inner.stride(), dtype=inner.dtype, device="meta")
        tensor = torch.Tensor._make_subclass(cls, empty, False, dispatch_device=False, device_for_backend_keys=CUDA)
        tensor.inner = inner
        return tensor

    def __init__(self, inner):
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl
    device, is_cuda, is_meta = (property(lambda self, value=value: value) for value in (CUDA, True, False))

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return carried_out(operation, args, kwargs or {})

    def tolist(self):
        gpu.waits("tolist")
        return self.inner.tolist()

    def new_tensor(self, data, **more):
        gpu.waits("new_tensor")
        return OnDevice(self.inner.new_tensor(data, **more))

    def __repr__(self):
        return f"OnDevice({self.inner})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copy = OnDevice(self.inner.clone(memory_format=torch.preserve_format))
            memo[id(self)] = torch.nn.Parameter(copy, self.requires_grad) if getattr(self, "_is_param", 0) else copy
        return memo[id(self)]


class Everywhere(TorchDispatchMode):
    """Sends operations here that have no tensor on the device yet: those that make one."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return carried_out(operation, args, kwargs or {})


class OnMeta(TorchFunctionMode):
    """Tells the device "meta" that was asked for from that of tensors here, which C++ takes for it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with mock.patch.object(gpu, "meta", str(kwargs.get("device")) == "meta"):
            return function(*args, **kwargs)


def unwrapped(value):
    return value.inner if isinstance(value, OnDevice) else value


def wrapped(value):
    return OnDevice(value) if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice) else value


def carried_out(operation, args, kwargs):
    """What the operation gives, on the device where it would be; raises PretendedError where a GPU would."""
    name, asked = operation.name().split(".")[0], kwargs.get("device")
    asked = None if asked is None else torch.device(asked).type
    if asked == "meta" and gpu.meta:
        return operation(*args, **kwargs)
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    gpu.operations += 1
    check_devices(name, args, tensors, ours)
    note_waits(name, args, asked, ours)
    inner_args, inner_kwargs = tree_map(unwrapped, args), tree_map(unwrapped, kwargs)
    if asked in ("cuda", "meta"):
        inner_kwargs["device"] = torch.device("cpu")
    result = emulated(operation, inner_args, inner_kwargs)
    there = isinstance(args[0], OnDevice) if name == "aten::copy_" else asked in ("cuda", "meta") or bool(ours)
    there = there and asked != "cpu"
    if gpu.capturing is not None and there:
        gpu.capturing.operations.append((operation, inner_args, inner_kwargs, result))
    written = written_arguments(operation, args, kwargs)
    if written:
        several = len(operation._schema.returns) > 1
        results = zip(operation._schema.returns, result if several else [result], strict=True)
        given = [written.get(alias_of(returned), wrapped(value)) for returned, value in results]
        return tuple(given) if several else given[0]
    return tree_map(wrapped, result) if there else result


def check_devices(name, args, tensors, ours):
    """Only copies, scalars and indices on the CPU go with tensors on the device."""
    others = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
    if not ours or not others or name in COPIES:
        return
    if name in INDEXING and isinstance(args[0], OnDevice):
        gpu.waits(f"{name} by an index on the CPU")
    else:
        raise PretendedError(f"{name} of {[(tuple(t.shape), str(t.device)) for t in tensors]}, {place()}")


def note_waits(name, args, asked, ours):
    """Note what reads a value, or how many there are, on the host, and copies between the two."""
    if name in READS and ours:
        gpu.waits(name)
    masks = [index for index in args[1] if index is not None] if name in INDEXING and ours else []
    if any(index.dtype in (torch.bool, torch.uint8) for index in masks):
        gpu.waits(f"{name} by a mask")
    if name == "aten::copy_" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        gpu.waits("copy_ to the device" if isinstance(args[0], OnDevice) else "copy_ to the host")
    if name == "aten::_to_copy" and ((asked == "cuda" and not ours) or (asked == "cpu" and ours)):
        gpu.waits("to the device" if asked == "cuda" else "to the host")
    if name == "aten::lift_fresh" and gpu.capturing is not None:
        gpu.waits("a tensor made of a number")


def alias_of(argument):
    """What the schema calls the memory that an argument or result writes to."""
    info = argument.alias_info
    return tuple(info.before_set) if info is not None and info.is_write else None


def written_arguments(operation, args, kwargs):
    """alias -> the argument that an operation writes to and returns."""
    if not any(map(alias_of, operation._schema.returns)):
        return {}
    arguments = operation._schema.arguments
    values = [*args, *(kwargs.get(argument.name) for argument in arguments[len(args) :])]
    pairs = zip(arguments, values, strict=True)
    return {alias_of(argument): value for argument, value in pairs if alias_of(argument) and value is not None}


def emulated(operation, args, kwargs):
    """The operation on the CPU; those that only a GPU has by their counterparts."""
    name = operation.name().split(".")[0]
    if name == "aten::cudnn_batch_norm":
        return *aten.native_batch_norm(*args), torch.empty(0, dtype=torch.uint8)
    if name == "aten::cudnn_batch_norm_backward":
        x, gradient, weight, running_mean, running_var, mean, var, epsilon, _ = args
        statistics = running_mean, running_var, mean, var
        return aten.native_batch_norm_backward(gradient, x, weight, *statistics, True, epsilon, [True] * 3)
    if name == "aten::_fused_sgd_":
        parameters, gradients, momenta = (list(part) for part in args[:3])
        for group in zip(parameters, gradients, *([momenta] if momenta else []), strict=True):
            check_layout(group)
        names = ("weight_decay", "momentum", "dampening", "nesterov", "maximize")
        rest = {name: kwargs[name] for name in names} | {"lr": float(kwargs["lr"])}
        return sgd(parameters, gradients, momenta or [None] * len(parameters), foreach=False, fused=False, **rest)
    return operation(*args, **kwargs)


def check_layout(tensors):
    """The fused kernel goes through memory: all tensors must be dense and laid out alike."""
    layouts = {tuple(step for size, step in zip(t.shape, t.stride(), strict=True) if size > 1) for t in tensors}
    if len(layouts) > 1 or not all(map(torch._prims_common.is_non_overlapping_and_dense_or_false, tensors)):
        raise PretendedError(f"fused SGD of tensors laid out differently, {place()}")


class Graph:
    """As torch.cuda.CUDAGraph. What a capture computes is not carried out on a GPU; only replays count."""

    def __init__(self):
        self.operations = []

    def replay(self):
        gpu.replays += 1
        for operation, args, kwargs, captured in self.operations:
            new = emulated(operation, args, kwargs)
            for before, now in zip(tree_iter(captured), tree_iter(new), strict=True):
                if isinstance(now, torch.Tensor) and before is not now and before.data_ptr() != now.data_ptr():
                    before.copy_(now)

    def reset(self):
        self.operations = []

    def pool(self):
        return 0, 0


@contextlib.contextmanager
def capture(graph, pool=None, stream=None, capture_error_mode="global"):
    """As torch.cuda.graph."""
    gpu.capturing = graph
    try:
        yield
    finally:
        gpu.capturing = None


class Generator(torch.Generator):
    """A generator that says it is on the device and draws as one on the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        self.pretended = CUDA if torch.device(device).type == "cuda" else torch.device(device)

    @property
    def device(self):
        return self.pretended

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self

    def set_state(self, state):
        if isinstance(state, OnDevice):
            raise PretendedError("the state of a generator has to be on the CPU")
        super().set_state(state)
        return self


def plain(value):
    return value.inner.detach().clone() if isinstance(value, OnDevice) else value


@contextlib.contextmanager
def device():
    """Pretend that there is a GPU; gives what was seen of it."""
    global gpu
    gpu = Gpu()
    save, load, tensor = torch.save, torch.load, torch.tensor

    def loaded(file, map_location=None, **more):
        there = map_location is not None and torch.device(map_location).type == "cuda"
        value = load(file, map_location="cpu", **more)
        return tree_map(wrapped, value) if there else value

    def made(data, *, dtype=None, device=None, requires_grad=False):
        value = tensor(data, dtype=dtype)
        return (value if device is None else value.to(device)).requires_grad_(requires_grad)

    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "synchronize": lambda *_: gpu.waits("synchronize"),
        "max_memory_allocated": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "mem_get_info": lambda *_: (2**34, 2**34),
        "get_device_name": lambda *_: "pretended",
        "set_device": lambda *_: None,
        "is_bf16_supported": lambda *_, **__: True,
        "current_device": lambda: 0,
        "current_stream": lambda *_: mock.Mock(),
        "Stream": mock.Mock,
        "stream": lambda _: contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: gpu.capturing is not None,
        "CUDAGraph": Graph,
        "graph": capture,
    }
    patches = {
        "Generator": Generator,
        "load": loaded,
        "save": lambda value, file, **more: save(tree_map(plain, value), file, **more),
        "tensor": made,
    }
    torch._C._ensureCUDADeviceGuardSet()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch.multiple(torch.cuda, **cuda),
            mock.patch.multiple(torch, **patches),
            mock.patch.object(torch.Tensor, "pin_memory", lambda self, *_: self),
            OnMeta(),
            Everywhere(),
        ):
            yield gpu
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        gpu = None
