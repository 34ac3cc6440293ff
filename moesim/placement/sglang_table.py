"""The table of SGLang's static dispatch, entry by entry, shuffles included (``srt/eplb/expert_location.py``, 0.5.23).

Written from what it does: every rank takes its own copy; else, where its node holds some but not all copies, the first
of them there; the ranks that are left share all copies fairly, a shuffled list of them that each rank draws for itself.
A rank draws only for experts that it found no near copy of, from Python's ``random.Random(42)``, layer after layer, so
its sequence depends on all layers before, dense ones with their trivial map included.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
from moesim.placement.placement import Placement

_SEED: Final = 42
_WORDS: Final = 624


def sglang_table(placement: Placement, node: Array, layers: Sequence[int]) -> Array:
    """Return int32 [chosen layers, ranks, experts]: the slot that each source rank of SGLang uses.

    A placement that does not know its decoder layers is taken for a model without dense ones. SGLang takes as many
    consecutive ranks for each node; other numberings of nodes follow the same rule here.

    Parameters
    ----------
    placement, node, layers
        As in :class:`moesim.placement.policies.Table`.
    """
    ranks, experts = placement.ranks, placement.num_experts
    table = np.empty((placement.layers, ranks, experts), np.int32)
    trivial = (np.arange(ranks * placement.slots_per_rank) % experts).astype(np.int32)
    ids = placement.layer_ids or tuple(range(placement.layers))
    rows = np.full(placement.num_hidden_layers or placement.layers, -1, np.int64)
    rows[list(ids)] = np.arange(placement.layers)
    # Mersenne Twister of every rank, as Python seeds it
    state = np.array(random.Random(_SEED).getstate()[1], dtype=np.uint32)
    words, used = np.tile(state[:_WORDS], (ranks, 1)), np.full(ranks, state[_WORDS], np.int64)
    out = np.empty((ranks, experts), np.int32)
    last = max(layers, default=-1)
    for row in rows.tolist():
        flat = trivial if row < 0 else np.array(placement.physical_to_logical[row])
        _fill(flat, placement.slots_per_rank, np.ascontiguousarray(node, dtype=np.int32), experts, words, used, out)
        if row >= 0:
            table[row] = out
        if row >= last:
            break  # later layers change nothing
    found = table[list(layers)]
    found.flags.writeable = False
    return found


@compiled
def _word(words: Any, used: Any) -> Any:
    """Return the next 32 bits of a Mersenne Twister (Matsumoto and Nishimura 1998); ``used`` [1] are spent."""
    if used[0] >= 624:
        for i in range(624):
            mixed = (words[i] & np.uint32(0x80000000)) | (words[(i + 1) % 624] & np.uint32(0x7FFFFFFF))
            twisted = words[(i + 397) % 624] ^ (mixed >> np.uint32(1))
            if mixed & np.uint32(1):
                twisted ^= np.uint32(0x9908B0DF)
            words[i] = twisted
        used[0] = 0
    drawn = words[used[0]]
    used[0] += 1
    drawn ^= drawn >> np.uint32(11)
    drawn ^= (drawn << np.uint32(7)) & np.uint32(0x9D2C5680)
    drawn ^= (drawn << np.uint32(15)) & np.uint32(0xEFC60000)
    return drawn ^ (drawn >> np.uint32(18))


@compiled
def _below(words: Any, used: Any, count: int) -> int:
    """Return a whole number below ``count`` as Python's ``Random`` draws it: enough bits, again while too large."""
    bits = 0
    while count >> bits:
        bits += 1
    while True:
        drawn = np.int64(_word(words, used)) >> (32 - bits)
        if drawn < count:
            return int(drawn)


@compiled
def _sample(words: Any, used: Any, count: int, wanted: int, out: Any, pool: Any) -> None:
    """Write ``wanted`` distinct numbers below ``count`` to ``out``, as Python's ``Random.sample`` draws them."""
    small = 21
    if wanted > 5:
        small += 4 ** math.ceil(math.log(wanted * 3) / math.log(4))
    if count <= small:
        for i in range(count):
            pool[i] = i
        for i in range(wanted):
            j = _below(words, used, count - i)
            out[i] = pool[j]
            pool[j] = pool[count - i - 1]
        return
    pool[:count] = 0
    for i in range(wanted):
        j = _below(words, used, count)
        while pool[j]:
            j = _below(words, used, count)
        pool[j] = 1
        out[i] = j


@compiled
def _fill(flat: Any, slots: int, node: Any, experts: int, words: Any, used: Any, table: Any) -> None:
    """Fill ``table`` [ranks, experts] of one layer whose slots hold ``flat`` [ranks * slots]; generators move on."""
    ranks, nodes = len(node), node.max() + 1
    size = len(flat)
    copy, pool = np.empty(size, np.int64), np.empty(size, np.int64)
    near, left = np.empty(ranks, np.int64), np.empty(ranks, np.int64)
    choices = np.empty(ranks, np.int64)
    first, here = np.empty(nodes, np.int64), np.empty(nodes, np.int64)
    begin, order = np.zeros(experts + 1, np.int64), np.empty(size, np.int64)
    for slot in range(size):
        if flat[slot] >= 0:
            begin[flat[slot] + 1] += 1
    for expert in range(experts):
        begin[expert + 1] += begin[expert]
    following = begin[:-1].copy()
    for slot in range(size):
        if flat[slot] >= 0:
            order[following[flat[slot]]] = slot
            following[flat[slot]] += 1
    for expert in range(experts):
        copies = begin[expert + 1] - begin[expert]
        for index in range(copies):
            copy[index] = order[begin[expert] + index]
        if copies == 1:
            table[:, expert] = copy[0]
            continue
        here[:], near[:] = 0, -1
        for index in range(copies):
            rank = copy[index] // slots
            if here[node[rank]] == 0:
                first[node[rank]] = copy[index]
            here[node[rank]] += 1
            if near[rank] < 0:
                near[rank] = copy[index]
        waiting = 0
        for rank in range(ranks):
            if near[rank] < 0 and 0 < here[node[rank]] < copies:
                near[rank] = first[node[rank]]
            if near[rank] < 0:
                left[waiting] = rank
                waiting += 1
            else:
                table[rank, expert] = near[rank]
        whole, rest = waiting // copies, waiting % copies
        for place in range(waiting):
            rank = left[place]
            for index in range(whole * copies):
                choices[index] = index % copies
            _sample(words[rank], used[rank : rank + 1], copies, rest, choices[whole * copies :], pool)
            for index in range(waiting - 1, 0, -1):
                other = _below(words[rank], used[rank : rank + 1], index + 1)
                choices[index], choices[other] = choices[other], choices[index]
            table[rank, expert] = copy[choices[place]]
