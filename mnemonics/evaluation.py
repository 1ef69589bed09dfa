"""Features, class means and every accuracy that results.json holds. Percent, two decimals.

`evaluate` is step 6 of a phase; the other functions are its parts.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mnemonics.data.batches import LabelledImages, Preprocessing, plain_batches
from mnemonics.data.files import FileImages
from mnemonics.data.scenario import PhaseContext
from mnemonics.engine.device import peak_memory_bytes
from mnemonics.engine.distributed import gathered, is_main, world

Accuracies = dict[str, float]


def evaluate(
    context: PhaseContext, model: nn.Module, exemplars: LabelledImages | None, headline: str
) -> dict[str, dict | Tensor]:
    """Test `model` on the test images of all classes seen, without a task label.

    Args:
        exemplars: all that is stored of the classes seen, for NME; None, or none: there is no NME.
        headline: the classifier of the confusion matrix: "cnn", "nme" or, with --ncm, "ncm"; "cnn" where it is not
            measured.
    Returns:
        See `accuracies`; and "confusion": int64 [classes, classes], see `confusion_matrix`.
    """
    prep, batch_size, seen = context.prep, context.config.eval_batch_size, context.phase.seen
    sources = {"nme": exemplars} if exemplars else {}
    if context.config.ncm:
        sources["ncm"] = context.seen_data()
    means = {name: class_means(model, data, seen, prep, batch_size) for name, data in sources.items()}
    test = context.scenario.test_data(context.phase)
    predictions = {name: s.argmax(1) for name, s in scores(model, test.images, means, prep, batch_size).items()}
    origin = torch.from_numpy(context.scenario.protocol.phase_of_label()).to(test.labels.device)
    confusion = confusion_matrix(predictions.get(headline, predictions["cnn"]), test.labels, seen)
    return accuracies(predictions, test.labels, origin) | {"confusion": confusion}


def phase_result(context: PhaseContext, exemplars: LabelledImages, before: dict, after: dict, facts: dict) -> dict:
    """The entry of this phase in results.json: what `evaluate` gave before and after the fine-tuning, `facts`, and what
    is the same for every phase."""
    counts = torch.bincount(exemplars.labels, minlength=context.phase.seen)
    both = {
        key: after[key] | {f"{name}_before_finetune": value for name, value in before[key].items()}
        for key in ("accuracy", "phase0_accuracy")
    }
    return {
        "phase": context.phase.index,
        "classes_seen": context.phase.seen,
        "exemplars_per_class": {"min": int(counts.min()), "max": int(counts.max())},
        **both,
        "accuracy_by_phase_of_origin": after["by_origin"],
        "seconds": context.progress.seconds,
        "peak_memory_bytes": peak_memory_bytes(context.scenario.device),
        **facts,
    }


@torch.no_grad()
def features_of(
    model: nn.Module, images: Tensor | FileImages, prep: Preprocessing, batch_size: int, mirrored: bool = False
) -> Tensor:
    """Features float [n, d] of uint8 images [n, 3, h, w], or of their mirror images (width axis), in eval mode.

    Several processes share the work, batch by batch, so that none of them waits long for another; all get the result.
    """
    model.eval()
    batches = plain_batches(images, batch_size, prep.mean.device)
    size = batch_size * world()
    batches = tqdm(
        batches, "features", math.ceil(len(images) / size), leave=False, delay=1, disable=None if is_main() else True
    )
    batches = (batch.flip(3) if mirrored else batch for batch in batches)
    return torch.cat(
        [
            gathered(model.features(prep.plain(batch)), min(size, len(images) - number * size))
            for number, batch in enumerate(batches)
        ]
    )


def mean_features(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean L2-normalised feature of each class: [num_classes, d] from features [n, d] and labels int64 [n].

    Summed in class order by a matrix product, which is repeatable on every device.
    """
    members = F.one_hot(labels, num_classes).to(torch.float64)  # (n, classes)
    return members.T @ F.normalize(features.double(), dim=1) / members.sum(0)[:, None]


