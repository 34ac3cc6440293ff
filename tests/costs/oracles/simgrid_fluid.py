"""Ends of flows under SimGrid's fluid model; run by Debian's Python, which has python3-simgrid. JSON in, JSON out."""

import json
import sys

from simgrid import Actor, Comm, Engine, Host, LinkInRoute, NetZone

problem = json.load(sys.stdin)
engine = Engine(
    [
        "oracle", "--cfg=network/model:CM02", "--cfg=network/TCP-gamma:0", "--cfg=network/crosstraffic:0",
        "--cfg=network/bandwidth-factor:1", "--cfg=network/weight-S:0", "--cfg=maxmin/precision:1e-9",
        "--log=root.threshold:critical",
    ]
)  # fmt: skip
zone = NetZone.create_full_zone("zone")
links = []
for number, capacity in enumerate(problem["capacity"]):
    link = zone.create_link(f"link{number}", capacity)
    links.append(link.set_latency(0).seal())
for flow, crossed in enumerate(problem["links"]):
    ends = [zone.create_host(f"{side}{flow}", 1e9).seal() for side in ("from", "to")]
    zone.add_route(ends[0].netpoint, ends[1].netpoint, None, None, [LinkInRoute(links[k]) for k in crossed], True)
zone.seal()
done = {}


def send(flow, volume):
    """Send one flow and note when it ends."""
    Comm.sendto_async(Host.by_name(f"from{flow}"), Host.by_name(f"to{flow}"), volume).wait()
    done[flow] = Engine.clock


for flow, volume in enumerate(problem["volume"]):
    Actor.create(f"actor{flow}", Host.by_name(f"from{flow}"), send, flow, int(volume))
engine.run()
json.dump([done[flow] for flow in range(len(problem["volume"]))], sys.stdout)
