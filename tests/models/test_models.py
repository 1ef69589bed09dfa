"""Networks and cosine classifiers."""

import copy

import pytest
import torch
from torch import nn

from mnemonics.models import make_network, restore_network
from mnemonics.models.layers import BiasCorrected, CosineLinear, ScaledConv2d, conv_bn, grown, use_weight_transfer
from mnemonics.models.resnet_cifar import DEPTHS

CPU = torch.device("cpu")


def test_resnet32_is_the_network_of_the_paper():
    model = make_network("resnet32", 50, CPU)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 31  # and a classifier: 32 layers
    assert sum(m.kernel_size == (1, 1) for m in convolutions) == 2  # shortcuts where the shape changes
    parameters = sum(p.numel() for p in model.parameters())
    # stem + stages + shortcuts + BatchNorm (2 per channel) + cosine classifier and sigma, by hand:
    stem = 3 * 16 * 9
    stages = 10 * 16 * 16 * 9 + (16 * 32 + 9 * 32 * 32) * 9 + (32 * 64 + 9 * 64 * 64) * 9
    shortcuts = 16 * 32 + 32 * 64
    norms = 2 * (16 * 11 + 32 * 11 + 64 * 11)
    assert parameters == stem + stages + shortcuts + norms + 50 * 64 + 1


@pytest.mark.parametrize("stride", [1, 2])
def test_folded_batch_norm_is_batch_norm(stride):
    """Values and the gradients of everything, second order included, against the layers one after the other."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride, padding=1, bias=False).double()
    bn = nn.BatchNorm2d(4).double()
    nn.init.normal_(bn.weight), nn.init.normal_(bn.bias)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(conv_bn(x, conv, bn), bn(conv(x)))  # training mode: the statistics of the batch
    bn.eval()
    inputs = [x, conv.weight, bn.weight, bn.bias]

    def derivatives(y):
        first = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
        return [y, *first, *torch.autograd.grad(sum((g**2).sum() for g in first), inputs)]

    for folded, plain in zip(derivatives(conv_bn(x, conv, bn)), derivatives(bn(conv(x))), strict=True):
        assert torch.allclose(folded, plain, rtol=1e-9)


@pytest.mark.parametrize("name", DEPTHS)
def test_depth_is_in_the_name(name):
    layers = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in make_network(name, 5, CPU).modules()) + 1
    assert name == f"resnet{layers}"


def test_cosine_logits_by_hand():
    layer = CosineLinear(2, 2)
    assert layer.sigma.item() == 1
    layer.weight.data = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    layer.sigma.data.fill_(3.0)
    logits = layer(torch.tensor([[0.0, 5.0]]))
    assert torch.allclose(logits, torch.tensor([[0.0, 3 / 2**0.5]]))


def test_growing_keeps_the_logits_of_old_classes_and_sigma():
    layer, x = CosineLinear(8, 3), torch.randn(5, 8)
    layer.sigma.data.fill_(4.0)
    once = grown(layer, 2)
    twice = grown(once, 4)
    assert torch.allclose(once(x)[:, :3], layer(x))
    assert torch.allclose(twice(x)[:, :5], once(x))
    assert (len(twice.old_weight), len(twice.new_weight)) == (5, 4)
    assert twice.sigma.item() == 4.0
    assert {name for name, _ in twice.named_parameters()} == {"old_weight", "new_weight", "sigma"}


def test_last_block_has_no_final_relu_and_all_others_do():
    flags = [block.final_relu for block in make_network("resnet20", 5, CPU).blocks]
    assert flags == [True] * 8 + [False]


@pytest.mark.parametrize("training", [True, False])
def test_weight_transfer_starts_as_the_network_it_was(training):
    torch.manual_seed(0)
    model, x = make_network("resnet8", 5, CPU).train(training), torch.randn(3, 3, 16, 16)
    scaled = copy.deepcopy(model)
    use_weight_transfer(scaled)
    assert torch.equal(scaled(x), model(x))
    convolutions = [m for m in scaled.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 9
    assert all(isinstance(m, ScaledConv2d) for m in convolutions)


@pytest.mark.parametrize("training", [True, False])
def test_weight_transfer_scales_channel_pairs_and_trains_nothing_else_of_a_convolution(training):
    conv, bn = nn.Conv2d(2, 3, 3, 2, padding=1, bias=False), nn.BatchNorm2d(3).train(training)
    scaled, x = ScaledConv2d.of(conv), torch.randn(4, 2, 5, 5)
    assert scaled.factor.shape == (3, 2, 1, 1)
    assert [name for name, p in scaled.named_parameters() if p.requires_grad] == ["factor"]
    nn.init.normal_(scaled.factor)
    by_hand = copy.deepcopy(conv)
    with torch.no_grad():
        for out in range(3):
            for channel in range(2):
                by_hand.weight[out, channel] *= scaled.factor[out, channel, 0, 0]
    assert torch.allclose(scaled(x), by_hand(x), atol=1e-6)
    assert torch.allclose(conv_bn(x, scaled, bn), conv_bn(x, by_hand, bn), atol=1e-5)
    conv_bn(x, scaled, bn).square().sum().backward()
    assert scaled.factor.grad.abs().sum() > 0
    assert scaled.weight.grad is None


def test_weight_transfer_carries_on_from_phase_to_phase():
    model = make_network("resnet8", 5, CPU)
    use_weight_transfer(model)
    nn.init.constant_(model.conv1.factor, 3.0)
    use_weight_transfer(model)
    assert (model.conv1.factor == 3).all()
    assert type(model.conv1) is ScaledConv2d


def test_bias_correction_scales_and_shifts_the_logits_of_a_phase():
    corrected, x = BiasCorrected(grown(CosineLinear(4, 3), 2)), torch.randn(6, 4)
    plain = corrected.classifier(x)
    assert torch.equal(corrected(x), plain)
    corrected.scale[3:], corrected.shift[3:] = 2.0, -1.0
    assert torch.allclose(corrected(x), torch.cat([plain[:, :3], 2 * plain[:, 3:] - 1], dim=1))
    later = grown(corrected, 1)
    assert torch.allclose(later(x)[:, :5], corrected(x))
    assert later.scale.tolist() == [1, 1, 1, 2, 2, 1]
    assert later.shift.tolist() == [0, 0, 0, -1, -1, 0]
    assert {name for name, _ in later.named_parameters()} == {
        f"classifier.{n}" for n in ("old_weight", "new_weight", "sigma")
    }


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("phases", [0, 2])
def test_every_network_is_restored_from_its_weights(scaled, corrected, phases):
    torch.manual_seed(1)
    model, x = make_network("resnet8", 4, CPU).eval(), torch.randn(2, 3, 16, 16)
    if corrected:
        model.classifier = BiasCorrected(model.classifier)
        nn.init.uniform_(model.classifier.scale)
    for _ in range(phases):
        model.classifier = grown(model.classifier, 3)
    if scaled:
        use_weight_transfer(model)
        nn.init.uniform_(model.conv1.factor)
    restored = restore_network("resnet8", model.state_dict(), CPU).eval()
    assert torch.equal(restored(x), model(x))
    assert restored.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    trainable = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, restored)]
    assert trainable[0] == trainable[1]
