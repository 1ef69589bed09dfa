"""The plain pipeline that benchmark.py compares with: what public code for this task commonly does.

Images go one by one through PIL and torchvision's transforms in a DataLoader with two workers; tensors are contiguous,
everything is eager float32, losses are read at each step, the test set is evaluated after every epoch, features are
computed class by class, and class means are averaged image by image. The mathematics is that of our baselines.
"""

import copy

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mnemonics.baselines.base import Baseline
from mnemonics.config.fields import ExperimentConfig
from mnemonics.experiment.state import Experiment

WORKERS = 2


class PlainDataset(Dataset):
    """Images as torchvision's CIFAR100 holds them: an array [n, h, w, 3], turned into PIL images one by one."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: transforms.Compose):
        self.data, self.targets = images.permute(0, 2, 3, 1).cpu().numpy(), labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.data[i])), self.targets[i]


def transform(experiment: Experiment, training: bool) -> transforms.Compose:
    """Padding, random crop and mirroring (training), then normalisation."""
    source = experiment.source
    steps = [transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
    if training:
        mirror = [transforms.RandomHorizontalFlip()] if source.mirror else []
        steps = [transforms.RandomCrop(source.image_size, source.crop_padding), *mirror, *steps]
    return transforms.Compose(steps)


def loader(experiment: Experiment, data, batch_size: int, training: bool = False, workers: int = WORKERS) -> DataLoader:
    """Batches of `data`, shuffled and augmented for training."""
    dataset = PlainDataset(data.images, data.labels, transform(experiment, training))
    return DataLoader(dataset, batch_size, shuffle=training, num_workers=workers)


def train_epoch(model: nn.Module, baseline: Baseline, optimizer, batches: DataLoader, device: torch.device) -> float:
    """One epoch, the baseline's loss on a network with contiguous weights. Returns the mean loss."""
    model.train()
    total = 0.0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = baseline.loss(model, images, labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(batches)


@torch.no_grad()
def features(model: nn.Module, batches: DataLoader, device: torch.device) -> np.ndarray:
    """float32 [n, d]."""
    model.eval()
    return np.concatenate([model.features(images.to(device)).cpu().numpy() for images, _ in batches])


@torch.no_grad()
def cnn_accuracy(model: nn.Module, batches: DataLoader, device: torch.device) -> float:
    """Percent."""
    model.eval()
    right = sum((model(images.to(device)).argmax(1).cpu() == labels).sum().item() for images, labels in batches)
    return 100 * right / len(batches.dataset)


def herding(class_features: np.ndarray, count: int) -> list[int]:
    """iCaRL's selection of one class as its pseudo-code has it: distances of all candidates anew for each exemplar."""
    unit = class_features / np.linalg.norm(class_features, axis=1, keepdims=True)
    mean, chosen = unit.mean(0), []
    for k in range(1, count + 1):
        total = unit[chosen].sum(0) if chosen else np.zeros_like(mean)
        distances = np.linalg.norm(mean - (total + unit) / k, axis=1)
        distances[chosen] = np.inf
        chosen.append(int(distances.argmin()))
    return chosen


def select(experiment: Experiment, model: nn.Module, data, per_class: int, batch_size: int) -> list[int]:
    """Indices of the exemplars of each class in `data`, features computed class by class."""
    chosen: list[int] = []
    for label in data.labels.unique().tolist():
        members = (data.labels == label).nonzero().flatten()
        batches = loader(experiment, data[members], batch_size)
        picked = herding(features(model, batches, experiment.device), per_class)
        chosen += members[torch.tensor(picked)].tolist()
    return chosen


def nme_accuracy(experiment: Experiment, model: nn.Module, exemplars, test, batch_size: int) -> float:
    """Percent by the nearest mean of exemplars, a mean of images and mirror images for each class."""
    device = experiment.device
    test_features = features(model, loader(experiment, test, batch_size), device)
    means = []
    for label in exemplars.labels.unique().tolist():
        own = exemplars[exemplars.labels == label]
        sums = np.zeros(test_features.shape[1])
        for images in (own.images, own.images.flip(3)):
            version = type(own)(images, own.labels)
            for feature in features(model, loader(experiment, version, batch_size), device):
                sums += feature / np.linalg.norm(feature)
        means.append(sums / np.linalg.norm(sums))
    predicted = (test_features @ np.stack(means).T).argmax(1)
    return float(100 * (predicted == test.labels.cpu().numpy()).mean())


def protocol(experiment: Experiment, baseline: Baseline, model: nn.Module) -> list[tuple[float, float]]:
    """All phases with herding exemplars. Returns (CNN, NME) accuracy in percent after each."""
    config, device = experiment.config, experiment.device
    memory, accuracies = None, []
    for phase in experiment.protocol.phases:
        new, test = experiment.train_data([phase]), experiment.test_data(phase)
        data = new if memory is None else new.followed_by(memory)
        baseline.begin_phase(model, phase, new, experiment.prep)
        model.to(memory_format=torch.contiguous_format)
        train_phase(experiment, baseline, model, data, test)
        kept = new[torch.tensor(select(experiment, model, new, config.nb_protos, config.eval_batch_size))]
        memory = kept if memory is None else memory.followed_by(kept)
        cnn = cnn_accuracy(model, loader(experiment, test, config.eval_batch_size), device)
        accuracies.append((cnn, nme_accuracy(experiment, model, memory, test, config.eval_batch_size)))
        print(f"  plain, phase {phase.index}: CNN {cnn:.2f}%, NME {accuracies[-1][1]:.2f}%", flush=True)
    return accuracies


def train_phase(experiment: Experiment, baseline: Baseline, model: nn.Module, data, test) -> None:
    """The epochs of one phase, the test set evaluated after each of them."""
    config: ExperimentConfig = experiment.config
    optimizer = sgd(model, baseline, config)
    drops = [config.epochs // 2, config.epochs * 3 // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
    batches = loader(experiment, data, config.train_batch_size, training=True)
    test_batches = loader(experiment, test, config.eval_batch_size)
    for _ in range(config.epochs):
        train_epoch(model, baseline, optimizer, batches, experiment.device)
        schedule.step()
        cnn_accuracy(model, test_batches, experiment.device)


def sgd(model: nn.Module, baseline: Baseline, config: ExperimentConfig) -> torch.optim.SGD:
    return torch.optim.SGD(
        baseline.parameters(model),
        config.base_lr,
        momentum=config.custom_momentum,
        weight_decay=config.custom_weight_decay,
    )


def contiguous(model: nn.Module) -> nn.Module:
    """A copy of the network with contiguous weights."""
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)
