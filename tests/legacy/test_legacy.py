"""Checkpoints of the authors' code: read without running anything, and the same function as the original modules."""

import importlib
import io
import os
import pickle
import re
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from authors_networks import authors_modules, make, save, stand_ins

from mnemonics.data.pickles import PickleError, Reader
from mnemonics.engine.errors import UsageError
from mnemonics.legacy.checkpoints import Numbers, TorchReader, order_of, reading, rebuild_tensor
from mnemonics.legacy.networks import read_network
from mnemonics.models.layers import ScaledConv2d, SplitCosineLinear
from mnemonics.protocol import class_order


def bits(weights):
    return sorted(str(tuple(value.shape)).encode() + value.contiguous().numpy().tobytes() for value in weights.values())


def read_order(path):
    return reading(path, order_of)


KINDS = {
    "cifar": ("resnet_cifar", 3, 5, 0, "resnet20"),
    "cifar, split head": ("resnet_cifar", 3, 5, 2, "resnet20"),
    "cifar, weight transfer": ("resnetmtl_cifar", 3, 5, 0, "resnet20"),
    "cifar, weight transfer, split head": ("resnetmtl_cifar", 5, 5, 2, "resnet32"),
    "imagenet": ("resnet", 2, 5, 0, "resnet18"),
    "imagenet, weight transfer, split head": ("resnetmtl", 2, 5, 2, "resnet18"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_original_module(kind, tmp_path):
    """In both formats, with nothing of the original importable. In double precision all but rounding is visible."""
    file, blocks, classes, new, name = KINDS[kind]
    size = 224 if "imagenet" in kind else 32
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with stand_ins(), torch.no_grad():
        torch.manual_seed(1)
        original = make(file, blocks, classes, new)
        weights = {key: value.clone() for key, value in original.state_dict().items()}
        paths = [save(original, tmp_path / f"{old}.pth", old) for old in (True, False)]
        single, double = original(images), original.double()(images.double())
    assert zipfile.is_zipfile(paths[1])
    assert not zipfile.is_zipfile(paths[0])
    assert b"source of BasicBlock" in paths[0].read_bytes()  # the older format holds the classes' source code
    for path in paths:
        network = read_network(path)
        assert authors_modules() == []
        assert (network.network, network.image_size) == (name, size)
        assert isinstance(network.model.classifier, SplitCosineLinear) is (new > 0)
        assert isinstance(network.model.conv1, ScaledConv2d) is ("weight transfer" in kind)
        model = network.model.eval()
        assert bits(model.state_dict()) == bits(weights)
        with torch.no_grad():
            torch.testing.assert_close(model(images), single, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(model.double()(images.double()), double, rtol=1e-12, atol=1e-13)


def test_as_pytorch_0_4_pickled_it_on_a_gpu(tmp_path, monkeypatch):
    """Parameters by calling the class, a backend in every module, no count of batches, views of storages, CUDA."""
    thnn = types.ModuleType("torch.nn.backends.thnn")
    exec("def _get_thnn_function_backend(): return None", vars(thnn))
    thnn._get_thnn_function_backend.__module__ = thnn.__name__

    class Backend:
        def __reduce__(self):
            return thnn._get_thnn_function_backend, ()

    def reduce_parameter(self, _):
        return torch.nn.Parameter, (self.data, self.requires_grad)

    images = torch.randn(2, 3, 32, 32)
    with stand_ins(), torch.no_grad(), monkeypatch.context() as patch:
        patch.setitem(sys.modules, thnn.__name__, thnn)
        patch.setattr(torch.nn.Parameter, "__reduce_ex__", reduce_parameter)
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        original = make("resnetmtl_cifar", 3, 4, 2)
        expected = original(images)
        for part in original.modules():
            part._backend = Backend()
            part._buffers.pop("num_batches_tracked", None)
        path = save(original, tmp_path / "m.pth", True)
    data = path.read_bytes().replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage")
    assert b"cuda:0" in data
    assert b"_rebuild_parameter" not in data
    path.write_bytes(data)
    with torch.no_grad():
        torch.testing.assert_close(read_network(path).model.eval()(images), expected, rtol=1e-5, atol=1e-6)


ORDER = class_order(100, 1993)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [np.array(ORDER), list(np.array(ORDER)), list(ORDER)])
def test_class_orders(protocol, value, tmp_path):
    data = pickle.dumps(value, protocol)
    if protocol == 2:  # as numpy 1 writes it
        data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "order.pkl").write_bytes(data)
    assert read_order(tmp_path / "order.pkl") == ORDER


@pytest.mark.parametrize("value", [[0, 2], [0, 0], "abc", {"a": 1}, np.eye(2), np.array([0.0, 1.0]), [[0]], None])
def test_what_is_no_class_order_is_refused(value, tmp_path):
    (tmp_path / "order.pkl").write_bytes(pickle.dumps(value, 2))
    with pytest.raises(UsageError, match=r"order\.pkl: .*(class order|damaged)"):
        read_order(tmp_path / "order.pkl")


def refusal(read, path, data=None):
    """What a user is told of a file, in one line after its name."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError) as refused:
        read(path)
    assert authors_modules() == []
    start, line = f"{path}: ", str(refused.value)
    assert line.startswith(start)
    assert "\n" not in line
    return line.removeprefix(start)


class Evil:
    """Unpickling it runs a command that leaves a file."""

    def __init__(self, call, argument):
        self.reduced = call, (argument,)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("call", [os.system, eval, getattr, importlib.import_module, torch.load])
@pytest.mark.parametrize("where", ["old", "zip", "order 0", "order 2", "order 4"])
def test_a_pickle_that_tries_to_run_code_is_refused_and_nothing_ran(call, where, tmp_path):
    mark, path, read = tmp_path / "ran", tmp_path / "m.pth", read_order
    evil = {"a": [(Evil(call, f"touch {mark}" if call is os.system else f"open({str(mark)!r}, 'w')"),)]}
    if where.startswith("order"):
        path.write_bytes(pickle.dumps(evil, int(where[-1])))
    else:
        read = read_network
        with stand_ins():
            module = make("resnet_cifar", 1, 4)
            module.surprise = evil
            save(module, path, where == "old")
    assert re.match(r"refused: it asks for '[\w.]+'", refusal(read, path))
    assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"(S'touch x'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch x'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x07touch x\x85R.",
        b"ctorch.nn.modules.conv\nConv2d\n(S'x'\ntR.",  # a known module, called with something
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n)\x81.",  # a known function, as a class
        b"\x80\x02cnumpy\ndtype\n)\x81.",
        b"\x80\x02ctorch.nn.modules.conv\nConv2d\nK\x01\x85\x81.",  # a module with arguments
        *(  # setting what is not ours to set: else it would be so for the next file, too
            b"\x80\x02c%b\n%bb." % (name, state)
            for name in (b"numpy\ndtype", b"numpy\nndarray", b"torch.nn.modules.conv\nConv2d",
                         b"collections\nOrderedDict", b"torch\nFloatStorage", b"torch._utils\n_rebuild_parameter")
            for state in (b"}X\x01\x00\x00\x00aK\x01s", b"N}X\x01\x00\x00\x00aK\x01s\x86")
        ),
        b"\x82\x01.",  # extension registry
        b"P1\n.",
        b"\x80\x02K\x01\x80\x02.",
        b"N0N.",
        b".",
    ],
)  # fmt: skip
def test_crafted_pickles_are_refused(program):
    for read in (lambda: Reader(program).load(), lambda: TorchReader(program, 0, 100).load()):
        with pytest.raises(PickleError, match=r"refused|truncated|damaged"):
            read()


@pytest.mark.parametrize("old", [True, False])
def test_truncated_files_are_refused(old, tmp_path):
    with stand_ins():
        whole = saved(make("resnet_cifar", 1, 4), old)
    for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.9999):
        data = whole[: int(share * len(whole))]
        assert re.match("truncated|not a file|damaged", refusal(read_network, tmp_path / "m.pth", data))


def archive(files, packed=zipfile.ZIP_STORED):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as writer:
        for name, content in files.items():
            writer.writestr(name, content, packed if name.endswith("byteorder") else zipfile.ZIP_STORED)
    return target.getvalue()


def saved(value, old):
    target = io.BytesIO()
    torch.save(value, target, _use_new_zipfile_serialization=not old)
    return target.getvalue()


BOMB = {"archive/byteorder": bytes(10**7), "archive/data.pkl": pickle.dumps(1, 2)}
OTHERS = {
    "missing": (None, "cannot be read"),
    "empty": (b"", "the file is empty"),
    "html": (b"<!DOCTYPE html><html>", "an HTML page, not a checkpoint"),
    "text": (b"hello", "not a file that torch.save wrote"),
    "plain pickle": (pickle.dumps([1, 2]), "not a file that torch.save wrote"),
    "no network, old": (saved({"a": torch.ones(2)}, True), "holds a dict, not a network"),
    "no network, zip": (saved({"a": torch.ones(2)}, False), "holds a dict, not a network"),
    "another network": (saved(torch.nn.Sequential(), True), r"holds a torch\.nn\.modules\.container\.Sequential"),
    "double": (saved(torch.nn.BatchNorm2d(2).double(), True), r"asks for 'torch\.DoubleStorage'"),
    "another archive": (archive({"a.txt": "a"}), r"zip archive, but not one that torch\.save wrote"),
    "two pickles": (archive({"a/data.pkl": "a", "a/DATA.pkl": "b"}), r"not one that torch\.save wrote"),
    "compressed": (archive(BOMB, zipfile.ZIP_DEFLATED), "byteorder is compressed"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_refused(kind, tmp_path):
    data, message = OTHERS[kind]
    assert re.search(message, refusal(read_network, tmp_path / "m.pth", data))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (0, (10**9,), (0,)), (-1, (2,), (1,)), (0, (2,), ()), (0, (2.5,), (1,)),
     (0, (2**40, 0), (1, 1)), (0, [2], [1])],
)  # fmt: skip
def test_a_tensor_that_is_not_inside_its_storage_is_refused(offset, size, stride):
    with pytest.raises((PickleError, RuntimeError)):
        rebuild_tensor(Numbers(torch.zeros(4)), offset, size, stride)


def parameter(*shape):
    return torch.nn.Parameter(torch.ones(shape))


CHANGES = {  # part of a network, its attribute and what it is set to (a function makes it from the network) -> message
    "bias": ("layer1.0.conv1", "bias", parameter(16), r"Unexpected key.*blocks\.0\.conv1\.bias"),
    "mtl_bias": ("conv1", "mtl_bias", parameter(16), r"Unexpected key.*conv1\.mtl_bias"),
    "shape": ("layer1.0.conv1", "weight", parameter(16, 8, 3, 3), r"\[16, 8, 3, 3\]"),
    "factor shape": ("conv1", "mtl_weight", parameter(16, 1, 1, 1), r"conv1\.factor.*\[16, 1, 1, 1\]"),
    "stride": ("layer1.0.conv1", "stride", (2, 2), r"layer1\.0\.conv1\.stride is \(2, 2\), ours is \(1, 1\)"),
    "padding": ("conv1", "padding", (0, 0), r"conv1\.padding is \(0, 0\)"),
    "last relu": ("layer3.2", "last", False, "last is False, ours is True"),
    "early last": ("layer1.0", "last", True, "last is True, ours is False"),
    "eps": ("bn1", "eps", 1e-3, r"bn1\.eps is 0\.001"),
    "depth": ("", "layer1", lambda n: n.layer1[:2], "stages have 2 blocks, known are 1, 3, 5, 9"),
    "fewer blocks": ("", "layer2", lambda n: n.layer2[:2], r"Missing key.*blocks\.5\."),
    "more blocks": ("layer2", "3", lambda n: n.layer2[2], r"Unexpected key.*layer2\.3\."),
    "another shortcut": ("layer1.0", "downsample", lambda n: n.layer2[0].downsample, r"0\.shortcut"),
    "the same twice": ("layer2.0", "shortcut", lambda n: n.layer2[0].downsample, "two tensors that would be one"),
    "more parts": ("", "extra", torch.nn.ReLU(), "extra.* is a ReLU, known is no such part"),
    "fewer parts": ("", "bn1", None, r"Missing key.*bn1\.weight"),
    "no pooling": ("", "avgpool", None, "no avgpool"),
    "no weights": ("bn1", "weight", None, r"Missing key.*bn1\.weight"),
    "pooling": ("avgpool", "kernel_size", 4, r"avgpool\.kernel_size is 4, ours is 8"),
    "own sigma": ("fc.fc1", "sigma", parameter(1), r"Unexpected key.*classifier\.old_sigma"),
    "no sigma": ("fc", "sigma", None, r"Missing key.*classifier\.sigma"),
    "new head": ("fc.fc2", "weight", parameter(2, 63), r"\[2, 63\]"),
    "old head": ("", "fc", lambda n: type(n.fc)(63, 4, 2), "classifier is for 63 features"),
    "another layer": ("", "fc", torch.nn.ReLU(), "classifier"),
    "another convolution": ("conv1", "__class__", torch.nn.Conv2d, r"conv1.* is a Conv2d, known is Conv2dMtl"),
    "hooks": ("bn1", "_forward_hooks", {1: 2}, "hooks"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_our_network_cannot_express_is_refused(change, tmp_path):
    part, name, value, message = CHANGES[change]
    with stand_ins():
        network = make("resnetmtl_cifar", 3, 4, 2)
        setattr(network.get_submodule(part), name, value(network) if isinstance(value, types.LambdaType) else value)
        path = save(network, tmp_path / "m.pth", True)
    assert re.search(message, refusal(read_network, path))
