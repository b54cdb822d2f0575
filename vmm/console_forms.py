"""The deploy and update forms: from what was typed to the messages of /prpc, and from a VM to what is shown (pure).

Nothing is judged here: a value that is no number goes on as it was typed, and the message says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.errors import CasemateError, Invalid
from vmm.console_compose import FLAGS, TEXTS, Form, lines, shown, wanted

PORT = ("port_protocol", "port_address", "port_host", "port_vm")
CARD = ("network_mode", "network_bridge")
_HEAD = re.compile(r"(\w+)(?:[\[.][^:]*)?: (.+)", re.DOTALL)
# What a message calls otherwise than the form, where the reason is shown.
_SHOWN_AT = {"networking": "networks", "simulated_tee": "tee", "no_tee": "tee"}
_PLACES = {
    *(
        "name",
        "image",
        "vcpu",
        "memory",
        "disk_size",
        "compose_file",
        "user_config",
        "app_id",
        "ports",
    ),
    *(
        "networks",
        "gpus",
        "encrypted_env",
        "kms_urls",
        "gateway_urls",
        "tee",
        "hugepages",
        "pin_numa",
    ),
}


def configuration(form: Form, before: str = "") -> dict[str, Any]:
    """The request of CreateVm; a clone's form changes the app-compose text `before`."""
    return {
        "name": form.get("name", ""),
        "image": form.get("image", ""),
        "compose_file": _compose(form, before),
        "vcpu": _number(form.get("vcpu", "")),
        "memory": _memory(form),
        "disk_size": _number(form.get("disk_size", "")),
        "ports": ports(form),
        "encrypted_env": form.get("encrypted_env", ""),
        "app_id": form.get("app_id", "").strip() or None,
        "user_config": lines(form.get("user_config", "")),
        "hugepages": "hugepages" in form,
        "pin_numa": "pin_numa" in form,
        "gpus": _gpus(form),
        "kms_urls": form.get("kms_urls", "").split(),
        "gateway_urls": form.get("gateway_urls", "").split(),
        "stopped": "stopped" in form,
        "no_tee": form.get("tee") == "none",
        "simulated_tee": None if form.get("tee", "") in ("", "tee", "none") else form["tee"],
        "networks": networks(form),
    }


def change(form: Form, info: Mapping[str, Any]) -> dict[str, Any]:
    """The request of UpdateVm: the differences between what was typed and what the VM has."""
    before = info["configuration"]
    message: dict[str, Any] = {"id": info["id"]}
    if (compose := _compose(form, before["compose_file"])) != before["compose_file"]:
        message["compose_file"] = compose
    if (text := lines(form.get("user_config", ""))) != lines(before["user_config"]):
        message["user_config"] = text
    if "reset_secrets" in form:
        message["encrypted_env"] = form.get("encrypted_env", "")
    given = {"vcpu": _number(form.get("vcpu", "")), "memory": _memory(form)}
    given |= {"disk_size": _number(form.get("disk_size", "")), "image": form.get("image", "")}
    message |= {k: v for k, v in given.items() if k in form and v != before[k]}
    for name, flag, value in (
        ("ports", "update_ports", ports(form)),
        ("kms_urls", "update_kms_urls", form.get("kms_urls", "").split()),
        ("gateway_urls", "update_gateway_urls", form.get("gateway_urls", "").split()),
        ("networks", "update_networking", networks(form)),
    ):
        if value != _of(before, name):
            message |= {flag: True, name: value}
    if (gpus := _gpus(form)) != (before["gpus"] or {"attach_mode": "", "gpus": []}):
        message["gpus"] = gpus
    if (no_tee := form.get("tee") == "none") != before["no_tee"]:
        message["no_tee"] = no_tee
    return message


def empty(image: str) -> Form:
    """What the deploy form shows at first."""
    texts = {"image": image, "vcpu": "1", "memory": "1024", "memory_unit": "MB", "disk_size": "10"}
    texts |= {"compose_mode": "docker", "key_provider": "none", "tee": "tee"}
    return Form([*texts.items(), *((name, "on") for name, on in FLAGS.items() if on)])


