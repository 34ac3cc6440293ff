"""Serving under load: arrivals, continuous batching, KV cache, schedulers; steps priced by the simulator."""

from moesim.simulate.serving.arrivals import Arrivals, arrivals_of, gamma, poisson, read_arrivals
from moesim.simulate.serving.model import ClosedForm, ConstantStep, StepBatch, StepModel
from moesim.simulate.serving.pool import Limits
from moesim.simulate.serving.report import ServingReport
from moesim.simulate.serving.run import Change, PoolSpec, serve
from moesim.simulate.serving.schedulers import SCHEDULERS, Affinity
from moesim.simulate.serving.tokens import TokenSource

__all__ = [
    "SCHEDULERS",
    "Affinity",
    "Arrivals",
    "Change",
    "ClosedForm",
    "ConstantStep",
    "Limits",
    "PoolSpec",
    "ServingReport",
    "StepBatch",
    "StepModel",
    "TokenSource",
    "arrivals_of",
    "gamma",
    "poisson",
    "read_arrivals",
    "serve",
]
