"""Calibration: what files tell is fitted, the rest is left and said, and the overlay is a topology like any other."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.base.errors import FormatError, InputError
from moesim.calibrate import calibrate, write_overlay
from moesim.calibrate.deepep import Setting, read_deepep
from moesim.calibrate.fit import error
from moesim.calibrate.kernels import Step, read_kernel_table, read_profile
from moesim.calibrate.nccl import read_nccl
from moesim.cli.app import app
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.spec import ModelSpec

# as nccl-tests prints it; times are an H100 node's, all-to-all (rounded)
TIMES = {512: 7.4, 8192: 7.9, 32768: 9.3, 1 << 20: 14.0, 64 << 20: 245.0, 256 << 20: 830.0, 512 << 20: 1480.0}


def nccl_log(times: dict[int, float], gpus: int = 8, hosts: tuple[str, ...] = ("node1",)) -> str:
    ranks = "".join(
        f"#  Rank {h * gpus + g:2} Group  0 Pid  {1000 + g} on {host:>10} device {g:2} [0x{g:02x}] NVIDIA H100\n"
        for h, host in enumerate(hosts)
        for g in range(gpus)
    )
    head = "# nThread 1 nGpus 8 minBytes 512 maxBytes 536870912 step: 2(factor) warmup iters: 5 iters: 20\n#\n"
    columns = (
        "#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw\n"
        "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)\n"
    )
    rows = "".join(
        f"{size:12} {size // 4 // 8:13}     float    none      -1 {time:8.2f} {size / time / 1e3:7.2f} "
        f"{size / time / 1e3 * 7 / 8:7.2f}      0 {time * 1.01:8.2f} {1:7.2f} {1:7.2f}    N/A\n"
        for size, time in times.items()
    )
    return (
        f"{head}# Using devices\n{ranks}#\n{columns}{rows}# Out of bounds values : 0 OK\n# Avg bus bandwidth : 100.0\n"
    )


LOW_LATENCY = """Allocating buffer size: 2116.291072 MB ...
[rank 0] Dispatch + combine bandwidth: 120.24 GB/s, avg_t=183.50 us, min_t=180.10 us, max_t=190.00 us
[rank 0] Dispatch bandwidth: 97.60 GB/s, avg_t=77.00 us | Combine bandwidth: 128.80 GB/s, avg_t=114.00 us
[rank 1] Dispatch bandwidth: 98.90 GB/s, avg_t=76.00 us | Combine bandwidth: 127.68 GB/s, avg_t=115.00 us
[rank 0] Dispatch send/recv time: 20.10 + 15.20 us | Combine send/recv time: 22.00 + 40.00 us
"""
INTERNODE = """[config] num_tokens=4096, hidden=7168, num_topk_groups=2, num_topk=8
[tuning] SMs 24, NVL chunk 20, RDMA chunk 28: 2242 + 1504.12 us, 40.10 GB/s (RDMA), 131.30 GB/s (NVL)
[tuning] Best dispatch (FP8): SMs 24, NVL chunk 20, RDMA chunk 28: 60 + 1400.00 us, 43.00 GB/s (RDMA), 141.00 GB/s (NVL)
[tuning] Best combine: SMs 24, NVL chunk 4, RDMA chunk 12, 61.00 + 2700.00 us, 43.00 GB/s (RDMA), 141.00 GB/s (NVL)
"""


def test_a_node_of_nccl_tells_nvlink_and_the_floor(tmp_path: Path) -> None:
    log = tmp_path / "alltoall_perf.txt"
    log.write_text(nccl_log(TIMES))
    start = Cluster.preset("h100-4x8-rail").edit({"tier.node.effective": "200 GB/s"})
    seen = read_nccl(log, start)
    assert [o.decides for o in seen].count("constants.collective_floor") == 3
    assert [o.decides for o in seen].count("tier.node.effective") == 3
    fit = calibrate(start, seen)
    by_key = {item.key: item for item in fit.fitted}
    assert set(by_key) == {"tier.node.effective", "constants.collective_floor"}
    # what NCCL reaches on this node, as the preset's own measured constant says
    assert float(str(by_key["tier.node.effective"].value).split()[0]) == pytest.approx(320, rel=0.08)
    assert by_key["tier.node.effective"].error < 0.05 < by_key["tier.node.effective"].error_before
    assert float(str(by_key["constants.collective_floor"].value).split()[0]) == pytest.approx(7.4, rel=0.15)
    assert error(fit.cluster, seen) < 0.6 * error(start, seen)
    assert ("tier.rail.effective", "no observation tells it") in fit.not_fitted
    assert ("tier.leaf.effective", "the topology has no such tier") in fit.not_fitted
    assert {row[0] for row in fit.residuals} == {
        "alltoall_perf.txt: constants.collective_floor", "alltoall_perf.txt: tier.node.effective",
        "alltoall_perf.txt: compared only",
    }  # fmt: skip


def test_constants_are_recovered_from_the_models_own_times(tmp_path: Path) -> None:
    truth = Cluster.preset("h100-4x8-rail").edit(
        {"tier.rail.effective": "37 GB/s", "constants.collective_floor": "15 us", "tier.node.effective": "260 GB/s"}
    )
    one, four = tmp_path / "alltoall_one.txt", tmp_path / "alltoall_four.txt"
    hosts = ("a", "b", "c", "d")
    for path, names in ((one, ("a",)), (four, hosts)):
        path.write_text(nccl_log(TIMES, hosts=names))
        times = {s: o.predict(truth) * 1e6 for s, o in zip(TIMES, read_nccl(path, truth), strict=True)}
        path.write_text(nccl_log(times, hosts=names))
    start = Cluster.preset("h100-4x8-rail")
    fit = calibrate(start, [o for path in (one, four) for o in read_nccl(path, start)])
    found = {item.key: float(str(item.value).split()[0]) for item in fit.fitted}
    assert found["tier.rail.effective"] == pytest.approx(37, rel=0.03)
    assert found["tier.node.effective"] == pytest.approx(260, rel=0.03)
    assert found["constants.collective_floor"] == pytest.approx(15, rel=0.03)


def test_deepep_tells_floors_copy_engines_and_nics(tmp_path: Path) -> None:
    low, inter = tmp_path / "low.txt", tmp_path / "internode.txt"
    low.write_text(LOW_LATENCY)
    inter.write_text(INTERNODE)
    cluster = Cluster.preset("h800-4x8-rail")
    seen = read_deepep(low, cluster) + read_deepep(inter, cluster, Setting(nodes=2))
    assert [o.decides for o in seen] == [
        "constants.direct_dispatch_floor", "constants.direct_combine_bandwidth", "tier.rail.effective",
        "tier.rail.effective",
    ]  # fmt: skip
    assert seen[0].measured_s == pytest.approx(76.5e-6)
    assert seen[2].measured_s == pytest.approx(1400e-6)
    fit = calibrate(cluster, seen)
    assert {item.key for item in fit.fitted} == {o.decides for o in seen}
    assert error(fit.cluster, seen[:2]) < min(0.05, error(cluster, seen[:2]))


def test_an_overlay_is_a_topology_that_keeps_provenance(tmp_path: Path) -> None:
    log, out = tmp_path / "alltoall.txt", tmp_path / "ours.toml"
    log.write_text(nccl_log({size: 2 * time for size, time in TIMES.items()}))
    preset = Cluster.preset("h100-1x8")
    fit = calibrate(preset, read_nccl(log, preset))
    write_overlay(fit, "h100-1x8", out)
    ours = Cluster.read(out)
    assert ours.name == "ours"
    assert ours.sources["constants.collective_floor"].startswith("measured: 3 observations of alltoall.txt")
    assert ours.digest != preset.digest
    # the priced exchange is the fitted one, to the digits of the file, and its source is cited
    spec = ModelSpec.preset("olmoe-1b-7b")
    there, here = (Costs.default(spec, c, transport="rank-dedup") for c in (fit.cluster, ours))
    assert "alltoall.txt" in here.sources["constants.collective_floor"]
    for a, b in ((fit.cluster, ours),):
        np.testing.assert_allclose(a.link_bandwidth, b.link_bandwidth)
    assert there.digest != Costs.default(spec, preset, transport="rank-dedup").digest
    # a calibrated topology can be calibrated, edited and written again
    again = tmp_path / "again.toml"
    ours.edit({"constants.launch": "9 us"}).write(again)
    assert Cluster.read(again).sources["constants.launch"].startswith("assumed: set by")
    again_fitted = calibrate(ours, read_nccl(log, ours))
    write_overlay(again_fitted, str(out), tmp_path / "third.toml")
    assert Cluster.read(tmp_path / "third.toml").ranks == 8
    # over itself it would lose what it stands on
    with pytest.raises(InputError, match=r"ours\.toml: is the topology that is calibrated"):
        write_overlay(again_fitted, str(out), out)
    with pytest.raises(InputError, match="h100-1x8: is the topology that is calibrated"):
        write_overlay(fit, "h100-1x8", tmp_path / "h100-1x8")
    told = CliRunner().invoke(app, ["calibrate", "-t", str(out), "--nccl", str(log), "-o", str(out)])
    assert isinstance(told.exception, InputError)
    assert Cluster.read(out) == ours


def test_a_kernel_table_tells_arithmetic_memory_and_launches(tmp_path: Path) -> None:
    truth = Cluster.preset("h100-1x8").edit(
        {"constants.gemm_share": 0.5, "constants.hbm_share": 0.6, "constants.launch": "8 us"}
    )
    rows = [
        {"tokens_per_expert": m, "active_experts": a, "seconds": 1.0} for m in (1, 16, 128, 4096) for a in (1, 8, 32)
    ]
    facts = {"device": "H100-SXM", "dtype": "fp8", "hidden": 7168, "intermediate": 2048, "provenance": {"by": "test"}}
    path = tmp_path / "table.json"

    def write() -> None:
        one = {"schema": 1, "kind": "moesim-kernel-table", **facts, "rows": rows}
        path.write_text(json.dumps({"schema": 1, "kind": "moesim-kernel-tables", "tables": [one]}))

    write()
    with pytest.raises(FormatError, match=r"expected GB200 .*, got 'H100-SXM'"):
        read_kernel_table(path, Cluster.preset("gb200-nvl72"))
    mixed = tmp_path / "mixed.toml"
    old = 'gpus = 8\ngpu = {model = "A100-SXM", flops_bf16 = "312 TFLOP/s"}\n'
    mixed.write_text(f'schema = 1\nname = "mixed"\nbase = "h100-4x8-rail"\n[[node]]\n[[node]]\n{old}')
    with pytest.raises(FormatError, match=r"mixed has H100-SXM and A100-SXM, .* calibrate a topology of one device"):
        read_kernel_table(path, Cluster.read(mixed))
    for row, seen in zip(rows, read_kernel_table(path, truth), strict=True):
        row["seconds"] = seen.predict(truth)
    write()
    start = Cluster.preset("h100-1x8")
    fit = calibrate(start, read_kernel_table(path, start))
    found = {item.key: float(str(item.value).split()[0]) for item in fit.fitted}
    assert found["constants.gemm_share"] == pytest.approx(0.5, rel=0.05)
    assert found["constants.hbm_share"] == pytest.approx(0.6, rel=0.1)
    assert error(fit.cluster, read_kernel_table(path, start)) < 0.05


def test_a_profile_tells_compute_and_only_compares_what_waits(tmp_path: Path) -> None:
    spec = ModelSpec.preset("deepseek-v3")
    cluster = Cluster.preset("h800-4x8-rail")
    events = [
        {"ph": "X", "cat": "kernel", "name": name, "dur": dur, "ts": 0, "pid": 0, "tid": 7}
        for name, dur in (
            ("void deep_ep::internode::dispatch<false, 8>", 900.0),
            ("void deep_ep::internode::combine<8>", 1500.0),
            ("void deep_gemm::fp8_gemm_kernel_grouped<4096u, 7168u>", 2200.0),
            ("flash_fwd_splitkv_mla_kernel", 2300.0),
            ("elementwise_kernel", 5.0),
        )
    ]
    path = tmp_path / "step.json.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump({"traceEvents": [*events, {"ph": "M", "name": "process_name"}]}, file)
    seen = read_profile(path, cluster, Step(spec, 4096, 32, 1, context=2048))
    assert {o.label.split(",")[0]: o.decides for o in seen} == {
        "dispatch": "", "combine": "", "experts": "constants.gemm_share", "attention": "constants.attention_share",
    }  # fmt: skip
    fit = calibrate(cluster, seen)
    assert {item.key for item in fit.fitted} == {"constants.gemm_share", "constants.attention_share"}
    assert all(item.error < 0.02 or item.limit for item in fit.fitted), fit.fitted
    # joined traces of two ranks would tell of GPUs half as fast
    path.unlink()
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump({"traceEvents": [*events, *({**event, "pid": 1} for event in events)]}, file)
    with pytest.raises(FormatError, match="kernels of one GPU, found those of 2"):
        read_profile(path, cluster, Step(spec, 4096, 32, 1, context=2048))


def test_measured_rows_of_another_device_improve_on_sizes_that_were_not_fitted(
    shared_data: Path, tmp_path: Path
) -> None:
    """A100: NVLink and floor from every second size; the other sizes come out better than with H100's constants."""
    with (shared_data / "measurements" / "nccl_single_node.csv").open(encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["system"], row["op_name"], row["num_gpus"]) == ("a100_sxm", "alltoall", "8")
        ]
    version = rows[-1]["nccl_version"]
    times = {int(row["size_bytes_total"]): float(row["latency_us"]) for row in rows if row["nccl_version"] == version}
    odd = dict(list(times.items())[::2])
    log, other = tmp_path / "alltoall_odd.txt", tmp_path / "alltoall_even.txt"
    log.write_text(nccl_log(odd))
    other.write_text(nccl_log({size: time for size, time in times.items() if size not in odd}))
    start = Cluster.preset("h100-1x8")
    fit = calibrate(start, read_nccl(log, start))
    unseen = read_nccl(other, start)
    assert error(fit.cluster, unseen) < 0.15 < error(start, unseen)


