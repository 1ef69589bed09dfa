"""ResNet-18 for images of 224x224 pixels (He et al. 2016, section 4.1), as class-incremental learning uses it.

It differs from the original as the networks for small images do (`resnet_cifar.py`): no ReLU after the last block, and
a cosine classifier that grows from phase to phase.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.models.resnet_cifar import CifarResNet

DEPTHS = {"resnet18": 2}  # name -> basic blocks per stage
CHANNELS = (64, 128, 256, 512)


class ImageNetResNet(CifarResNet):
    """A 7x7 convolution and max pooling, four stages of basic blocks with 64 to 512 channels, the rest as for small
    images; `features` gives [n, 512]."""

    channels = CHANNELS

    def first_convolution(self) -> nn.Conv2d:
        return nn.Conv2d(3, self.channels[0], 7, stride=2, padding=3, bias=False)

    def stem(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, 64, h / 4, w / 4]."""
        return F.max_pool2d(super().stem(x), 3, stride=2, padding=1)
