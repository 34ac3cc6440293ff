"""Sweeps: many points of one question, run by joblib or Ray, written as they finish, resumable."""

from moesim.study.sweep.file import Study, read_study
from moesim.study.sweep.kinds import KINDS, Kind
from moesim.study.sweep.pareto import front
from moesim.study.sweep.run import Swept, sweep
from moesim.study.sweep.runners import RUNNERS

__all__ = ["KINDS", "RUNNERS", "Kind", "Study", "Swept", "front", "read_study", "sweep"]
