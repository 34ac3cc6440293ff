"""The judges: every solver, network model, transport, dispatch policy and file format must pass its own.

Built-in plug-ins face them in this project's tests; a package that registers one calls the same function in its
own tests:

```python
from moesim.testing import check_solver
from my_package import my_solver

def test_my_solver():
    check_solver(my_solver)
```

A judge raises :class:`Verdict`, an AssertionError that says which law was broken, where, and by how much.
"""

from moesim.testing.files import check_format, check_topology
from moesim.testing.laws import Verdict
from moesim.testing.plugins import check_network, check_policy, check_solver, check_transport
from moesim.testing.routers import check_router

__all__ = [
    "Verdict",
    "check_format",
    "check_network",
    "check_policy",
    "check_router",
    "check_solver",
    "check_topology",
    "check_transport",
]
