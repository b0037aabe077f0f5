"""Notices of the libraries that a user can do nothing about. Needs no torch."""

import logging

WITHOUT_CONSEQUENCE = ("bitsandbytes", "transformers.trainer_utils")
"""A slower 4-bit kernel on CPUs, told on import, and the age of checkpoint folders."""


def hold_back_notices() -> None:
    """Keep them from the screen, but for errors; to be called before the libraries are imported."""
    for name in WITHOUT_CONSEQUENCE:
        logging.getLogger(name).setLevel(logging.ERROR)
