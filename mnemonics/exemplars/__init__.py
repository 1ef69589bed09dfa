"""Exemplars: the memory, how real images are chosen, and how their pixels are optimised."""
