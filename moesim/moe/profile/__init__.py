"""`moesim profile`: what expert kernels, copies, attention and all-to-all take on the device at hand."""

from __future__ import annotations

from moesim.moe.profile.run import Plan as Plan
from moesim.moe.profile.run import profile as profile

__all__ = ["Plan", "profile"]
