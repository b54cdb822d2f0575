"""Makes whole evidence of simulated VMs, of either platform, and what a verifier needs to judge it."""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from attest import envelope, eventlog, lite, mr_config, snp_launch
from attest.eventlog import Event, runtime_event
from attest.evidence import Attestation, SnpEvidence, TdxEvidence
from attest.root import Roots, read_roots
from attest.tdvf import Accepted
from attest.verified import Trust
from attest_sim import launch, snp
from attest_sim.snp import SimulatedProcessor
from attest_sim.tdx import SimulatedPlatform

NOW = 1_800_000_000
PROCESSOR_SEED = b"a simulated processor for tests."
APP_ID = b"\xaa" * 20
COMPOSE_HASH = b"\xcc" * 32
INSTANCE_ID = b"\x1d" * 20
KEY_PROVIDER = b'{"name":"local-sgx","id":"0102"}'
REPORT_DATA = bytes(range(64))
IDENTITY = (
    ("system-preparing", b""),
    ("app-id", APP_ID),
    ("compose-hash", COMPOSE_HASH),
    ("instance-id", INSTANCE_ID),
    ("boot-mr-done", b""),
    ("key-provider", KEY_PROVIDER),
    ("system-ready", b""),
)
MEASURED = lite.Measurement(
    cmdline=b"\x01" * 48,
    kernel=b"\x02" * 48,
    initrd=b"\x03" * 48,
    mrtd_single_pass=b"\x04" * 48,
    mrtd_two_pass=b"\x05" * 48,
    accepted=Accepted(0x809000, ((0x800000, 0x6000), (0x809000, 0x2000))),
)
SNP_MEASURED = snp_launch.Measurement(
    cmdline="console=ttyS0",
    ovmf_hash=b"\x06" * 48,
    kernel_hash=b"\x07" * 32,
    initrd_hash=b"\x08" * 32,
    hashes_table_gpa=0x810C00,
    reset_eip=0x80B004,
    sections=(snp_launch.Section(0x800000, 0x9000, 1), snp_launch.Section(0x810000, 0x1000, 0x10)),
)


@functools.cache
def platform(seed: bytes = b"a simulated platform for tests ..") -> SimulatedPlatform:
    """A simulated TDX host, made once."""
    return SimulatedPlatform.from_seed(seed[:32])


@functools.cache
def processor(seed: bytes = PROCESSOR_SEED) -> SimulatedProcessor:
    """A simulated SEV-SNP host, made once: its keys take a second."""
    return SimulatedProcessor.from_seed(seed)


@functools.cache
def collateral(now: int = NOW) -> str:
    """The platform's collateral around a time."""
    return platform().collateral_json(now)


def roots() -> Roots:
    """The simulated roots."""
    return read_roots((platform().root_ca_pem + processor().root_ca_pem).encode())


def trust(now: int = NOW, **changes: Any) -> Trust:
    """A verifier that trusts the simulated roots and has their collateral."""
    trusted = roots()
    made = Trust(now, lambda asked: collateral(), trusted.tdx, trusted.snp)
    return replace(made, **changes)


def proof(files: dict[str, bytes], name: str) -> dict[str, str]:
    """An image's description: a checksum file over `files`, and the one of them called `name`."""
    sums = checksums(files)
    return {
        "checksum_file": base64.b64encode(sums).decode(),
        "measurement": base64.b64encode(files[name]).decode(),
    }


def checksums(files: dict[str, bytes]) -> bytes:
    """sha256sum.txt over files."""
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return "".join(lines).encode()


def vm_config(**changes: Any) -> str:
    """The vm_config of a TDX VM whose image has a measurement."""
    files = {"metadata.json": b"{}", lite.FILE: lite.encode(MEASURED)}
    fields: dict[str, Any] = {
        "os_image_hash": hashlib.sha256(checksums(files)).hexdigest(),
        "memory_size": 2 * 1024**3,
        "qemu_version": "9.2.1",
        "tdx_measurement": proof(files, lite.FILE),
    }
    return json.dumps(
        {key: value for key, value in (fields | changes).items() if value is not None}
    )


def snp_config(**changes: Any) -> str:
    """The vm_config of a SEV-SNP VM whose image has a measurement."""
    files = {"metadata.json": b"{}", snp_launch.FILE: snp_launch.encode(SNP_MEASURED)}
    launched = {"vcpus": 2, "vcpu_type": "EPYC-v4", "guest_features": 1}
    fields: dict[str, Any] = {
        "os_image_hash": hashlib.sha256(checksums(files)).hexdigest(),
        "sev_snp_measurement": json.dumps(proof(files, snp_launch.FILE) | launched),
    }
    return json.dumps(
        {key: value for key, value in (fields | changes).items() if value is not None}
    )


DOCUMENT = json.dumps(
    {
        "app_id": APP_ID.hex(),
        "compose_hash": COMPOSE_HASH.hex(),
        "instance_id": INSTANCE_ID.hex(),
        "key_provider": "kms",
        "key_provider_id": "0102",
        "version": 3,
    },
    separators=(",", ":"),
)


@dataclass(frozen=True)
class TdxVm:
    """A simulated TDX VM: what it measured, and what its host says of it."""

    runtime: tuple[Event, ...] = tuple(runtime_event(name, data) for name, data in IDENTITY)
    config: str = ""
    mr_config_id: bytes = bytes(48)
    options: tuple[tuple[str, Any], ...] = ()
    report_data: bytes = REPORT_DATA

    def attestation(self) -> Attestation:
        """Its attestation, in which everything agrees."""
        config = self.config or vm_config()
        launched = launch.of_vm(config)
        events = (*launched.events, *self.runtime)
        quote = platform().quote(
            self.report_data,
            mrtd=launched.mrtd,
            rtmrs=[eventlog.replay(events, imr) for imr in range(4)],
            mr_config_id=self.mr_config_id,
            **dict(self.options),
        )
        runtime = tuple(event for event in events if event.is_runtime)
        return Attestation(TdxEvidence(quote, events), runtime, self.report_data, config)


def snp_attestation(
    document: str = DOCUMENT, config: str = "", chain: bool = True, **report: Any
) -> Attestation:
    """The attestation of a simulated SEV-SNP VM, in which everything agrees but for `report`'s changes."""
    fields: dict[str, Any] = {
        "measurement": snp_launch.digest(SNP_MEASURED, 2, "EPYC-v4", 1),
        "host_data": mr_config.host_data(document),
    }
    raw = processor().report(REPORT_DATA, **(fields | report))
    runtime = tuple(runtime_event(name, data) for name, data in IDENTITY)
    certificates = processor().chain_der if chain else ()
    platform = SnpEvidence(raw, certificates, document)
    return Attestation(platform, runtime, REPORT_DATA, config or snp_config())


def revocations(
    *serials: int, key: rsa.RSAPrivateKey | None = None, issuer: x509.Name | None = None
) -> bytes:
    """The simulated processor's list of revoked keys (DER), for a month around NOW."""
    start = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer or processor().ark.subject)
    builder = builder.last_update(start - datetime.timedelta(1))
    builder = builder.next_update(start + datetime.timedelta(30))
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start)
        builder = builder.add_revoked_certificate(revoked.build())
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    crl = builder.sign(key or snp._rsa_key(PROCESSOR_SEED, "ark"), hashes.SHA384(), rsa_padding=pss)
    return crl.public_bytes(Encoding.DER)


def request(attestation: Attestation, **more: Any) -> dict[str, Any]:
    """The body of `POST /verify` for an attestation."""
    return {"attestation": envelope.encode(attestation).hex(), **more}
