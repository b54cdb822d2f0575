"""The verbs of the guest agent; nothing here knows HTTP or the serial port.

Source: guest-agent.md sections 4 to 9 (seed 000).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from attest import envelope, eventlog, ratls
from attest.eventlog import Event
from core.certs import Issuer, Leaf
from core.errors import CasemateError, Invalid, Unavailable
from core.kdf import kdf, p256_key, pkcs8_pem
from core.messages import LogsOrder
from guest import certs, channel, identity, keys, sysinfo, tee
from guest.channel import Notifier
from guest.containers import Engine, LogQuery, moment
from guest.events import event_log
from guest.evidence import Evidence, Measurements, padded
from guest.identity import App, Instance, SysConfig
from guest.keys import AppKeys
from guest.settings import Settings

logger = logging.getLogger(__name__)

# The guest interface served, in dstack's numbering: SDKs compare it (guest-agent.md section 5, Version).
INTERFACE_VERSION = "0.5.11"
# guest-agent.md section 4: hash algorithms of the legacy TdxQuote.
_HASHES = ("sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512")
_KECCAKS = ("keccak256", "keccak384", "keccak512")
# Info waits so long for its certificate: the host, who asks most, gives a whole call 3 s.
APP_CERT_S = 2.0
APP_CERT_AGAIN_S = 30.0
LOOK_FOR_KEYS_S = 0.5
# How nice the making of that certificate is to the boot that goes on beside it.
APP_CERT_NICENESS = 10


@dataclass(frozen=True)
class Vm:
    """Everything that is known of this VM once it has booted."""

    app: App
    instance: Instance
    sys_config: SysConfig
    keys: AppKeys
    evidence: Evidence

    @functools.cached_property
    def issuer(self) -> Issuer:
        """The app's own CA, where it has no KMS; reading its key costs more than a signature."""
        return certs.issuer_of(self.keys.key_provider, self.keys.ca_cert)


