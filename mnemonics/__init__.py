"""Mnemonics Training (Liu et al., CVPR 2020): class-incremental learning whose exemplars
are optimised pixel by pixel."""
