"""Placement of experts on ranks, and where a batch of tokens goes under it."""

from moesim.placement.dispatch import dispatch as dispatch
from moesim.placement.fill import fill_empty as fill_empty
from moesim.placement.flow import WANT as WANT
from moesim.placement.flow import Flow as Flow
from moesim.placement.flow import NotComputed as NotComputed
from moesim.placement.formats import PLACEMENT_FORMATS as PLACEMENT_FORMATS
from moesim.placement.formats import read_placement as read_placement
from moesim.placement.migrate import Migration as Migration
from moesim.placement.migrate import migration as migration
from moesim.placement.placement import EMPTY as EMPTY
from moesim.placement.placement import Placement as Placement
from moesim.placement.policies import POLICIES as POLICIES
from moesim.placement.policies import nearest_table as nearest_table
from moesim.placement.policies import table_of as table_of
from moesim.placement.reference import dispatch_reference as dispatch_reference
