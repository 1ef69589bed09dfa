"""What must come out the same from one process and from several: each case returns tensors, computed by all processes
that there are. `tests/test_distributed.py` runs them itself and under torchrun, as

    torchrun ... tests/distributed_cases.py cases PNG_FOLDER OUT        writes OUT/rank<r>.pt
    torchrun ... tests/distributed_cases.py main FLAGS                  main.py, checking that processes do not drift
"""

import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from contexts import PROTOCOL, context, resolved, with_settings  # noqa: E402

import main  # noqa: E402
from mnemonics import algorithm as experiment  # noqa: E402
from mnemonics.baselines import BASELINES  # noqa: E402
from mnemonics.config.fields import ExperimentConfig  # noqa: E402
from mnemonics.data.batches import LabelledImages, Preprocessing, StreamedBatches, batch_sizes, training_batches  # noqa: E402
from mnemonics.data.sources import load_source  # noqa: E402
from mnemonics.engine import distributed  # noqa: E402
from mnemonics.evaluation import features_of, scores  # noqa: E402
from mnemonics.exemplars.base_level import BaseLevel, BilevelSettings  # noqa: E402
from mnemonics.exemplars.codec import Codec  # noqa: E402
from mnemonics.exemplars.meta_level import adjust_old_exemplars, optimise_new_exemplars  # noqa: E402
from mnemonics.models import make_network  # noqa: E402
from mnemonics.models.layers import conv_bn  # noqa: E402
from mnemonics.training import loss_function, sgd_step  # noqa: E402

CPU = torch.device("cpu")
PHASES = PROTOCOL.phases


def digits(per_class, classes):
    """The first images of some classes of handwritten digits."""
    images, labels = load_source(ExperimentConfig(dataset="digits", max_images_per_class=per_class)).train(classes)
    return LabelledImages(images, labels)


def prep(dtype):
    return Preprocessing(torch.full((3,), 0.3, dtype=dtype), torch.full((3,), 0.35, dtype=dtype), 2, False)


def network(classes=5, dtype=torch.float64):
    torch.manual_seed(0)
    return make_network("resnet8", classes, CPU).to(dtype)


def generator():
    return torch.Generator().manual_seed(0)


def batch_norm(images):
    """Output, gradients and running statistics of two steps, on `images` images and on five."""
    torch.manual_seed(1)
    conv, bn = nn.Conv2d(3, 3, 1, bias=False).double(), nn.BatchNorm2d(3).double()
    nn.init.normal_(bn.weight)
    result = {}
    for n in (images, 5):
        x, weights = torch.randn(n, 3, 4, 4).double() + 100, torch.randn(n, 3, 4, 4).double()
        mine = x[distributed.own_rows()].clone().requires_grad_()
        y = distributed.gathered(conv_bn(mine, conv, bn), n)
        gradients = torch.autograd.grad((y * weights).sum(), [mine, bn.weight, bn.bias, conv.weight])
        x_grad, *others = (distributed.summed(g) if i else g for i, g in enumerate(gradients))
        x_grad = distributed.gathered(x_grad / distributed.world(), n)
        result[f"{n} images"] = torch.cat([t.flatten() for t in (y, x_grad)]).detach()
        result[f"{n} images, parameters"] = torch.cat([g.flatten() for g in others]) / distributed.world()
    return result | {name: b.double() for name, b in bn.named_buffers()}


def training(baseline_name, dtype, weight_transfer):
    """Losses of the first steps in phases 0 and 1, and what becomes of the weights. In float64 a last batch of a single
    image follows, which divides by small variances: too much for the rounding errors of float32."""
    config = ExperimentConfig(baseline=baseline_name, weight_transfer=weight_transfer, network="resnet8", epochs=1,
                              train_batch_size=16, base_lr=0.004)  # fmt: skip
    config, model, result = resolved(config), network(dtype=dtype), {}
    baseline = BASELINES[baseline_name](config)
    for phase, data in zip(PHASES[:2], (digits(10, range(5)), digits(9, range(6))), strict=True):
        data = data[: 48 + (dtype == torch.float64)]
        torch.manual_seed(phase.index)
        baseline.begin_phase(model, phase, data[data.labels >= 5], prep(dtype))
        batches, draws = training_batches(data, prep(dtype)), generator()
        model.train()
        first = next(iter(batches.epoch(batch_sizes(len(data), 16, "keep"), generator())))
        loss_of = loss_function(model, baseline)  # must be there during backward
        loss_of(*batches.network_input(*first)).backward()
        gradients = [p.grad.flatten() for p in baseline.parameters(model)]
        _, step = sgd_step(model, baseline, batches, config)
        losses = torch.stack([step(*draw) for draw in batches.epoch(batch_sizes(len(data), 16, "keep"), draws)])
        name = f"phase {phase.index}"
        result |= {f"{name}, gradients": torch.cat(gradients), f"{name}, losses": losses}
        result |= {f"{name}, {key}": value.double() for key, value in model.state_dict().items()}
    return result


def features(n):
    """Of images that the processes cannot share equally, batch size 2; and what is predicted from them."""
    model, data = network(), digits(3, range(10))[:n]
    model.train()
    model(prep(torch.float64).plain(digits(3, range(10)).images[distributed.own_rows()]))  # other running statistics
    result = [features_of(model, data.images, prep(torch.float64), 2, mirrored) for mirrored in (False, True)]
    found = scores(model, data.images, {"nme": result[0][:5]}, prep(torch.float64), 2)
    return {"plain": result[0], "mirrored": result[1], **{name: s.argmax(1) for name, s in found.items()}}


