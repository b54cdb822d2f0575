from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from attest import artifacts, quote
from attest.artifacts import Registry, TdxBuild
from attest.errors import Malformed
from core.errors import CasemateError
from tests.common.published import secretvm

REGISTERS = (b"\x01" * 48, b"\x02" * 48, b"\x03" * 48, b"\x04" * 48)
ROOTFS = b"\x05" * 32
COMPOSE = b"services: {a: {image: b}}\n"


def tdx_csv(*rows: dict[str, str]) -> bytes:
    columns = [
        "template_name",
        "vm_type",
        "artifacts_ver",
        "mrtd",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "rootfs_data",
        "host_id",
    ]
    whole = {
        "template_name": "small",
        "vm_type": "prod",
        "artifacts_ver": "v0.0.25",
        **{name: value.hex() for name, value in zip(columns[3:7], REGISTERS, strict=True)},
        "rootfs_data": ROOTFS.hex(),
        "host_id": "ab" * 48,
    }
    lines = [",".join((whole | row)[name] for name in columns) for row in rows]
    return "\n".join([",".join(columns), *lines, ""]).encode()


def sev_json(**changes: Any) -> bytes:
    entry = {
        "vm_type": "prod",
        "artifacts_ver": "v0.0.25",
        "kernel_hash": "11" * 32,
        "initrd_hash": "22" * 32,
        "rootfs_hash": "33" * 32,
        "vcpu_type": "EPYC",
        "ovmf_hash": "44" * 48,
        "sev_hashes_table_gpa": 0x810C00,
        "sev_es_reset_eip": 0x80B004,
        "ovmf_sections": [
            {"gpa": 0x800000, "size": 0x9000, "section_type": 1},
            {"gpa": 0x80D000, "size": 0x1000, "section_type": 2},
            {"gpa": 0x80E000, "size": 0x1000, "section_type": 3},
            {"gpa": 0x80F000, "size": 0x1000, "section_type": 4},
            {"gpa": 0x810000, "size": 0x1000, "section_type": 16},
        ],
    }
    return json.dumps([entry | changes]).encode()


def chained(*entries: bytes) -> bytes:
    """RTMR3 by the letter of the scheme, without the library."""
    register = bytes(48)
    for entry in entries:
        register = hashlib.sha384(register + entry + bytes(48 - len(entry))).digest()
    return register


def test_the_original_scheme_chains_compose_rootfs_and_docker_files() -> None:
    compose, files = hashlib.sha256(COMPOSE).digest(), b"\x09" * 32

    assert artifacts.rtmr3(COMPOSE, ROOTFS) == chained(compose, ROOTFS)
    assert artifacts.rtmr3(COMPOSE, ROOTFS, files) == chained(compose, ROOTFS, files)


def test_the_dstack_scheme_chains_events() -> None:
    def event(name: bytes, payload: bytes) -> bytes:
        return hashlib.sha384(b"\x01\x00\x00\x08:" + name + b":" + payload).digest()

    compose, app_id, files = hashlib.sha256(COMPOSE).digest(), b"\x0a" * 20, b"\x09" * 32
    events = [
        event(b"app-id", app_id),
        event(b"compose-hash", compose),
        event(b"os-image-hash", ROOTFS),
    ]

    assert artifacts.dstack_rtmr3(app_id, COMPOSE, ROOTFS) == chained(*events)
    events.append(event(b"docker-files-hash", files))
    assert artifacts.dstack_rtmr3(app_id, COMPOSE, ROOTFS, files) == chained(*events)


def test_the_published_quotes_compose_file_is_recognised() -> None:
    registry = artifacts.parse("tdx.csv", secretvm("tdx.csv"))
    report = quote.parse(
        bytes.fromhex(secretvm("quotes/tdx_cpu_docker_check_quote.txt").decode())
    ).report
    compose = secretvm("quotes/tdx_cpu_docker_check_compose.yaml")

    found = registry.candidates((report.mrtd, report.rtmrs[0], report.rtmrs[1], report.rtmrs[2]))

    # Four builds share the registers and differ in their root file systems.
    assert [(each.environment, each.version) for each in found] == [
        ("prod", "v0.0.25"),
        ("dev", "v0.0.25"),
        ("dev", "v0.0.25-beta.2"),
        ("prod", "v0.0.25-beta.2"),
    ]
    matching = [each for each in found if artifacts.rtmr3(compose, each.rootfs) == report.rtmrs[3]]
    assert [(each.size, each.environment, each.version) for each in matching] == [
        ("small", "prod", "v0.0.25")
    ]


def test_the_published_dstack_vector_comes_out() -> None:
    known = json.loads(secretvm("quotes/dstack_prod.json"))
    compose = secretvm("quotes/dstack_compose.yaml")

    found = artifacts.dstack_rtmr3(
        bytes.fromhex(known["app"]), compose, bytes.fromhex(known["rootfs"])
    )
    assert found.hex() == known["rtmr3"]


def test_the_published_files_are_read_whole() -> None:
    assert len(artifacts.parse("tdx.csv", secretvm("tdx.csv")).tdx) == 109
    assert len(artifacts.parse("sev.json", secretvm("sev.json")).sev) == 22


def test_a_launch_digest_is_that_of_the_vendors_verifier() -> None:
    # Computed by the verifier of secretvm-verify 0.12.0 for its prod v0.0.26-beta.2, compose file `x`.
    build = artifacts.parse("sev.json", secretvm("sev.json")).sev[0]

    assert next(build.measurements(b"x", b"", 8)).hex() == (
        "a39349dcafb274c57a5aeacec3e8a36510a50b758b548fc773bab5b92a0cbf51"
        "a1f9733f4466b4dd57cbd6c7575aa6fb"
    )
    assert next(build.measurements(b"x", b"\xab" * 32, 1)).hex() == (
        "5dd458f4b9752d20585eb9d86dbca537b9ea869ce1b430f51614a77d24177b44"
        "73cae724a54da0dc5eb7655be749e607"
    )