def class_means(
    model: nn.Module, data: LabelledImages, num_classes: int, prep: Preprocessing, batch_size: int
) -> Tensor:
    """The means of the nearest-mean classifier (iCaRL, Algorithm 1), float64 [num_classes, d].

    L2-normalised features are averaged over the images of a class and, where a mirrored image keeps its class, over
    their mirror images; the mean is normalised again. Every class must have an image in `data`.
    """
    versions = (False, True) if prep.mirror else (False,)
    means = [
        mean_features(features_of(model, data.images, prep, batch_size, mirrored), data.labels, num_classes)
        for mirrored in versions
    ]
    return F.normalize(torch.stack(means).mean(0), dim=1)


@torch.no_grad()
def scores(
    model: nn.Module, images: Tensor | FileImages, means: dict[str, Tensor], prep: Preprocessing, batch_size: int
) -> dict[str, Tensor]:
    """Scores [n, classes] of uint8 images: "cnn", the network output; for each set of means, which have unit length,
    the cosines between features and means."""
    features = features_of(model, images, prep, batch_size)
    directions = F.normalize(features.double(), dim=1)
    return {"cnn": model.classifier(features)} | {name: directions @ m.T for name, m in means.items()}


def accuracy_percent(predicted: Tensor, labels: Tensor) -> float:
    """Share of `predicted` [n] that equals `labels` [n], in percent with two decimals."""
    return round(100 * (predicted == labels).sum().item() / len(labels), 2)


def accuracies(predictions: dict[str, Tensor], labels: Tensor, phase_of_label: Tensor) -> dict[str, dict]:
    """Accuracy of each classifier over all test images, over those of phase-0 classes, and by phase of origin.

    Args:
        predictions: classifier name -> predicted labels int64 [n].
        labels: int64 [n].
        phase_of_label: int64 [num_classes], the phase in which each label was new.
    Returns:
        {"accuracy": {name: percent}, "phase0_accuracy": {name: percent}, "by_origin": {name: [percent per phase]}}.
    """
    origin = phase_of_label[labels]
    by_origin = {
        name: [accuracy_percent(p[origin == i], labels[origin == i]) for i in range(int(origin.max()) + 1)]
        for name, p in predictions.items()
    }
    return {
        "accuracy": {name: accuracy_percent(p, labels) for name, p in predictions.items()},
        "phase0_accuracy": {name: percents[0] for name, percents in by_origin.items()},
        "by_origin": by_origin,
    }


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """int64 [num_classes, num_classes]: how many images of the row's label were predicted as the column's.

    Args:
        predicted, labels: int64 [n], positions in the class order below `num_classes`.
    """
    pairs = torch.bincount((labels * num_classes + predicted).cpu(), minlength=num_classes**2)
    return pairs.view(num_classes, num_classes)


def summary(phases: list[dict]) -> dict[str, Accuracies]:
    """Over the phases of results.json so far, for each classifier (after fine-tuning):

    average_accuracy: mean over all phases, phase 0 included, of the accuracy on the test images of all classes seen;
    last_accuracy: that of the last phase;
    forgetting: accuracy on the test images of phase-0 classes after phase 0 minus the same after the last phase.
    """
    names = [name for name in phases[0]["accuracy"] if not name.endswith("_before_finetune")]
    average = {name: sum(p["accuracy"][name] for p in phases) / len(phases) for name in names}
    drop = {name: phases[0]["phase0_accuracy"][name] - phases[-1]["phase0_accuracy"][name] for name in names}
    return {
        "average_accuracy": {name: round(value, 2) for name, value in average.items()},
        "last_accuracy": {name: phases[-1]["accuracy"][name] for name in names},
        "forgetting": {name: round(value, 2) for name, value in drop.items()},
    }
