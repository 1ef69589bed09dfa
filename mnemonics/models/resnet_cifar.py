"""The residual networks for small images (He et al. 2016, section 4.2), as class-incremental learning uses them.

They differ from the originals in three ways: the last block ends without a ReLU, so that features can be negative and
cosines use the whole sphere; shortcuts that change the shape are 1x1 convolutions; the classifier is a cosine one that
grows from phase to phase.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.models.layers import Classifier, CosineLinear, conv_bn

DEPTHS = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet56": 9}  # name -> basic blocks per stage
CHANNELS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [n, channels_in, h, w] -> [n, channels, h / stride, w / stride]."""

    def __init__(self, channels_in: int, channels: int, stride: int, final_relu: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()  # the identity, unless the shape changes
        if channels_in != channels or stride != 1:
            self.shortcut.extend([nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)])
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> Tensor:
        shortcut = conv_bn(x, *self.shortcut) if len(self.shortcut) else x
        out = F.relu(conv_bn(x, self.conv1, self.bn1), inplace=True)  # in place: a third fewer activations are kept
        out = conv_bn(out, self.conv2, self.bn2).add_(shortcut)
        return F.relu(out, inplace=True) if self.final_relu else out


def basic_blocks(stages: Sequence[int], blocks_per_stage: int) -> nn.Sequential:
    """Stages of basic blocks with these numbers of channels, the first of which is what comes in. Every stage but the
    first halves height and width; the very last block has no final ReLU."""
    blocks, channels_in = [], stages[0]
    for stage, channels in enumerate(stages):
        for index in range(blocks_per_stage):
            last = stage == len(stages) - 1 and index == blocks_per_stage - 1
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(BasicBlock(channels_in, channels, stride, final_relu=not last))
            channels_in = channels
    return nn.Sequential(*blocks)


class CifarResNet(nn.Module):
    """Three stages of basic blocks with 16, 32 and 64 channels, then global average pooling and a cosine classifier.

    Maps normalised images, float [n, 3, h, w], to logits [n, classes]; `features` gives [n, 64].
    """

    channels: Sequence[int] = CHANNELS

    def __init__(self, blocks_per_stage: int, num_classes: int):
        super().__init__()
        self.conv1 = self.first_convolution()
        self.bn1 = nn.BatchNorm2d(self.channels[0])
        self.blocks = basic_blocks(self.channels, blocks_per_stage)
        self.classifier: Classifier = CosineLinear(self.channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # He et al. 2015

    def first_convolution(self) -> nn.Conv2d:
        return nn.Conv2d(3, self.channels[0], 3, padding=1, bias=False)

    def stem(self, x: Tensor) -> Tensor:
        """What comes before the blocks: [n, 3, h, w] -> [n, 16, h, w]."""
        return F.relu(conv_bn(x, self.conv1, self.bn1), inplace=True)

    def features(self, x: Tensor) -> Tensor:
        """Features [n, d] before the classifier, not normalised."""
        x = self.blocks(self.stem(x))  # (n, d, h', w'), smaller than the stem's by a factor of two for each later stage
        return x.mean((2, 3), dtype=self.conv1.weight.dtype)  # (n, d), float32 under autocast too

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