def test_each_input_of_a_launch_digest_counts() -> None:
    build = artifacts.parse("sev.json", sev_json()).sev[0]
    inputs = [
        (COMPOSE, b"", 1),
        (COMPOSE + b" ", b"", 1),
        (COMPOSE, b"\x01" * 32, 1),
        (COMPOSE, b"", 2),
    ]

    digests = {next(build.measurements(*each)) for each in inputs}
    assert len(digests) == len(inputs)


def test_further_words_of_a_builds_kernel_line_are_tried() -> None:
    plain = artifacts.parse("sev.json", sev_json()).sev[0]
    more = artifacts.parse("sev.json", sev_json(cmdline_extra="pci=realloc,nocrs")).sev[0]

    assert len(list(plain.measurements(COMPOSE, b"", 1))) == 1
    first, second = more.measurements(COMPOSE, b"", 1)
    assert first == next(plain.measurements(COMPOSE, b"", 1))
    assert second != first


def test_a_compose_file_is_taken_out_of_the_page_that_shows_it() -> None:
    page = "<html><pre class='x'>a: &quot;b&quot;\n\u200bc: &lt;d&gt;</pre></html>".encode()

    assert artifacts.compose_texts(page) == (page, b'a: "b"\nc: <d>')
    assert artifacts.compose_texts(COMPOSE) == (COMPOSE,)
    assert artifacts.compose_texts(b"\xff<pre>x</pre>") == (b"\xff<pre>x</pre>",)


def test_the_newest_version_comes_first_and_a_release_before_its_pre_releases() -> None:
    order = [
        "v0.1.0",
        "v0.0.30",
        "v0.0.30-beta.10",
        "v0.0.30-beta.9",
        "v0.0.30-beta",
        "v0.0.30-alpha.1",
        "v0.0.4",
        "not a version",
    ]
    builds = [TdxBuild("small", "prod", version, REGISTERS, ROOTFS) for version in sorted(order)]

    assert [each.version for each in artifacts.newest_first(builds)] == order


def test_equal_rows_of_several_files_count_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "tdx.csv").write_bytes(tdx_csv({}, {"artifacts_ver": "v0.0.26"}))
    (second / "more.csv").write_bytes(tdx_csv({"rootfs_data": f" 0x{'AB' * 32}"}))
    (second / "sev.json").write_bytes(sev_json())
    (second / "notes.txt").write_text("nothing of ours")

    found = artifacts.read([first, second, tmp_path / "absent"])

    assert [len(found.tdx), len(found.sev)] == [3, 1]
    assert len(found.candidates(REGISTERS)) == 3
    assert found.candidates((*REGISTERS[:3], bytes(48))) == ()
    assert len(found.launched("prod", "v0.0.25")) == 1
    assert found.launched("dev", "v0.0.25") == ()


def test_a_file_that_is_added_or_replaced_counts_at_once(tmp_path: Path) -> None:
    assert artifacts.read([tmp_path]) == Registry()
    (tmp_path / "a.csv").write_bytes(tdx_csv({}))
    assert len(artifacts.read([tmp_path]).tdx) == 1
    (tmp_path / "a.csv").write_bytes(tdx_csv({}, {"vm_type": "dev"}))
    assert len(artifacts.read([tmp_path]).tdx) == 2


BAD_CSV = [
    ("column", b"template_name,vm_type\nsmall,prod\n", "the columns artifacts_ver"),
    ("text", b"\xff", "is not UTF-8 text"),
    ("register", tdx_csv({"mrtd": "ab"}), "entry 1: mrtd must be 96 hex digits"),
    ("rootfs", tdx_csv({}, {"rootfs_data": "zz" * 32}), "entry 2: rootfs_data must be 64"),
    ("name", tdx_csv({"template_name": "../x"}), "template_name must be"),
    ("version", tdx_csv({"artifacts_ver": ""}), "artifacts_ver must be"),
]


@pytest.mark.parametrize(("content", "why"), [case[1:] for case in BAD_CSV])
def test_a_broken_table_is_refused_with_its_row(content: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=f"mine.csv: .*{why}"):
        artifacts.parse("mine.csv", content)


BAD_JSON = [
    (b"{}", "must be a JSON list"),
    (b"[1]", "must be a JSON list"),
    (b"[" * 100_000, "must be a JSON list"),
    (sev_json(kernel_hash="11"), "kernel_hash must be 64 hex digits"),
    (sev_json(ovmf_sections={}), "ovmf_sections must be a list"),
    (sev_json(ovmf_sections=[{"gpa": -1, "size": 0, "section_type": 1}]), "gpa must be a whole"),
    (sev_json(ovmf_sections=[{"gpa": 0, "size": 1, "section_type": 1}]), "unknown type or size"),
    (sev_json(sev_es_reset_eip=True), "sev_es_reset_eip must be a whole"),
    (sev_json(vcpu_type="PDP-11"), "vcpu_type must be one of"),
    (sev_json(cmdline_extra="a\nb"), "cmdline_extra must be a line"),
]


@pytest.mark.parametrize(("content", "why"), BAD_JSON)
def test_a_broken_list_is_refused_with_its_entry(content: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        artifacts.parse("mine.json", content)


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(CasemateError, match=r"must be a \.csv"):
        artifacts.parse("registry.txt", b"")
