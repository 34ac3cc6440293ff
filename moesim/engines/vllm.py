"""Plugin for vLLM: the planned map in place of the one that vLLM's own load balancer would find.

vLLM 0.33 cannot start from a map in a file. It does ask a policy for a new map every ``step_interval`` steps, and it
calls the functions of the entry-point group ``vllm.general_plugins`` in each of its processes. This one changes the
policy where the environment variable MOESIM_VLLM_MAP names a map, and does nothing where it does not.
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.base.errors import InputError

if TYPE_CHECKING:
    from moesim.placement import Placement

VARIABLE: Final = "MOESIM_VLLM_MAP"
"""Environment variable with the path of the map, written by ``moesim export --to vllm``."""
_MODULE: Final = "vllm.distributed.eplb.policy"

logger = logging.getLogger(__name__)


def install() -> None:
    """Make vLLM's load balancer return the map that MOESIM_VLLM_MAP names.

    May be called many times, as vLLM does in its several processes.

    Raises
    ------
    InputError
        If the variable names no usable map, or this vLLM has no policy to replace.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return
    from moesim.placement.formats import read_placement, require_full

    placement = read_placement(named)
    require_full(placement, "vLLM")
    try:
        module = importlib.import_module(_MODULE)
        base, policies = module.AbstractEplbPolicy, module.EPLB_POLICIES
        policies["default"] = planned_policy(base, placement, Path(named))
    except ModuleNotFoundError as error:
        raise InputError(
            f"{VARIABLE}={named}: cannot import {_MODULE} ({error}); install vllm 0.33, or unset {VARIABLE}"
        ) from None
    except AttributeError as error:
        raise InputError(f"{VARIABLE}={named}: this vLLM has no such policies ({error}); use vllm 0.33") from None
    logger.info("moesim: vLLM takes its expert map from %s (%r)", named, placement)


def planned_policy(base: type, placement: Placement, path: Path) -> type:
    """Return a policy class of vLLM that always answers with the same map.

    Parameters
    ----------
    base
        vLLM's ``AbstractEplbPolicy``.
    placement, path
        The map, and the file that it came from, for messages.
    """
    experts = placement.physical_to_logical.tolist()

    def rebalance_experts(
        cls: type,
        weight: Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Any = None,
    ) -> Any:
        """Return the planned map, int64 [layers, slots], whatever the loads are."""
        import torch

        layers, logical = (int(size) for size in weight.shape)
        asked = (layers, logical, int(num_ranks), int(num_replicas))
        held = (placement.layers, placement.num_experts, placement.ranks, len(experts[0]))
        if asked != held:
            raise InputError(
                f"{path}: the map is for {_sizes(held)}, but vLLM asks for {_sizes(asked)}; plan for what is served, "
                "and serve without a draft model, which would need a map of its own"
            )
        # vLLM may have set another default device
        return torch.tensor(experts, dtype=torch.int64, device="cpu")

    return type("PlannedPolicy", (base,), {"rebalance_experts": classmethod(rebalance_experts)})


def _sizes(sizes: tuple[int, ...]) -> str:
    layers, experts, ranks, slots = sizes
    return f"{layers} MoE layers of {experts} experts in {slots} slots of {ranks} ranks"