def pixel_gradients(variant, validation_images):
    """Gradient of a validation loss, which one or more processes share, for the pixels of exemplars."""
    model, data = network().eval(), digits(4, range(5))
    base = BaseLevel(model, BilevelSettings(variant, steps=3, lr=0.1, batch_size=6))
    exemplars = LabelledImages(prep(torch.float64).plain(data.images[::2]), data.labels[::2])
    validation = data[torch.arange(1, 2 * validation_images, 2)[distributed.own_rows()]]
    validation = LabelledImages(prep(torch.float64).plain(validation.images), validation.labels)
    draws = base.draw(exemplars.labels, generator())
    used, gradient, _ = base.gradient(exemplars, validation, draws, 0)
    loss = base.loss_after_steps(exemplars, validation, draws)
    return {"used": used, "gradient": gradient, "loss": torch.tensor(loss).double()}


def exemplars():
    """New ones optimised and old ones adjusted."""
    model, data = network().eval(), digits(9, range(5))
    settings = BilevelSettings(steps=2, lr=0.1, batch_size=7, epochs=3, outer_lr=0.1)
    start = data[torch.arange(0, len(data), 9).repeat_interleave(2) + torch.tensor([0, 1]).repeat(5)]
    phase = context(prep(torch.float64), with_settings(settings))
    new, losses = optimise_new_exemplars(phase, model, start, data, data[:0])
    old = adjust_old_exemplars(phase, model, LabelledImages(new, start.labels))
    return {"new": new, "losses": torch.tensor(list(losses.values())).double(), "old": old}


def files(root):
    """Nine images in files: features; training batches of four, so that the last one is of one image."""
    config = ExperimentConfig(dataset="folder", data_dir=str(root), image_size=16, num_workers=1)
    images, labels = load_source(config).train(range(100))
    index = torch.arange(9)
    data = LabelledImages(images[index], labels[index])
    batches = StreamedBatches(data, prep(torch.float64))
    result = {"features": features_of(network(), data.images, prep(torch.float64), 2)}
    for epoch in range(2):
        for number, (mine, batch_labels) in enumerate(batches.epoch([4, 5], generator())):
            result[f"{epoch}.{number}"] = distributed.gathered(mine, len(batch_labels))
            result[f"{epoch}.{number}, labels"] = batch_labels
    return result


def coded():
    """Exemplars as pages; batches of which some images are shown recoded."""
    data, codec = digits(9, range(5)), Codec.of(resolved(exemplar_format="avif:60", exemplar_bytes=1), 16)
    stored = codec.coded(data, [400, 700])
    result = {"images": stored.data.images, "kept": stored.kept}
    result["codes"] = torch.frombuffer(bytearray(b"".join(page.code for page in stored.pages)), dtype=torch.uint8)
    batches = training_batches(data, prep(torch.float64), codec.recoded(data[:30]), 0.5)
    for number, draws in enumerate(batches.epoch([22, 23], generator())):
        mine, result[f"{number}, labels"] = batches.network_input(*draws)
        result[f"{number}"] = distributed.gathered(mine, len(draws[0]))
    return result


def messages(folder):
    """What rank 0 tells the others."""
    told = [distributed.from_main(lambda: {"rank": distributed.rank(), "none": None}), distributed.from_main(list)]
    assert told == [{"rank": 0, "none": None}, []]
    note = folder / f"note{distributed.world()}"
    seen = distributed.main_first(lambda: (note.exists(), note.write_text("here"))[0])
    assert seen == (not distributed.is_main())
    assert distributed.from_main(lambda: bytes([distributed.rank(), 1, 2])) == bytes([0, 1, 2])
    mine = torch.full((2, 3, 2, 2), distributed.rank() + 1.0).contiguous(memory_format=torch.channels_last)
    distributed.same_everywhere([mine, mine[:0]])
    return {"same": mine}


def cases(root, folder):
    """Name of a case -> function without arguments."""
    both, kinds = (torch.float32, torch.float64), (("lwf", False), ("lucir", True), ("bic", True), ("lucir", False))
    result = {f"batch norm, {n}": lambda n=n: batch_norm(n) for n in (1, 2, 7)}
    result |= {f"{kind}, {d}, {wt}": lambda k=kind, d=d, wt=wt: training(k, d, wt) for kind, wt in kinds for d in both}
    result |= {f"features, {n}": lambda n=n: features(n) for n in (1, 5, 11)}
    variants = (("unroll", 5), ("unroll", 1), ("class-mean", 5), ("class-mean", 1), ("unroll-fc", 5))
    result |= {f"pixels, {v}, {n}": lambda v=v, n=n: pixel_gradients(v, n) for v, n in variants}
    result |= {"exemplars": exemplars, "coded": coded}
    return result | {"files": lambda: files(root), "messages": lambda: messages(folder)}


def refuse_drift(tensors):
    """Stands in for `same_everywhere`: on a CPU there is nothing to correct, so there must be no difference."""
    for tensor in tensors:
        everyone = distributed.stacked(tensor.detach().reshape(-1)[: tensor.numel()])
        if not all(torch.equal(everyone[0], other) for other in everyone):
            raise AssertionError(f"processes have drifted apart: {tuple(tensor.shape)}")


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "main":
        experiment.same_everywhere = refuse_drift
        sys.argv = ["main.py", *arguments]
        sys.exit(main.main())
    png_folder, out = map(Path, arguments)
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False
    with distributed.joined():
        results = {name: case() for name, case in cases(png_folder, out).items()}
        torch.save(results, out / f"rank{distributed.rank()}.pt")
