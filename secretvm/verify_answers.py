"""What the verification calls say of an outcome: secretvm.md section 8, in the hosted service's mixture of spellings."""

from __future__ import annotations

from attest.artifacts import SevBuild, TdxBuild
from attest.quote import TdxQuote
from attest.snp import Report
from secretvm.builds import Finding, SevClaim, TdxClaim, padded_text
from secretvm.quotes import Parsed, hex_of


def tdx_answer(claim: TdxClaim, found: Finding) -> dict[str, object]:
    """What verify-docker says of an outcome."""
    said: dict[str, object] = {**_finding(found), "rtmr3": claim.rtmr3.hex()}
    if isinstance(found.build, TdxBuild):
        said["host_id"] = found.build.host_id.hex() or None
    if found.code:
        said["expected_rtmr3"] = found.expected.hex() if found.expected else None
    else:
        # There is no list of where builds lie.
        said |= {"dockerFilesSha256Used": found.docker_files.hex() or None, "artifactsLink": None}
    return said


def sev_answer(claim: SevClaim, found: Finding) -> dict[str, object]:
    """What verify-docker-sev says of an outcome; the registry has no host ids for it."""
    said: dict[str, object] = {**_finding(found), "measurement": claim.measurement.hex()}
    if found.expected:
        said["expected_measurement"] = found.expected.hex()
    return {**said, "host_id": None}


def _finding(found: Finding) -> dict[str, object]:
    status = {"status": "error", "code": found.code} if found.code else {"status": "success"}
    build = found.build
    names: dict[str, object] = {}
    if isinstance(build, (TdxBuild, SevBuild)):
        names = {
            "vm_type": found.size,
            "artifacts_ver": build.version,
            "environment": build.environment,
        }
    return {**status, "message": found.message, **names}


def resolved(builds: tuple[TdxBuild, ...]) -> dict[str, object]:
    """What resolve-attestation says of builds, newest first."""
    named = [
        {
            "vm_type": each.size,
            "artifacts_ver": each.version,
            "environment": each.environment,
        }
        for each in builds
    ]
    return {"status": "success", **named[0], "candidates": named}


def parsed_answer(parsed: Parsed) -> dict[str, object]:
    """What quote-parse and quote-parse-sev say of a quote."""
    found = parsed.evidence
    has_collateral = bool(parsed.collateral)
    status: dict[str, object] = {
        "attestation_type": "sev" if isinstance(found, Report) else "tdx",
        "result": parsed.result,
        "exp_status": str(int(parsed.has_expired)),
        "tcb_status": parsed.tcb_status,
        "advisory_ids": list(parsed.advisory_ids),
        "debug": parsed.is_debug,
        "message": parsed.message or None,
    }
    if isinstance(found, Report):
        status["checks"] = dict(parsed.checks)
    shown = _report(found) if isinstance(found, Report) else _quote(found)
    # Anybody can write a machine's id into a quote that nothing vouches for.
    is_there = parsed.is_known_machine and parsed.is_genuine
    return {
        "quote": {**shown, "machine_id": parsed.machine_id, "fmspc": parsed.fmspc},
        "collateral": hex_of(parsed.collateral) if has_collateral else {"error": parsed.message},
        "status": status,
        "proof_of_cloud": is_there,
        "origin": parsed.origin if is_there else None,
        "checked_at": parsed.checked_at,
    }


def _quote(quote: TdxQuote) -> dict[str, object]:
    report = quote.report
    said: dict[str, object] = {
        "version": quote.version,
        "tee_type": quote.tee_type,
        "att_key_type": quote.key_type,
        "qe_svn": quote.qe_svn,
        "pce_svn": quote.pce_svn,
        "qe_vendor_id": quote.qe_vendor_id.hex(),
        "user_data": quote.user_data.hex(),
        "tcb_svn": report.tee_tcb_svn.hex(),
        "mr_seam": report.mr_seam.hex(),
        "mr_signer_seam": report.mr_signer_seam.hex(),
        "seam_attributes": report.seam_attributes.hex(),
        "td_attributes": report.td_attributes.hex(),
        "xfam": report.xfam.hex(),
        "mr_td": report.mrtd.hex(),
        "mr_config_id": report.mr_config_id.hex(),
        "mr_owner": report.mr_owner.hex(),
        "mr_owner_config": report.mr_owner_config.hex(),
        **{f"rtmr{number}": value.hex() for number, value in enumerate(report.rtmrs)},
        "report_data": report.report_data.hex(),
    }
    if report.mr_service_td:
        said["tcb_svn2"] = report.tee_tcb_svn2.hex()
        said["mr_service_td"] = report.mr_service_td.hex()
    return said


def _report(report: Report) -> dict[str, object]:
    return {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": f"0x{report.policy:016x}",
        "family_id": report.family_id.hex(),
        "family": padded_text(report.family_id.decode(errors="replace")),
        "image_id": report.image_id.hex(),
        "image": padded_text(report.image_id.decode(errors="replace")),
        "vmpl": report.vmpl,
        "signature_algo": report.signature_algorithm,
        "platform_info": report.platform_info,
        "key_flags": report.key_flags,
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "chip_id": report.chip_id.hex(),
        "current_tcb": report.current_tcb.hex(),
        "reported_tcb": report.reported_tcb.hex(),
        "committed_tcb": report.committed_tcb.hex(),
        "launch_tcb": report.launch_tcb.hex(),
        "cpuid_family": report.family,
        "cpuid_model": report.model,
        "cpuid_stepping": report.stepping,
    }
