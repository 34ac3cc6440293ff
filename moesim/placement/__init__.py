"""Placement of experts on ranks, and where a batch of tokens goes under it."""

from moesim.placement.flow import WANT as WANT
from moesim.placement.flow import Flow as Flow
from moesim.placement.flow import NotComputed as NotComputed
from moesim.placement.placement import EMPTY as EMPTY
from moesim.placement.placement import Placement as Placement