def test_the_verb_prints_writes_and_says_what_is_wrong(tmp_path: Path) -> None:
    log, out = tmp_path / "alltoall.txt", tmp_path / "ours.toml"
    log.write_text(nccl_log(TIMES))
    run = CliRunner()
    done = run.invoke(app, ["calibrate", "-t", "h100-1x8", "--nccl", str(log), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert set(facts) == {"fitted", "not_fitted", "residuals"}
    assert {item["key"] for item in facts["fitted"]} == {"tier.node.effective", "constants.collective_floor"}
    assert Cluster.read(out).ranks == 8
    twice = run.invoke(app, ["calibrate", "-t", "h100-1x8", "--nccl", str(log), "--nccl", str(log)])
    assert "given more than once" in str(twice.exception)
    table = run.invoke(app, ["calibrate", "-t", "h100-1x8", "--nccl", str(log)])
    (line,) = [line for line in table.output.splitlines() if "not fitted, no observation tells it: " in line]
    assert {"constants.gemm_share", "constants.launch"} <= set(line.split(": ", 2)[2].split(", "))


def test_times_that_no_constant_explains_change_nothing(tmp_path: Path) -> None:
    log, out = tmp_path / "alltoall.txt", tmp_path / "ours.toml"
    # milliseconds where microseconds belong, of the large sizes alone
    log.write_text(nccl_log({size: time / 1e3 if size > 1 << 20 else time for size, time in TIMES.items()}))
    start = Cluster.preset("h100-1x8")
    fit = calibrate(start, read_nccl(log, start))
    assert [item.key for item in fit.fitted] == ["constants.collective_floor"]
    why = dict(fit.not_fitted)["tier.node.effective"]
    assert "even at its upper limit of" in why
    assert "check their units" in why
    tier, before = fit.cluster.description.tier.node, start.description.tier.node
    assert tier is not None
    assert before is not None
    assert tier.effective == before.effective
    write_overlay(fit, "h100-1x8", out)
    assert "effective" not in out.read_text().split("[", 2)[-1]


def test_what_does_not_decide_a_time_is_not_fitted_to_it(tmp_path: Path) -> None:
    start = Cluster.preset("h100-4x8-rail")
    # two nodes: forwarding decides, so that any NIC of 36 GB/s or more gives the same times
    inter = tmp_path / "internode.txt"
    inter.write_text(INTERNODE)
    slower = start.edit({"tier.rail.effective": "38 GB/s"})
    seen = read_deepep(inter, start, Setting(nodes=2))
    mine = [dataclasses.replace(one, measured_s=one.predict(slower)) for one in seen]
    fit = calibrate(start, mine)
    assert not fit.fitted
    why = dict(fit.not_fitted)["tier.rail.effective"]
    assert (
        why == "10% slower than 46 GB/s it would change none of its 2 observations by 1%: something else decides them"
    )
    # four nodes: the NICs do
    mine = [
        dataclasses.replace(one, measured_s=one.predict(slower)) for one in read_deepep(inter, start, Setting(nodes=4))
    ]
    (found,) = calibrate(start, mine).fitted
    assert float(str(found.value).split()[0]) == pytest.approx(38, rel=0.01)
    # few tokens across nodes: a floor that is off must not be taken for a slow NIC
    low = tmp_path / "low.txt"
    low.write_text(LOW_LATENCY)
    assert [o.decides for o in read_deepep(low, start, Setting(nodes=4, tokens=1))] == ["", ""]
    assert {o.decides for o in read_deepep(low, start, Setting(nodes=4, tokens=64))} == {"tier.rail.effective"}


def test_logs_in_two_units_change_nothing(tmp_path: Path) -> None:
    micro, milli = tmp_path / "alltoall.txt", tmp_path / "alltoall_ms.txt"
    micro.write_text(nccl_log(TIMES))
    milli.write_text(nccl_log({size: time * 1e3 for size, time in TIMES.items()}))
    start = Cluster.preset("h100-1x8")
    fit = calibrate(start, read_nccl(micro, start) + read_nccl(milli, start))
    assert not fit.fitted
    assert "check their units" in dict(fit.not_fitted)["constants.collective_floor"]


@pytest.mark.parametrize(
    ("topology", "device", "before"),
    [
        ("h100-4x8-rail", "H100", ("7.4 us", "9.7 us", "245 GB/s")),
        ("a100-4x8-rail", "A100", ("15.8 us", "9.7 us", "203 GB/s")),
        ("b200-4x8-rail", "B200", ("10.1 us", "12.92 us", "545 GB/s")),
    ],
)
def test_before_is_what_the_model_took_on_this_device(
    topology: str, device: str, before: tuple[str, str, str], tmp_path: Path
) -> None:
    nccl, low = tmp_path / "alltoall.txt", tmp_path / "low.txt"
    nccl.write_text(nccl_log({size: 2 * time for size, time in TIMES.items()}).replace("H100", device))
    low.write_text(LOW_LATENCY)
    start = Cluster.preset(topology)
    kinds = (read_nccl(nccl, start), read_deepep(low, start))
    seen = [one for kind in kinds for one in kind]
    by_key = {item.key: item for kind in kinds for item in calibrate(start, kind).fitted}
    keys = ("collective_floor", "direct_dispatch_floor", "direct_combine_bandwidth")
    assert tuple(by_key[f"constants.{key}"].before for key in keys) == before
    for key, told in zip(keys, before, strict=True):
        mine = [one for one in seen if one.decides == f"constants.{key}"]
        assert error(start.edit({f"constants.{key}": told}), mine) == pytest.approx(error(start, mine), abs=0.03)


@pytest.mark.parametrize("duration", [0, -5, float("nan"), float("inf")])
def test_a_time_that_none_took_is_refused(duration: float, tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    kernel = {"ph": "X", "cat": "kernel", "name": "flash_fwd_kernel", "dur": duration, "ts": 0, "pid": 0}
    path.write_text(json.dumps({"traceEvents": [kernel]}))
    with pytest.raises(InputError, match=r"step\.json: attention, mean of 1 layer.*expected a time above 0, found"):
        read_profile(path, Cluster.preset("h100-1x8"), Step(ModelSpec.preset("deepseek-v3"), 8, 8, 1))
    path.write_text(LOW_LATENCY.replace("114.00", "0.00").replace("115.00", "0.00"))
    with pytest.raises(InputError, match=r"step\.json: low latency combine.*expected a time above 0, found 0 s"):
        read_deepep(path, Cluster.preset("h100-1x8"))


def test_a_log_of_other_gpus_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "alltoall.txt"
    log.write_text(nccl_log(TIMES))
    with pytest.raises(FormatError, match=r"ranks: expected B200 \(b200-4x8-rail\), measured on H100; name"):
        read_nccl(log, Cluster.preset("b200-4x8-rail"))
    # names that nobody knows say nothing
    log.write_text(nccl_log(TIMES).replace("NVIDIA H100", "Unheard Of"))
    assert read_nccl(log, Cluster.preset("b200-4x8-rail"))


def test_files_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    cluster = Cluster.preset("h100-1x8")
    path = tmp_path / "alltoall.txt"
    path.write_text("hello")
    with pytest.raises(FormatError, match="expected the output of nccl-tests with the list of ranks"):
        read_nccl(path, cluster)
    with pytest.raises(FormatError, match="expected the output of DeepEP's tests"):
        read_deepep(path, cluster)
    with pytest.raises(FormatError, match="expected a Chrome trace"):
        read_profile(path, cluster, Step(ModelSpec.preset("deepseek-v3"), 8, 8, 1))
    path.write_text(100_000 * "[")
    with pytest.raises(FormatError, match="expected a Chrome trace"):
        read_profile(path, cluster, Step(ModelSpec.preset("deepseek-v3"), 8, 8, 1))
    whole = gzip.compress(b'{"traceEvents": []}' * 1000)
    for broken in (whole[:-20], whole[:20] + bytes(50) + whole[70:], b"hello", b""):
        packed = tmp_path / "trace.json.gz"
        packed.write_bytes(broken)
        with pytest.raises(InputError, match=r"trace\.json\.gz: "):
            read_profile(packed, cluster, Step(ModelSpec.preset("deepseek-v3"), 8, 8, 1))
    path.write_text("[tuning] Best combine: SMs 24, NVL chunk 3: 332.57 GB/s (NVL)\n")
    with pytest.raises(FormatError, match="print no time in us"):
        read_deepep(path, cluster)
    named = tmp_path / "run.txt"
    named.write_text(nccl_log(TIMES))
    with pytest.raises(FormatError, match="put alltoall, all_gather or reduce_scatter into the file name"):
        read_nccl(named, cluster)
    path.write_text(nccl_log(TIMES, hosts=("a", "b")))
    with pytest.raises(FormatError, match="measured on 2 nodes of 8 GPUs, h100-1x8 has 1 node and 8 GPUs in all;"):
        calibrate(cluster, read_nccl(path, cluster))
    with pytest.raises(InputError, match="nothing was measured"):
        calibrate(cluster, [])
    with pytest.raises(InputError, match="cannot be read"):
        read_nccl(tmp_path / "none.txt", cluster)
