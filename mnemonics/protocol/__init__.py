"""Which classes arrive when (pure numpy): the class order, the phases, and the mapping of class ids to labels."""

from mnemonics.protocol.class_order import class_order, hash_of_order, read_order
from mnemonics.protocol.phases import Phase, Protocol, make_protocol, phase_sizes

__all__ = ["Phase", "Protocol", "class_order", "hash_of_order", "make_protocol", "phase_sizes", "read_order"]
