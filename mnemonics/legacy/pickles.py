"""The names that pickles of whole PyTorch modules may use, and what stands for them: modules become records."""

from collections.abc import Callable
from typing import Any

import torch

from mnemonics.data.pickles import ARRAYS, Machine, Name, described, plain
from mnemonics.legacy.records import LegacyError, ModuleRecord, StorageView, TensorRecord

DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
STORAGES = {f"{module}.{k}Storage": dtype for module in ("torch", "torch.cuda") for k, dtype in DTYPES.items()}
MODULES = frozenset(
    "models.modified_resnet.ResNet models.modified_resnet.BasicBlock "
    "models.modified_resnet_cifar.ResNet models.modified_resnet_cifar.BasicBlock "
    "models.modified_resnetmtl.ResNetMtl models.modified_resnetmtl.BasicBlockMtl "
    "models.modified_resnetmtl_cifar.ResNetMtl models.modified_resnetmtl_cifar.BasicBlockMtl "
    "models.modified_linear.CosineLinear models.modified_linear.SplitCosineLinear "
    "utils.conv2d_mtl.Conv2dMtl utils.incremental.conv2d_mtl.Conv2dMtl "
    "torch.nn.modules.conv.Conv2d torch.nn.modules.batchnorm.BatchNorm2d torch.nn.modules.activation.ReLU "
    "torch.nn.modules.container.Sequential "
    "torch.nn.modules.pooling.AvgPool2d torch.nn.modules.pooling.MaxPool2d".split()
)


def rebuild_tensor(view: StorageView, offset: int, size: tuple, stride: tuple, *_: object) -> TensorRecord:
    if not isinstance(view, StorageView):
        raise LegacyError("damaged: a tensor without a storage")
    return TensorRecord(view, offset, tuple(size), tuple(stride))


def rebuild_parameter(data: TensorRecord, *_: object) -> TensorRecord:
    return data


def ordered_dict(items: Any = ()) -> dict[Any, Any]:
    items = list(items.items() if type(items) is dict else items)
    return dict(zip(plain(key for key, _ in items), (value for _, value in items), strict=True))


def plain_set(items: Any = ()) -> set[Any]:
    return set(plain(items))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch.nn.parameter.Parameter": rebuild_parameter,  # PyTorch 0.4.0
    "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,  # in every module up to PyTorch 1.3
    "collections.OrderedDict": ordered_dict,
    "builtins.set": plain_set,
    "__builtin__.set": plain_set,
}


class TorchMachine(Machine):
    """Carries out one pickle of PyTorch. `persistent` is given what the pickle says of things stored outside it, as a
    tuple: classes and storages."""

    functions = ARRAYS | FUNCTIONS
    names = Machine.names | MODULES | STORAGES.keys()

    def __init__(self, persistent: Callable[[Any], Any]):
        super().__init__()
        self.persistent = persistent

    def do_BINPERSID(self, _: None) -> None:
        (what,) = self.pop(1)
        self.stack.append(self.persistent(what))

    def do_NEWOBJ(self, _: None) -> None:
        name, arguments = self.pop(2)
        if not isinstance(name, Name) or name.full not in MODULES or arguments != ():
            raise LegacyError(f"refused: it makes an object of {described(name)}, which is no known module")
        self.stack.append(ModuleRecord(name.full))

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, ModuleRecord):
            target.set_state(state)
        else:
            super().build(target, state)
