"""Files that are broken, hostile or absurd end in one line and soon, never in a traceback or without memory."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moesim.base.errors import MoesimError
from moesim.cluster import Cluster
from moesim.cluster.build import build
from moesim.cluster.formats import TOPOLOGY_FORMATS, read_tables
from moesim.cluster.schema import check

from .test_formats import SAMPLES, TWINS

FILES = [(row[0], row[1]) for row in TWINS if row[1] != "fusion"] + [
    (row[2], "toml") for row in TWINS if row[0] in ("nvidia-smi-pcie.txt", "nccl-azure-pci.xml", "simai-8.topo")
]
FORMATS = [name for name in TOPOLOGY_FORMATS.names() if name != "fusion"]
SECONDS = 3.0  # of CPU: the machine that runs tests has other things to do, and some are slow
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
junk = st.one_of(
    st.text(max_size=12), st.sampled_from([*"\n=<>\"[]{}0", "", "-1", "9" * 30, "1e999"]),
    st.sampled_from(["NaN", "null", "\x00", "\ufeff", "\u2028", "x[0-99999999]", "&a;", "*a", "<<: *a", "->", "../.."]),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Kernels are loaded before anything is timed."""
    Cluster.read(SAMPLES / "nccl-azure-pci.xml").paths.latency_matrix()
    Cluster.read(SAMPLES / "astra-ring.yml").paths.latency_matrix()


def outcome(path: Path, format: str) -> Cluster | MoesimError | None:
    """Read a file as a format: a cluster, the error a user sees, or None for one too large to build in a test."""
    begin = time.process_time()
    try:
        description = check(read_tables(path, format), str(path))
    except MoesimError as error:
        wrong = error
    else:
        try:
            ranks = (description.nodes or 1) * (description.gpus_per_node or 1)
            return build(description) if ranks < 100 and len(description.link or ()) < 2000 else None
        except MoesimError as error:
            return error
    assert time.process_time() - begin < SECONDS
    assert "\n" not in str(wrong)
    assert len(str(wrong)) < 2000
    return wrong


@st.composite
def wounds(draw: st.DrawFn) -> list[tuple[float, float, str]]:
    """Where to cut (as parts of the text), how much, and what to put there."""
    place = st.floats(0, 1, allow_nan=False)
    return draw(st.lists(st.tuples(place, st.floats(0, 0.05), junk), min_size=1, max_size=4))


def wounded(text: str, cuts: list[tuple[float, float, str]]) -> str:
    for at, size, patch in cuts:
        begin = int(at * len(text))
        text = text[:begin] + patch + text[begin + int(size * len(text)) :]
    return text


@pytest.mark.parametrize(("sample", "format"), FILES)
@given(cuts=wounds())
@few
def test_a_wounded_file_is_read_or_refused(
    sample: str, format: str, cuts: list[tuple[float, float, str]], tmp_path: Path
) -> None:
    path = tmp_path / sample
    text = (SAMPLES / sample).read_text(encoding="utf-8")
    path.write_bytes(wounded(text, cuts).encode("utf-8", "surrogatepass"))
    outcome(path, format)


@pytest.mark.parametrize(("sample", "format"), FILES)
@given(data=st.data())
@few
def test_a_file_with_other_numbers_is_read_or_refused(
    sample: str, format: str, data: st.DataObject, tmp_path: Path
) -> None:
    text = (SAMPLES / sample).read_text(encoding="utf-8")
    spots = [match.span() for match in re.finditer(r"\d+", text)]
    begin, end = data.draw(st.sampled_from(spots))
    number = data.draw(
        st.one_of(st.integers(-9, 99), st.integers(0, 10**12), st.sampled_from([10**40, 16_384, 65_536]))
    )
    path = tmp_path / sample
    path.write_text(f"{text[:begin]}{number}{text[end:]}", encoding="utf-8")
    outcome(path, format)


