"""Calibration: constants of a topology from what a user measures on the cluster; `calibrate` returns an overlay."""

from moesim.calibrate.fit import Fit, Fitted, calibrate
from moesim.calibrate.observe import Observation
from moesim.calibrate.overlay import write_overlay

__all__ = ["Fit", "Fitted", "Observation", "calibrate", "write_overlay"]
