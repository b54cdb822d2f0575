"""Every call of PyPI phala-cloud on apps, in one version of the interface: prints what it made of the answers.

Run with the base address, a key, a version and the name of an OS image.
"""

import json
import sys

import phala_cloud

base, key, version, image = sys.argv[1:]
client = phala_cloud.create_client(api_key=key, base_url=f"{base}/api/v1", version=version)
said = {}


def told(name, answer):
    said[name] = answer.model_dump(mode="json") if hasattr(answer, "model_dump") else answer
    return answer


def listed(name, answers):
    said[name] = [each.model_dump(mode="json") for each in answers]


COMPOSE = "services:\n  web:\n    image: nginx\n"
name = "python-" + version.replace("-", "")

told("me", client.get_current_user())
told("nodes", client.get_available_nodes())
told("types", client.list_all_instance_type_families())
told("workspaces", client.list_workspaces())
told("images", client.get_os_images())
told("kms", client.get_kms_list())
told("contracts", client.list_kms_contracts())
told("next_ids", client.next_app_ids({"counts": 2}))
promise = told(
    "provision",
    client.provision_cvm(
        {
            "name": name,
            "instance_type": "tdx.small",
            "compose_file": {"docker_compose_file": COMPOSE, "public_logs": True},
        }
    ),
)
made = told(
    "commit",
    client.commit_cvm_provision({"app_id": promise.app_id, "compose_hash": promise.compose_hash}),
)
app, vm = {"app_id": promise.app_id}, {"uuid": made.vm_uuid}
told("list", client.get_app_list({"status": ["running"], "page_size": 100}))
told("info", client.get_app_info(app))
listed("cvms", client.get_app_cvms(app))
revisions = told("revisions", client.get_app_revisions(app))
told(
    "revision",
    client.get_app_revision_detail({**app, "revision_id": revisions.revisions[0].revision_id}),
)
told("filters", client.get_app_filter_options())
told("attestation", client.get_app_attestation(app))
told("devices", client.get_app_device_allowlist(app))
told(
    "is_allowed",
    client.check_app_is_allowed({**app, "compose_hash": promise.compose_hash}),
)
told("cvms_are_allowed", client.check_app_cvms_is_allowed(app))
told("cvm_list", client.get_cvm_list())
told("cvm", client.get_cvm_info(vm))
told("compose_file", client.get_cvm_compose_file(vm))
told("state", client.get_cvm_state(vm))
told("stats", client.get_cvm_stats(vm))
told("containers", client.get_cvm_containers_stats(vm))
told("stop", client.stop_cvm(vm))
told("start", client.start_cvm(vm))
told("restart", client.restart_cvm({**vm, "force": True}))
told("patch", client.patch_cvm({**vm, "docker_compose_file": COMPOSE + "# new\n"}))
told("resources", client.update_cvm_resources({**vm, "vcpu": 1, "memory": 2048}))
one_more = told("instance", client.create_app_instance(app))
client.delete_cvm({"uuid": one_more.vm_uuid})
told("os_image", client.update_os_image({**vm, "os_image_name": image}))
client.delete_cvm(vm)
print(json.dumps(said))