@pytest.mark.parametrize("format", FORMATS)
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda t: t.encode("utf-8", "replace"))))
@example(content=b"")
@example(content=b"\xff\xfe<\x00s\x00")
@example(content=b"[" * 100_000)
@example(content=b"- " * 100_000)
@example(content=b'{"a":' * 100_000)
@example(content=b"<a>" * 100_000)
@few
def test_noise_is_refused(format: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "noise.dat"
    path.write_bytes(content)
    assert isinstance(outcome(path, format), MoesimError)


@pytest.mark.parametrize(("sample", "format"), FILES)
def test_text_that_is_no_utf8_is_refused_with_its_place(sample: str, format: str, tmp_path: Path) -> None:
    content = (SAMPLES / sample).read_bytes()
    path = tmp_path / sample
    path.write_bytes(content[:40] + b"\xe9\xff" + content[40:])
    error = outcome(path, format)
    assert isinstance(error, MoesimError)
    assert "byte 4" in str(error)
    assert "UTF-8" in str(error)


def lines(count: int, line: Callable[[int], str]) -> str:
    return "".join(f"{line(i)}\n" for i in range(count))


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
ALIASES = "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
NETWORK = "topology: [ {0}, {0} ]\nnpus_count: [ {1}, {1} ]\nbandwidth: [ 1, 1 ]\nlatency: [ 1, 1 ]\n"
UP = "==( 4X 106.25 Gbps Active/ LinkUp)==>"
BOMBS = {
    "entities": ("nccl-xml", f'<!DOCTYPE system [<!ENTITY l0 "ha">{LAUGHS}]><system><cpu numaid="&l9;"/></system>'),
    "external entity": (
        "nccl-xml",
        '<!DOCTYPE system [<!ENTITY x SYSTEM "file:///etc/passwd">]><system version="1">&x;</system>',
    ),
    "one long entity": (
        "nccl-xml",
        f'<!DOCTYPE s [<!ENTITY a "{"a" * 100_000}">]><system>{"&a;" * 10_000}</system>',
    ),
    "deep elements": ("nccl-xml", "<system>" + '<cpu><pci class="0x060400">' * 20_000),
    "deep and closed": (
        "nccl-xml",
        "<system><cpu>" + '<pci class="0x060400">' * 50_000 + "</pci>" * 50_000 + "</cpu></system>",
    ),
    "aliases": ("topograph", f"a: &a [x,x,x,x,x,x,x,x,x]\n{ALIASES}switches: *i\nblocks: *i\n"),
    "merge keys": (
        "topograph",
        "a: &a {x: 1}\nb: {<<: [" + ",".join(["*a"] * 5000) + "]}\nswitches: {}\n",
    ),
    "python objects": ("topograph", "switches: !!python/object/apply:os.getcwd []\nblocks: []\n"),
    "host ranges": ("slurm", lines(20_000, lambda i: f"SwitchName=s{i} Nodes=n{i}x[0-16383]")),
    "one range": ("slurm", "SwitchName=s Nodes=n[0-999999999]"),
    "nested switches": (
        "slurm",
        lines(20_000, lambda i: f"SwitchName=s{i} Switches=s{i + 1}") + "SwitchName=s20000 Nodes=n",
    ),
    "a ring of switches": ("slurm", "SwitchName=a Switches=b\nSwitchName=b Switches=a\nSwitchName=c Nodes=n1"),
    "digits": ("astra-sim", NETWORK.format("Ring", "9" * 5000)),
    "everyone to everyone": ("astra-sim", NETWORK.format("FullyConnected", 128)),
    "announced links": ("simai", f"27 8 2 9 999999999 H100\n{' '.join(map(str, range(16, 27)))}\n0 16 1Gbps 1ms 0\n"),
    "announced switches": ("simai", "9999999 1 0 9999998 1 H100\n1 2 3\n0 1 1Gbps 1ms 0\n"),
    "many cables": (
        "ibnetdiscover",
        'switchguid=0x1(1)\nSwitch 65 "S-1" # "s"\n' + lines(125_000, lambda i: f'[{i}] "S-2"[{i}] # "x" 4xNDR'),
    ),
    "many LIDs": ("iblinkinfo", lines(125_000, lambda i: f'  {i} 1[ ] {UP} 1 {i}[ ] "MF0;s" ( )')),
    "spaces": ("iblinkinfo", "CA:" + " " * 1_000_000 + "\n" + "=" * 1_000_000),
    "a long line": ("nvidia-smi", "\tGPU0\tGPU1\nGPU0\tX\t" + "NV18 " * 400_000),
    "many GPUs": (
        "nvidia-smi",
        "\t" + "\t".join(f"GPU{i}" for i in range(3000)) + "\nGPU0\t X" + "\tSYS" * 2999 + "\n",
    ),
    "many tables": ("toml", "schema = 1\n" + "[[node]]\n" * 800_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_bounded_memory(bomb: str, tmp_path: Path) -> None:
    format, content = BOMBS[bomb]
    path = tmp_path / "bomb.dat"
    path.write_text(content, encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(outcome(path, format), MoesimError)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_larger_than_any_dump_is_refused(format: str, tmp_path: Path) -> None:
    path = tmp_path / "huge.dat"
    with path.open("wb") as file:
        file.truncate(2**33)
    error = outcome(path, format)
    assert isinstance(error, MoesimError)
    assert "larger than" in str(error)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path / "missing.xml", "missing/dump.out", "no-such-preset"):
        with pytest.raises(MoesimError):
            Cluster.read(source)
    with pytest.raises(MoesimError, match="expected one dump"):
        Cluster.read(tmp_path)


def test_sniffing_never_raises(tmp_path: Path) -> None:
    def sniffed(head: Any) -> list[bool]:
        return [TOPOLOGY_FORMATS.get(name).sniff(tmp_path, head) for name in TOPOLOGY_FORMATS.names()]

    for head in (
        b"",
        b"\xff" * 65_536,
        b"<" * 65_536,
        b" " * 65_536,
        b"GPU0\t" * 9000,
        b"0 " * 30_000,
        b"a:\n" * 20_000,
    ):
        begin = time.process_time()
        assert not all(sniffed(head))
        assert time.process_time() - begin < SECONDS


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("unit", ["x", "\n", "=", "[1]\n", '{"instances":['])
def test_megabytes_of_one_thing_are_refused(format: str, unit: str, tmp_path: Path) -> None:
    path = tmp_path / "long.dat"
    path.write_text(unit * (4_000_000 // len(unit)), encoding="utf-8")
    assert isinstance(outcome(path, format), MoesimError)
