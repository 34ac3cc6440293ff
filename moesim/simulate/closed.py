"""The closed form: the clocks of a step without an event queue, where nothing competes for a stream."""

from __future__ import annotations

import numpy as np

from moesim.base.errors import InputError
from moesim.simulate.clocks import exchange_end
from moesim.simulate.phases import ATTENTION, COMBINE, DISPATCH, EXPERTS, PHASES, SHARED
from moesim.simulate.schedules import Schedule
from moesim.simulate.work import Timeline, Work, empty_timeline
