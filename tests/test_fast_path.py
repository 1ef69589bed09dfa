"""The training step of the fast path (batched augmentation, channels-last, CUDA graphs, bf16) against a plain one."""

import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from contexts import PROTOCOL, resolved
from torchvision.transforms import functional as transforms

from mnemonics import training
from mnemonics.baselines import BASELINES
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, Preprocessing, ResidentBatches
from mnemonics.engine import cuda_graphs
from mnemonics.engine import device as runtime
from mnemonics.models import make_network

STEPS, BATCH = 20, 32
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU = torch.device("cpu")


@pytest.fixture
def cuda():
    """A CUDA device, as a run has it."""
    runtime.prepare(torch.device("cuda"), deterministic=False)
    yield torch.device("cuda")
    runtime.prepare(CPU, deterministic=False)  # what all other tests run with


def images(n=STEPS * BATCH, classes=5, device=CPU):
    """Each class is one colour, with noise."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (n,), generator=draws)
    colours = torch.randint(40, 216, (classes, 3, 1, 1), generator=draws)
    pixels = colours[labels] + torch.randint(-40, 41, (n, 3, 16, 16), generator=draws)
    return LabelledImages(pixels.to(torch.uint8).to(device), labels.to(device))


def preprocessing(device=CPU):
    return Preprocessing(
        torch.tensor([0.5, 0.4, 0.6], device=device), torch.tensor([0.2, 0.25, 0.3], device=device), 2, True
    )


def network(device=CPU):
    torch.manual_seed(0)
    return make_network("resnet8", 5, device)


def fast_losses(config, device=CPU, name="lwf", phases=1, steps=STEPS):
    """Losses of the first steps of the last of `phases` phases, as `train_phase` takes them; and the network."""
    model, baseline = network(device).to(memory_format=torch.channels_last), BASELINES[name](resolved(config))
    data = images(device=device)
    for phase in PROTOCOL.phases[:phases]:
        new = images(20, device=device)
        new.labels.fill_(phase.seen - 1)
        baseline.begin_phase(model, phase, new, preprocessing(device))
    model.train()
    batches = ResidentBatches(data, preprocessing(device))
    _, step = training.sgd_step(model, baseline, batches, config)
    draws = itertools.islice(batches.epoch([BATCH] * STEPS, torch.Generator(device).manual_seed(1)), steps)
    return torch.stack([step(*draw).clone() for draw in draws]).cpu(), model


def plain_losses(config, steps):
    """The same in the plainest way: image by image through torchvision's transforms, contiguous, torch's SGD."""
    model, data, prep = network().train(), images(), preprocessing()
    optimizer = torch.optim.SGD(
        model.parameters(), config.base_lr, config.custom_momentum, 0, config.custom_weight_decay
    )
    losses = []
    draws = ResidentBatches(data, prep).epoch([BATCH] * STEPS, torch.Generator().manual_seed(1))
    for index, top, left, mirrored in itertools.islice(draws, steps):
        batch = []
        for i, y, x, mirror in zip(index.tolist(), top.tolist(), left.tolist(), mirrored.tolist(), strict=True):
            picture = transforms.to_pil_image(data.images[i])
            picture = transforms.crop(transforms.pad(picture, 2), y, x, 16, 16)
            picture = transforms.hflip(picture) if mirror else picture
            batch.append(transforms.normalize(transforms.to_tensor(picture), prep.mean.tolist(), prep.std.tolist()))
        loss = F.cross_entropy(model(torch.stack(batch)), data.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), model


def test_losses_and_weights_are_those_of_the_plain_pipeline():
    config = ExperimentConfig(base_lr=0.05)
    fast, plain = fast_losses(config)[0], plain_losses(config, STEPS)[0]
    assert plain[-1] < 0.9 * plain[0]
    assert torch.allclose(fast[:3], plain[:3], rtol=1e-4)
    assert torch.allclose(fast, plain, rtol=1e-2)  # rounding grows from step to step
    weights, reference = (losses(config, steps=2)[1].state_dict() for losses in (fast_losses, plain_losses))
    for name, value in reference.items():
        assert torch.allclose(weights[name], value, rtol=1e-3, atol=1e-4), name


def test_bf16_is_close_and_keeps_weights_and_statistics_in_float32():
    (low, model), (full, _) = (fast_losses(ExperimentConfig(base_lr=0.05, amp=amp)) for amp in ("on", "off"))
    assert not torch.equal(low, full)
    assert (low - full).abs().max() < 0.1
    assert low.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = model.features(preprocessing().plain(images(8).images))
    assert not torch.equal(features, features.bfloat16().float())  # pooled in float32
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}


def test_cpu_runs_in_float32_unless_asked():
    (auto, _), (off, _) = (fast_losses(ExperimentConfig(amp=amp)) for amp in ("auto", "off"))
    assert torch.equal(auto, off)


def test_without_a_gpu_a_function_is_not_captured():
    assert cuda_graphs.as_graph(len, list, enabled=False) is len


@pytest.mark.parametrize(("name", "defaults"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_the_chosen_gpu_is_the_default_one_where_graphs_are_captured(name, defaults, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    runtime.prepare(torch.device(name), deterministic=False)
    assert (chosen, torch.backends.cudnn.benchmark) == (defaults, name != "cpu")
    runtime.prepare(CPU, deterministic=False)  # what all other tests run with


def test_each_size_of_a_batch_is_captured_once(monkeypatch):
    captures = []

    class Recording:
        def __init__(self, function, example, changed, other):
            captures.append((tuple(t.shape for t in example), changed, other and other.number))
            self.function, self.number = function, len(captures)

        def __call__(self, *inputs):
            return "captured", self.function(*inputs)

    monkeypatch.setattr(cuda_graphs, "Captured", Recording)
    call = cuda_graphs.as_graph(torch.sum, lambda: ["weights"], enabled=True)
    assert [call(torch.ones(n)) for n in (3, 2, 3, 4, 2)] == [("captured", n) for n in (3, 2, 3, 4, 2)]
    assert captures == [((torch.Size([n]),), ["weights"], first) for n, first in ((3, None), (2, 1), (4, 1))]


@needs_cuda
@pytest.mark.parametrize(("name", "phases"), [("lwf", 1), ("lwf", 2), ("lucir", 2), ("bic", 2), ("joint", 2)])
def test_cuda_graphs_take_the_steps_of_the_eager_path(name, phases, monkeypatch, cuda):
    """The first five of them: rounding errors grow from step to step."""
    config = ExperimentConfig(base_lr=0.05, amp="off", weight_transfer=phases > 1)
    graphed, model = fast_losses(config, cuda, name, phases, steps=5)
    monkeypatch.setattr(training, "as_graph", lambda function, changed, enabled: function)
    eager, reference = fast_losses(config, cuda, name, phases, steps=5)
    assert torch.allclose(graphed, eager, rtol=1e-3)
    for key, value in reference.state_dict().items():
        assert torch.allclose(model.state_dict()[key].float(), value.float(), rtol=1e-2, atol=1e-2), key


@needs_cuda
def test_other_threads_may_pin_memory_during_the_capture(cuda):
    over, work = threading.Event(), torch.ones(64, 64, device=cuda)

    def pin():
        while not over.is_set():
            torch.ones(1000).pin_memory()

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        graphs = [cuda_graphs.Captured(lambda x: (x @ x).sum(), (work,)) for _ in range(20)]
    finally:
        over.set()
        thread.join()
    assert all(graph(work).item() == 64**3 for graph in graphs)


@needs_cuda
def test_the_schedule_reaches_into_the_graph(cuda):
    config = ExperimentConfig(base_lr=0.05, amp="off")
    model, batches = network(cuda).train(), ResidentBatches(images(device=cuda), preprocessing(cuda))
    optimizer, step = training.sgd_step(model, BASELINES["lwf"](config), batches, config)
    draws = list(batches.epoch([BATCH] * STEPS, torch.Generator(cuda).manual_seed(1)))
    step(*draws[0])
    optimizer.set_rate(0.0)
    before = [p.clone() for p in model.parameters()]
    step(*draws[1])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@needs_cuda
def test_bf16_on_cuda_is_close(cuda):
    (low, _), (full, _) = (fast_losses(ExperimentConfig(base_lr=0.05, amp=a), cuda) for a in ("on", "off"))
    assert (low - full).abs().max() < 0.1
