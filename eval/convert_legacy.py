"""Turns checkpoints of the authors' code into this program's format, which loads safely and needs no folder name.

    python eval/convert_legacy.py checkpoints/cifar100_nfg50_ncls2_nproto20_mtl_exp01 runs/theirs
    python eval/convert_legacy.py some_model.pth phase_0.pt --dataset cifar100 --nb_cl_fg 50 --nb_cl 2

IN is a folder of theirs or one file, of any name; OUT is made: a folder with phase_<i>.pt, or a file. The results have
no exemplars, since the originals have none. Exit status: 0 done, 2 something must be changed.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mnemonics.config.fields import ExperimentConfig
from mnemonics.engine import files as checkpoint
from mnemonics.engine.errors import UsageError
from mnemonics.experiment.stored import protocol_of
from mnemonics.legacy.authors import DATASETS, EXAMPLE, MODEL_FILE, authors_settings, model_files, stored_order
from mnemonics.legacy.networks import LegacyNetwork, read_network
from mnemonics.models.layers import ScaledConv2d
from mnemonics.protocol import Protocol, class_order


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="convert_legacy.py", description="Convert checkpoints of the authors' code.", allow_abbrev=False
    )
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="a folder of the authors' code, or one model in it")
    add("out", type=Path, metavar="OUT", help="the folder or file to make; nothing may be there yet")
    add("--dataset", choices=DATASETS, help=f"for folders that are not named like {EXAMPLE}")
    add("--nb_cl_fg", type=int, help="classes in phase 0, for such folders")
    add("--nb_cl", type=int, help="classes in each later phase, for such folders")
    add("--order_seed", type=int, help="make the class order from this seed (the stored order, or 1993)")
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace) -> list[str]:
    """Write OUT: whole, or nothing. Returns a line per checkpoint. Raises UsageError."""
    source, out = options.source, options.out
    if out.exists():
        raise UsageError(f"{out}: is there already; name a folder or file that is not")
    named = source.is_dir() or MODEL_FILE.fullmatch(source.name)
    run, files, notices = model_files(source) if named else (0, {0: source}, ())
    folder = source if source.is_dir() else source.parent
    settings = authors_settings(folder, options)
    protocol, notice = protocol_for(folder, run, settings, options)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=out.parent) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            phases = [convert_file(file, made, protocol, settings) for file in files.values()]
            (made if source.is_dir() else made / f"phase_{phases[0]}.pt").rename(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); name another place") from error
    return [*notices, notice, *(f"{file} -> phase {i}" for i, file in zip(phases, files.values(), strict=True))]


def convert_file(file: Path, folder: Path, protocol: Protocol, settings: dict[str, Any]) -> int:
    """Write phase_<i>.pt into `folder`. Returns i. Raises UsageError."""
    network = read_network(file)
    index = phase_of(file, network, protocol, settings)
    path = folder / f"phase_{index}.pt"
    if path.exists():
        raise UsageError(f"{file}: for as many classes as another network of this folder")
    checkpoint.save(path, state_of(network, index, protocol, settings))
    return index


def protocol_for(folder: Path, run: int, settings: dict[str, Any], options: argparse.Namespace) -> tuple[Protocol, str]:
    """The class order cut into phases, and where the order comes from. Raises UsageError."""
    order, notice = stored_order(folder, run, options)
    count = DATASETS[settings["dataset"]]
    order = order or class_order(count, settings.get("order_seed", ExperimentConfig.order_seed))
    if len(order) != count:
        raise UsageError(f"{folder}: its class order has {len(order)} classes, {settings['dataset']} has {count}")
    return protocol_of(order, settings["nb_cl_fg"], settings["nb_cl"]), notice


def phase_of(file: Path, network: LegacyNetwork, protocol: Protocol, settings: dict[str, Any]) -> int:
    """The phase after which there are as many classes as the network has. Raises UsageError."""
    classes = len(network.model.classifier.weight)
    for phase in protocol.phases:
        if phase.seen == classes:
            return phase.index
    raise UsageError(
        f"{file}: a network for {classes} classes; with --nb_cl_fg {settings['nb_cl_fg']} and --nb_cl "
        f"{settings['nb_cl']} no phase ends with as many"
    )


def state_of(network: LegacyNetwork, index: int, protocol: Protocol, settings: dict[str, Any]) -> dict[str, Any]:
    """What phase_<i>.pt of a run holds, without exemplars."""
    size = network.image_size
    nothing = {"images": torch.empty(0, 3, size, size, dtype=torch.uint8), "labels": torch.empty(0, dtype=torch.int64)}
    transfer = any(isinstance(module, ScaledConv2d) for module in network.model.modules())
    whole = {"weight_transfer": transfer} | settings | {"network": network.name, "nb_phases": len(protocol.phases) - 1}
    return {
        "settings": dataclasses.asdict(ExperimentConfig(**whole)),
        "class_order": list(protocol.order),
        "phase": index,
        "model": network.model.state_dict(),
        "exemplars": nothing,
        "held_out": nothing,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = parse_args(arguments)
    try:
        print("\n".join(convert(options)))
    except (UsageError, OSError) as error:  # OSError: names that no file system takes, folders that cannot be read
        print(f"convert_legacy.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
