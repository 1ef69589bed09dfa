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
from torch.utils.data import DataLoader
from torchvision import transforms

from mnemonics.baselines.base import Baseline
from mnemonics.data.batches import LabelledImages
from mnemonics.data.scenario import Scenario


class Plain:
    """The pieces of a run, with a copy of the network whose weights are contiguous."""

    def __init__(self, scenario: Scenario, model: nn.Module, baseline: Baseline):
        self.scenario, self.config, self.device = scenario, scenario.config, scenario.device
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        self.baseline, self.optimizer = baseline, self.sgd(baseline)
        self.accuracies: list[list[float]] = []  # of `protocol`: CNN and NME, percent, after each phase

    def sgd(self, baseline: Baseline) -> torch.optim.SGD:
        """The optimiser of a phase."""
        momentum, decay = self.config.custom_momentum, self.config.custom_weight_decay
        return torch.optim.SGD(baseline.parameters(self.model), self.config.base_lr, momentum, weight_decay=decay)

    def loader(self, data: LabelledImages, training: bool = False) -> DataLoader:
        """Batches of `data`; for training, shuffled, padded, cropped and mirrored at random."""
        source, size = self.scenario.source, self.config.eval_batch_size
        steps = [transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
        if training:
            mirror = [transforms.RandomHorizontalFlip()] if source.mirror else []
            steps = [transforms.RandomCrop(source.image_size, source.crop_padding), *mirror, *steps]
            size = self.config.train_batch_size
        transform = transforms.Compose([Image.fromarray, *steps])

        def stacked(samples: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
            images, labels = zip(*samples, strict=True)
            return torch.stack([transform(image) for image in images]), torch.tensor(labels)

        images = data.images.permute(0, 2, 3, 1).cpu().numpy()  # as torchvision's CIFAR100 holds them
        samples = list(zip(images, data.labels.tolist(), strict=True))
        return DataLoader(samples, size, shuffle=training, num_workers=2, collate_fn=stacked)

    def train_epoch(self, data: LabelledImages) -> float:
        """An epoch of `data`. Returns the sum of the losses."""
        self.model.train()
        total = 0.0
        for images, labels in self.loader(data, training=True):
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.baseline.loss(self.model, images, labels)
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total

    @torch.no_grad()
    def features(self, data: LabelledImages) -> np.ndarray:
        """float32 [n, d]."""
        self.model.eval()
        return np.concatenate([self.model.features(x.to(self.device)).cpu().numpy() for x, _ in self.loader(data)])

    def select(self, data: LabelledImages, per_class: int) -> list[int]:
        """Indices of the exemplars of each class in `data`, features computed class by class."""
        chosen: list[int] = []
        for label in data.labels.unique().tolist():
            members = (data.labels == label).nonzero().flatten()
            picked = herding(self.features(data[members]), per_class)
            chosen += members[torch.tensor(picked)].tolist()
        return chosen

    def evaluate(self, exemplars: LabelledImages, test: LabelledImages) -> list[float]:
        """CNN and NME accuracy in percent."""
        return [self.cnn_accuracy(test), self.nme_accuracy(exemplars, test)]

    @torch.no_grad()
    def cnn_accuracy(self, test: LabelledImages) -> float:
        """Percent."""
        self.model.eval()
        batches = self.loader(test)
        right = sum((self.model(x.to(self.device)).argmax(1).cpu() == labels).sum().item() for x, labels in batches)
        return 100 * right / len(test)

    def nme_accuracy(self, exemplars: LabelledImages, test: LabelledImages) -> float:
        """Percent by the nearest mean of exemplars, a mean of images and mirror images for each class."""
        test_features, means = self.features(test), []
        for label in exemplars.labels.unique().tolist():
            own = exemplars[exemplars.labels == label]
            sums = np.zeros(test_features.shape[1])
            for images in (own.images, own.images.flip(3)):
                for feature in self.features(LabelledImages(images, own.labels)):
                    sums += feature / np.linalg.norm(feature)
            means.append(sums / np.linalg.norm(sums))
        predicted = (test_features @ np.stack(means).T).argmax(1)
        return float(100 * (predicted == test.labels.cpu().numpy()).mean())

    def protocol(self) -> None:
        """All phases with herding exemplars, the test set evaluated after each epoch."""
        memory = None
        for phase in self.scenario.protocol.phases:
            new, test = self.scenario.train_data([phase]), self.scenario.test_data(phase)
            self.baseline.begin_phase(self.model, phase, new, self.scenario.prep)
            self.model.to(memory_format=torch.contiguous_format)
            self.optimizer, epochs = self.sgd(self.baseline), self.config.epochs
            schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [epochs // 2, epochs * 3 // 4])
            for _ in range(epochs):
                self.train_epoch(new if memory is None else new.followed_by(memory))
                schedule.step()
                self.cnn_accuracy(test)
            kept = new[torch.tensor(self.select(new, self.config.nb_protos))]
            memory = kept if memory is None else memory.followed_by(kept)
            self.accuracies.append(self.evaluate(memory, test))
            print(f"  plain, phase {phase.index}: CNN and NME accuracy {self.accuracies[-1]}%", flush=True)


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
