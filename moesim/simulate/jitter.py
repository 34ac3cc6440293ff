"""Jitter: seeded noise on compute times, as clocks, host and neighbours make it."""

from __future__ import annotations

import dataclasses

import numpy as np

from moesim.base.errors import InputError
from moesim.simulate.work import Work


def check_jitter(jitter: float) -> float:
    """Return a jitter that makes sense.

    Raises
    ------
    InputError
        If it is not from 0 to 1.
    """
    if not 0 <= jitter <= 1:
        raise InputError(f"jitter: expected a coefficient of variation from 0 to 1, got {jitter}")
    return jitter


def jittered(work: Work, jitter: float, seed: int, step: int) -> Work:
    """Return work whose compute times are multiplied by log-normal noise of mean 1.

    Parameters
    ----------
    jitter
        Coefficient of variation of every phase on every rank, drawn independently.
    seed, step
        Together they fix the noise: the same step gets the same under every placement of the same shape.
    """
    if not jitter:
        return work
    rng = np.random.default_rng([seed, step])
    sigma = np.sqrt(np.log1p(jitter**2))
    noisy = {
        name: getattr(work, name) * rng.lognormal(-(sigma**2) / 2, sigma, work.shape)
        for name in ("attention_s", "shared_s", "experts_s")
    }
    return dataclasses.replace(work, **noisy)