class Agent:
    """The guest agent; `power_off` starts the VM's orderly end and returns at once."""

    def __init__(self, settings: Settings, power_off: Callable[[], None]) -> None:
        self.settings = settings
        self.engine = Engine(settings.docker_host)
        self._power_off = power_off
        self._loading = threading.Lock()
        self._vm: Vm | None = None
        self._app_cert = ""
        self._has_tried_cert = threading.Event()
        self._log_text: tuple[tuple[Event, ...], str] = ((), "[]")

    # What the agent works with

    def vm(self) -> Vm:
        """This VM; Unavailable until the boot has its keys, with the reason when it failed."""
        with self._loading:
            if self._vm is None:
                self._vm = self._load()
                threading.Thread(target=self._keep_app_cert, name="app cert", daemon=True).start()
            return self._vm

    def watch_boot(self) -> None:
        """Loads this VM as soon as its boot has the keys, so that the first caller need not wait; returns at once."""
        threading.Thread(target=self._await_keys, name="boot watch", daemon=True).start()

    def _await_keys(self) -> None:
        settings = self.settings
        while not settings.app_keys.exists():
            if settings.boot_error.exists():
                return
            time.sleep(LOOK_FOR_KEYS_S)
        try:
            self.vm()
        except CasemateError as error:
            logger.error("this VM cannot be loaded: %s", error.message)

    def _load(self) -> Vm:
        settings = self.settings
        try:
            app_keys = keys.load(settings.app_keys)
        except FileNotFoundError:
            raise Unavailable(self._why_no_keys()) from None
        app = App.read(settings.app_compose)
        info = identity.InstanceInfo.read(settings.instance_info)
        sys_config = SysConfig.read(settings.sys_config)
        instance = info.of_app(app, fresh_seed=b"", keep_id=settings.simulated)
        platform = tee.detect(settings)
        log = event_log(settings, platform)
        proof = Evidence(platform, log, sys_config.vm_config, sys_config.mr_config)
        return Vm(app, instance, sys_config, app_keys, proof)

    def _why_no_keys(self) -> str:
        try:
            return f"the boot failed: {self.settings.boot_error.read_text()}"
        except FileNotFoundError:
            return "the guest is still booting"

    # Keys and certificates

    def get_key(self, path: str, purpose: str, algorithm: str) -> Mapping[str, object]:
        """GetKey: a derived key and the two signatures that vouch for it."""
        derived = keys.derive(self.vm().keys, path, purpose, algorithm)
        return {"key": derived.key, "signature_chain": derived.signature_chain}

    def get_tls_key(
        self,
        subject: str,
        alt_names: Sequence[str],
        usage_ra_tls: bool,
        usage_server_auth: bool,
        usage_client_auth: bool,
        not_before: int | None,
        not_after: int | None,
        with_app_info: bool,
    ) -> Mapping[str, object]:
        """GetTlsKey: a new key with a certificate chain that ends in the app's root."""
        # Seed 000 shows both times as 0: a certificate that begins in 1970 and has no end of its own.
        times = (not_before, not_after or None)
        leaf = Leaf(subject, alt_names, usage_server_auth, usage_client_auth, *times)
        key = ec.generate_private_key(ec.SECP256R1())
        return self._certified(key, leaf, ra_tls=usage_ra_tls, with_app_info=with_app_info)

    def _certified(
        self, key: ec.EllipticCurvePrivateKey, leaf: Leaf, *, ra_tls: bool, with_app_info: bool
    ) -> Mapping[str, object]:
        vm = self.vm()
        if vm.keys.key_provider.kind == "Kms":
            from guest import provision

            wish = provision.Wish(ra_tls, with_app_info)
            chain = provision.certify(vm.keys, vm.evidence, key, leaf, wish)
            return {"key": pkcs8_pem(key), "certificate_chain": chain}
        extensions = [ratls.usage_extension("app:custom")]
        if ra_tls:
            extensions.append(vm.evidence.ra_tls_extension(key.public_key()))
        if with_app_info:
            extensions.append(ratls.app_info_extension(self._app_info(vm)))
        certificate = vm.issuer.issue(key.public_key(), replace(leaf, extensions=extensions))
        return {"key": pkcs8_pem(key), "certificate_chain": [certificate, vm.keys.ca_cert]}

    def sign(self, algorithm: str, data: bytes) -> Mapping[str, object]:
        """Sign: a signature by the app's signing key, with the chain that vouches for the key."""
        base = keys.signing_algorithm(algorithm)
        derived = keys.signing_key(self.vm().keys, base)
        signature = keys.sign(derived.key, algorithm, data)
        return {
            "signature": signature,
            "signature_chain": [signature, *derived.signature_chain],
            "public_key": derived.public_key,
        }

    def verify(
        self, algorithm: str, data: bytes, signature: bytes, public_key: bytes
    ) -> Mapping[str, object]:
        """Verify: whether any key's signature over the data is valid."""
        return {"valid": keys.verify(algorithm, data, signature, public_key)}

    # Evidence

    def get_quote(self, report_data: bytes) -> Mapping[str, object]:
        """GetQuote: a quote over the padded report data and the log that replays to it."""
        vm = self.vm()
        data = padded(report_data)
        if vm.evidence.tee.variant == tee.SEV_SNP:
            attestation = envelope.encode(vm.evidence.attestation(data))
            return {
                "quote": b"",
                "event_log": "",
                "report_data": data,
                "vm_config": vm.sys_config.vm_config,
                "attestation": attestation,
            }
        quoted = vm.evidence.quote(data)
        return {
            "quote": quoted.quote,
            "event_log": self._log_json(quoted.events),
            "report_data": data,
            "vm_config": vm.sys_config.vm_config,
            "attestation": b"",
        }

    def _log_json(self, events: tuple[Event, ...]) -> str:
        # Quotes come far more often than events.
        of, text = self._log_text
        if of is not events:
            text = eventlog.to_json(events)
            self._log_text = (events, text)
        return text

    def attest(self, report_data: bytes) -> Mapping[str, object]:
        """Attest: the versioned attestation, which a verifier takes alone."""
        attestation = self.vm().evidence.attestation(padded(report_data))
        return {"attestation": envelope.encode(attestation)}

    def emit_event(self, event: str, payload: bytes) -> None:
        """EmitEvent: measures an event of the app into RTMR3."""
        vm = self.vm()
        if vm.evidence.tee.variant == tee.NO_TEE:
            raise Invalid("this VM has no TEE that could measure an event")
        vm.evidence.log.emit(event, payload, vm.app.compose.event_log_version)

    def app_key_attestation(self, algorithm: str) -> Mapping[str, object]:
        """GetAttestationForAppKey: a quote that binds the public key of Sign."""
        base = keys.signing_algorithm(algorithm)
        derived = keys.signing_key(self.vm().keys, base)
        kind = "ed25519-pk" if base == keys.ED25519 else "secp256k1c-pk"
        text = base64.urlsafe_b64encode(derived.public_key).rstrip(b"=").decode()
        return self.get_quote(f"dip1::{kind}:{text}".encode())

    # What the VM is

    def version(self) -> Mapping[str, object]:
        """Version: the guest interface served and the revision that serves it."""
        return {"version": INTERFACE_VERSION, "rev": revision(self.settings)}

    def release(self) -> str:
        """The same in one line, which every answer on port 8090 carries."""
        return f"v{INTERFACE_VERSION} ({revision(self.settings)})"

    def gpu_info(self) -> Mapping[str, object]:
        """GpuInfo: what the boot-time GPU attestation printed, empty when there is no GPU."""
        try:
            return {"attestation": self.settings.gpu_attestation.read_text()}
        except FileNotFoundError:
            return {"attestation": ""}

    def info(self, *, public: bool = False) -> Mapping[str, object]:
        """Info; the public view leaves out what the app keeps to itself."""
        vm = self.vm()
        measured = vm.evidence.measurements(vm.keys.key_provider.info)
        show_tcb = vm.app.compose.public_tcbinfo or not public
        vendor, product = sysinfo.cloud(self.settings.root)
        return {
            "app_id": vm.instance.app_id,
            "instance_id": vm.instance.instance_id,
            "app_cert": self._shown_cert(),
            "tcb_info": _tcb_info(vm, measured) if show_tcb else "",
            "app_name": vm.app.compose.name,
            "device_id": measured.device_id,
            "mr_aggregated": measured.mr_aggregated,
            "os_image_hash": vm.sys_config.os_image_hash,
            "key_provider_info": vm.keys.key_provider.info,
            "compose_hash": vm.app.compose_hash,
            "vm_config": vm.sys_config.vm_config if show_tcb else "",
            "cloud_vendor": vendor,
            "cloud_product": product,
        }

    def public_info(self) -> Mapping[str, object]:
        """Info as anyone on the network may see it."""
        return self.info(public=True)

    def _shown_cert(self) -> str:
        self._has_tried_cert.wait(APP_CERT_S)
        return self._app_cert

    def _keep_app_cert(self) -> None:
        # The demo certificate that Info shows; it costs a quote, so it is made once.
        if not self.settings.simulated:
            # Of this thread alone, as Linux has it.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), APP_CERT_NICENESS)
        while not self._app_cert:
            try:
                self._app_cert = self._issue_app_cert()
            except CasemateError as error:
                logger.warning("no demo certificate yet: %s", error.message)
            finally:
                self._has_tried_cert.set()
            if not self._app_cert:
                time.sleep(APP_CERT_AGAIN_S)

    def _issue_app_cert(self) -> str:
        has_tee = self.vm().evidence.tee.variant != tee.NO_TEE
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = Leaf(subject="demo-cert", client_auth=True)
        made = self._certified(key, leaf, ra_tls=has_tee, with_app_info=False)
        chain: Any = made["certificate_chain"]
        return "".join(chain)

    def _app_info(self, vm: Vm) -> ratls.AppInfo:
        measured = vm.evidence.measurements(vm.keys.key_provider.info)
        hashes = [hashlib.sha256(text.encode()).digest() for text in vm.app.compose.init_scripts]
        return ratls.AppInfo(
            app_id=vm.instance.app_id,
            compose_hash=vm.app.compose_hash,
            instance_id=vm.instance.instance_id,
            device_id=measured.device_id,
            mr_system=measured.mr_system,
            mr_aggregated=measured.mr_aggregated,
            os_image_hash=vm.sys_config.os_image_hash,
            key_provider_info=vm.keys.key_provider.info.encode(),
            init_script_hashes=tuple(hashes) or None,
        )

    # Legacy service

    def derive_key(
        self,
        path: str,
        subject: str,
        alt_names: Sequence[str],
        usage_ra_tls: bool,
        usage_server_auth: bool,
        usage_client_auth: bool,
        random_seed: bool,
    ) -> Mapping[str, object]:
        """Tappd.DeriveKey: a P-256 key that is the same for a path, with a certificate."""
        seed = os.urandom(32) if random_seed else self.vm().keys.k256_key
        key = p256_key(kdf(seed, path.encode()))
        leaf = Leaf(subject, alt_names, usage_server_auth, usage_client_auth)
        return self._certified(key, leaf, ra_tls=usage_ra_tls, with_app_info=False)

    def derive_k256_key(self, path: str, purpose: str) -> Mapping[str, object]:
        """Tappd.DeriveK256Key: GetKey under its old name."""
        derived = keys.derive(self.vm().keys, path, purpose, keys.SECP256K1)
        return {"k256_key": derived.key, "k256_signature_chain": derived.signature_chain}

    def tdx_quote(
        self, report_data: bytes, hash_algorithm: str, prefix: str | None
    ) -> Mapping[str, object]:
        """Tappd.TdxQuote: a quote over a hash of the data, or over the data itself (`raw`)."""
        algorithm = hash_algorithm or "sha512"
        if algorithm == "raw":
            return self.raw_quote(report_data)
        tag = "app-data" if prefix is None else prefix
        quoted = self.get_quote(_digest(algorithm, tag.encode() + b":" + report_data))
        return {**quoted, "hash_algorithm": algorithm, "prefix": tag}

    def raw_quote(self, report_data: bytes) -> Mapping[str, object]:
        """Tappd.RawQuote: a quote over exactly 64 bytes."""
        if len(report_data) != tee.REPORT_DATA_SIZE:
            raise Invalid("invalid content length")
        return {**self.get_quote(report_data), "hash_algorithm": "raw", "prefix": ""}

    # The host's calls

    def sys_info(self) -> sysinfo.SystemInfo:
        """SysInfo: memory, processors, load and disks."""
        return sysinfo.system(self.settings.root, self.settings.disks)

    def network_info(self) -> sysinfo.NetworkInfo:
        """NetworkInfo: name servers, routers and interfaces."""
        return sysinfo.network(self.settings.root)

    def list_containers(self) -> Mapping[str, object]:
        """ListContainers: every container of the engine."""
        return {"containers": self.engine.list()}

    def container_logs(self, order: LogsOrder) -> str:
        """Logs: the last lines of a service's containers, or of all of them, one container after the other."""
        query = LogQuery(
            since=moment("since", order.since),
            until=moment("until", order.until),
            tail=str(order.lines),
            timestamps=order.timestamps,
        )
        return self.engine.merged_logs(order.service, query)

    def quote_text(self, report_data: bytes = b"") -> str:
        """Quote: one over the padded report data, as text: hex, or base64 for a report."""
        vm = self.vm()
        quote = vm.evidence.quote(padded(report_data)).quote
        is_snp = vm.evidence.tee.variant == tee.SEV_SNP
        return base64.b64encode(quote).decode() if is_snp else quote.hex()

    def guest_info(self) -> Mapping[str, object]:
        """Info as the host may see it, with the version."""
        return {**self.info(public=True), "version": INTERFACE_VERSION}

    def shutdown(self) -> None:
        """Shutdown: tells the host, then ends the VM; the answer leaves before it is gone."""
        notifier = Notifier(channel.host(self.settings))
        notifier.notify("shutdown.progress", "powering off")

        def end() -> None:
            notifier.close()
            self._power_off()

        threading.Thread(target=end, name="shutdown", daemon=True).start()


