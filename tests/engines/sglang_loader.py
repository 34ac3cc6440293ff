"""Asks SGLang's own loader what it makes of ``--init-expert-location``, on a CPU. Run as a program.

Argument: the folder that holds the package ``sglang``. Standard input: JSON, a list of cases; standard output: per
case a list of answers, one a rank. Only the loader is imported, so torch and msgspec suffice.
"""

from __future__ import annotations

import json
import sys
import types
from types import SimpleNamespace
from typing import Any


def loader(folder: str) -> Any:
    """Import the loader without the initialisation of its package, which needs a GPU stack."""
    package = types.ModuleType("sglang")
    package.__path__ = [f"{folder}/sglang"]
    sys.modules["sglang"] = package
    elastic = types.ModuleType("sglang.srt.elastic_ep.elastic_ep")
    elastic.elastic_expanded_world_enabled = lambda: False  # type: ignore[attr-defined]
    sys.modules[elastic.__name__] = elastic
    import sglang.srt.eplb.expert_location as module

    return module


def answers(module: Any, case: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what every rank loads, or the name of the exception."""
    moe = SimpleNamespace(
        init_expert_location=case["location"], ep_num_redundant_experts=case["redundant"],
        ep_dispatch_algorithm=case["dispatch"], moe_a2a_backend=case["backend"], eplb_algorithm="auto",
        ep_join_mode=None,
    )  # fmt: skip
    parallel = SimpleNamespace(
        ep_size=case["ranks"], tp_size=case["ranks"], nnodes=case["nodes"], elastic_ep_initial_size=None,
        ep_join_rank_offset=0,
    )  # fmt: skip
    config = module.ModelConfigForExpertLocation(case["layers"], case["experts"], None)
    module.get_exec = lambda: SimpleNamespace(moe=moe)
    module.get_parallel = lambda: parallel
    module.get_device = lambda: SimpleNamespace(device="cpu")
    module.ModelConfigForExpertLocation.from_model_config = staticmethod(lambda _: config)
    found: list[dict[str, Any]] = []
    for rank in range(case["ranks"]):
        try:
            loaded = module.compute_initial_expert_location_metadata(None, rank)
        except Exception as error:
            found.append({"error": type(error).__name__})
            continue
        table = loaded.logical_to_rank_dispatch_physical_map
        found.append(
            {
                "map": loaded.physical_to_logical_map.tolist(),
                "copies": loaded.logical_to_all_physical_map_num_valid.tolist(),
                "table": None if table is None else table.tolist(),
            }
        )
    return found


if __name__ == "__main__":
    found_module = loader(sys.argv[1])
    json.dump([answers(found_module, case) for case in json.load(sys.stdin)], sys.stdout)