def filled(info: Mapping[str, Any]) -> Form:
    """What the forms show of a VM."""
    has = info["configuration"]
    compose = shown(has["compose_file"])
    form = Form(
        {name: str(has[name]) for name in ("name", "image", "vcpu", "memory", "disk_size")}
        | {name: compose[name] for name in (*TEXTS, "key_provider")}
        | {"compose_file": has["compose_file"], "user_config": has["user_config"]}
        | {"memory_unit": "MB", "tee": _tee(has), "app_id": info["app_id"]}
        | {name: " ".join(has[name]) for name in ("kms_urls", "gateway_urls")}
        | {"compose_mode": "docker" if compose["docker_compose_file"] else "raw"}
        | {"gpu_mode": (has["gpus"] or {}).get("attach_mode", "")}
        | {"allowed_envs": " ".join(compose["allowed_envs"])}
    )
    flags = {name: compose[name] for name in FLAGS}
    flags |= {name: has[name] for name in ("hugepages", "pin_numa")}
    form.update({name: "on" for name, is_on in flags.items() if is_on})
    for port in has["ports"]:
        values = (port["protocol"], port["host_address"], port["host_port"], port["vm_port"])
        form.update({name: str(value) for name, value in zip(PORT, values, strict=True)})
    for card in _of(has, "networks"):
        form.update({"network_mode": card["mode"], "network_bridge": card["bridge_name"] or ""})
    for gpu in (has["gpus"] or {}).get("gpus", []):
        form.update({"gpu": gpu["slot"]})
    return form


def ports(form: Form) -> list[dict[str, Any]]:
    """The port mappings that a form asks for."""
    return [
        {
            "protocol": protocol,
            "host_port": _number(host),
            "vm_port": _number(vm),
            "host_address": address.strip(),
        }
        for protocol, address, host, vm in port_rows(form)
    ]


def networks(form: Form) -> list[dict[str, Any]]:
    """The network cards that a form asks for."""
    return [{"mode": mode, "bridge_name": name.strip() or None} for mode, name in card_rows(form)]


def port_rows(form: Form) -> list[tuple[str, ...]]:
    """The rows of ports that have a number, as they were typed."""
    return [row for row in _rows(form, PORT) if row[2].strip() or row[3].strip()]


def card_rows(form: Form) -> list[tuple[str, ...]]:
    """The rows of network cards that have a mode."""
    return [row for row in _rows(form, CARD) if row[0]]


def _rows(form: Form, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(form.getlist(name) for name in names), strict=False)


def reasons(refusal: CasemateError) -> dict[str, str]:
    """Why a form was refused, by the field beside which each reason is shown ("" for the whole)."""
    fields = dict(refusal.fields) if isinstance(refusal, Invalid) else {}
    if not fields and (head := _HEAD.fullmatch(refusal.message)):
        fields = {head[1]: [head[2]]}
    told: dict[str, str] = {}
    for name, why in fields.items():
        head_name, _, rest = _in_words(name).partition(" ")
        place = _SHOWN_AT.get(head_name, head_name)
        text = f"{rest} {', '.join(why)}".strip()
        if place not in _PLACES:
            place, text = "", f"{name}: {text}"
        told[place] = f"{told[place]}; {text}" if place in told else text
    return told or {"": refusal.message}


def _in_words(name: str) -> str:
    # ports[0].host_port is the first row's for people.
    counted = re.sub(r"\[(\d{1,9})\]", lambda found: f" row {int(found[1]) + 1}", name)
    return counted.replace(".", " ").replace("_", " " if " " in counted else "_")


def _compose(form: Form, before: str) -> str:
    """The app-compose text; Invalid when it is written by hand and would keep a sealed variable out."""
    text = wanted(form, before)
    missing = set(form.get("allowed_envs", "").split()) - set(shown(text)["allowed_envs"])
    is_sealed = form.get("encrypted_env") and ("vm" not in form or "reset_secrets" in form)
    if missing and is_sealed:
        names = ", ".join(sorted(missing))
        raise Invalid.field("compose_file", f"allowed_envs must name {names} to let it in")
    return text


def _of(before: Mapping[str, Any], name: str) -> list[Any]:
    if name == "networks" and not before["networks"] and before["networking"]:
        return [before["networking"]]
    return list(before[name])


def _gpus(form: Form) -> dict[str, Any]:
    slots = [{"slot": slot} for slot in form.getlist("gpu")]
    mode = form.get("gpu_mode", "")
    return {"attach_mode": mode or ("listed" if slots else ""), "gpus": slots}


def _tee(has: Mapping[str, Any]) -> str:
    if has["no_tee"]:
        return "none"
    return str(has["simulated_tee"] or "tee")


def _memory(form: Form) -> object:
    given = _number(form.get("memory", ""))
    if form.get("memory_unit") != "GB":
        return given
    try:
        return float(form.get("memory", "")) * 1024
    except ValueError:
        return given


def _number(text: str) -> object:
    stripped = text.strip()
    return int(stripped) if re.fullmatch(r"-?\d{1,20}", stripped) else stripped
