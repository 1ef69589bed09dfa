"""ResNet-18 for images of 224x224 pixels (He et al. 2016, section 4.1), as class-incremental learning uses it.

It differs from the original as the networks for small images do (`resnet_cifar.py`): no ReLU after the last block, and
a cosine classifier that grows from phase to phase.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.models.layers import Classifier, CosineLinear, conv_bn
from mnemonics.models.resnet_cifar import basic_blocks, init_convolutions

DEPTHS = {"resnet18": 2}  # name -> basic blocks per stage
CHANNELS = (64, 128, 256, 512)


class ImageNetResNet(nn.Module):
    """A 7x7 convolution and max pooling, four stages of basic blocks with 64 to 512 channels, global average pooling
    and a cosine classifier.

    Maps normalised images, float [n, 3, h, w], to logits [n, classes]; `features` gives [n, 512].
    """

    num_features = CHANNELS[-1]

    def __init__(self, blocks_per_stage: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, CHANNELS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        self.blocks = basic_blocks(CHANNELS, blocks_per_stage)
        self.classifier: Classifier = CosineLinear(self.num_features, num_classes)
        init_convolutions(self)

    def features(self, x: Tensor) -> Tensor:
        """Features [n, 512] before the classifier, not normalised."""
        x = F.relu(conv_bn(x, self.conv1, self.bn1), inplace=True)  # (n, 64, h / 2, w / 2)
        x = self.blocks(F.max_pool2d(x, 3, stride=2, padding=1))  # (n, 512, h / 32, w / 32)
        return F.adaptive_avg_pool2d(x, 1).flatten(1).to(self.bn1.weight.dtype)  # (n, 512), float32 under autocast too

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