@functools.cache
def revision(settings: Settings) -> str:
    """Which program serves the interface: the image's version in a guest, else the installed package's."""
    if not settings.simulated:
        return f"image:{sysinfo.os_release(settings.root).get('VERSION_ID', '')}"
    # Not at the top: nothing in a guest needs it, and it is slow to read in under emulation.
    import importlib.metadata

    return f"casemate:{importlib.metadata.version('casemate')}"


def _tcb_info(vm: Vm, measured: Measurements) -> str:
    registers = {f"rtmr{i}": value.hex() for i, value in enumerate(measured.rtmrs)}
    fields = {
        "mrtd": measured.mrtd.hex(),
        **({f"rtmr{i}": "" for i in range(tee.REGISTERS)} | registers),
        "mr_aggregated": measured.mr_aggregated.hex(),
        "os_image_hash": vm.sys_config.os_image_hash.hex(),
        "compose_hash": vm.app.compose_hash.hex(),
        "device_id": measured.device_id.hex(),
        "event_log": json.loads(eventlog.to_json(measured.events)),
        "app_compose": vm.app.text,
    }
    return json.dumps(fields, indent=2, ensure_ascii=False)


def _digest(algorithm: str, data: bytes) -> bytes:
    if algorithm in _HASHES:
        return hashlib.new(algorithm.replace("sha3-", "sha3_"), data).digest()
    if algorithm not in _KECCAKS:
        raise Invalid(f"Unsupported hash algorithm: {algorithm}")
    from Crypto.Hash import keccak

    bits: Any = int(algorithm.removeprefix("keccak"))
    return keccak.new(digest_bits=bits, data=data).digest()
