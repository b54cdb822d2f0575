// Every call of npm @phala/cloud on apps and CVMs, in one version of the interface: prints what it made of the answers.
// Run with the base address, a key, a version and the name of an OS image.
import * as phala from "@phala/cloud";

const [base, apiKey, version, image] = process.argv.slice(2);
const client = phala.createClient({ apiKey, baseURL: `${base}/api/v1`, version });
const said = {};
const told = async (name, answer) => (said[name] = (await answer) ?? null);
const text = "services:\n  web:\n    image: nginx\n";
const name = `node-${version.replaceAll("-", "")}`;

await told("me", client.getCurrentUser());
await told("nodes", client.getAvailableNodes());
await told("types", client.listAllInstanceTypeFamilies());
await told("family", client.listFamilyInstanceTypes({ family: "cpu" }));
const { data: [{ slug: teamSlug }] } = await told("workspaces", client.listWorkspaces());
await told("workspace", client.getWorkspace(teamSlug));
await told("workspaceNodes", phala.getWorkspaceNodes(client, { teamSlug }));
await told("quotas", phala.getWorkspaceQuotas(client, { teamSlug }));
await told("images", client.getOsImages());
const kms = (await told("kms", client.getKmsList())).items[0].slug;
await told("kmsInfo", client.getKmsInfo({ kms_id: kms }));
await told("nextIds", client.nextAppIds({ counts: 2 }));

const promise = await told("provision", client.provisionCvm({
  name,
  kms: "PHALA",
  compose_file: { docker_compose_file: text, pre_launch_script: "echo 1\n", public_logs: true, public_sysinfo: true },
}));
await told("envKey", client.getAppEnvEncryptPubKey({ kms, app_id: promise.app_id }));
const sealed = await phala.encryptEnvVars([{ key: "A", value: "1" }], promise.app_env_encrypt_pubkey);
const { app_id: appId, vm_uuid: uuid } = await told("commit", client.commitCvmProvision({
  app_id: promise.app_id, compose_hash: promise.compose_hash, encrypted_env: sealed,
}));
const vm = { uuid };

await told("list", phala.getAppList(client, { page: 1, page_size: 20, status: ["running"], search: name }));
await told("info", phala.getAppInfo(client, { appId }));
await told("cvms", phala.getAppCvms(client, { appId }));
const { revisions: [{ revision_id: revisionId }] } = await told("revisions", phala.getAppRevisions(client, { appId }));
await told("revision", phala.getAppRevisionDetail(client, { appId, revisionId, rawComposeFile: true }));
await told("filters", phala.getAppFilterOptions(client));
await told("attestation", phala.getAppAttestation(client, { appId }));
await told("devices", phala.getAppDeviceAllowlist(client, { appId }));
await told("isAllowed", phala.checkAppIsAllowed(client, { appId, compose_hash: promise.compose_hash }));
await told("cvmsAreAllowed", phala.checkAppCvmsIsAllowed(client, { appId }));
await told("cvmIsAllowed", phala.checkCvmIsAllowed(client, { cvmId: uuid }));

await told("cvmList", client.getCvmList());
await told("cvm", client.getCvmInfo({ name }));
const document = await client.getCvmComposeFile(vm);
said.composeHash = document.getHash();
await told("dockerCompose", client.getCvmDockerCompose(vm));
await told("script", client.getCvmPreLaunchScript(vm));
await told("state", client.getCvmState(vm));
await told("stats", client.getCvmStats(vm));
await told("network", client.getCvmNetwork(vm));
await told("containers", client.getCvmContainersStats(vm));
await told("cvmAttestation", client.getCvmAttestation(vm));
await told("userConfig", phala.getCvmUserConfig(client, vm));
await told("availableImages", client.getAvailableOsImages(vm));
await told("instanceId", phala.refreshCvmInstanceId(client, vm));
await told("instanceIds", phala.refreshCvmInstanceIds(client, { cvm_ids: [uuid], limit: 5 }));
await told("statuses", phala.getCvmStatusBatch(client, { vmUuids: [uuid, "nobody"] }));

await told("stop", client.stopCvm(vm));
await told("start", client.startCvm(vm));
await told("restart", client.restartCvm({ ...vm, force: true }));
await told("patch", phala.patchCvm(client, { ...vm, docker_compose_file: `${text}# 2\n` }));
await told("updateCompose", client.updateDockerCompose({ ...vm, docker_compose_file: `${text}# 3\n` }));
await told("updateScript", client.updatePreLaunchScript({ ...vm, pre_launch_script: "echo 2" }));
await told("envs", client.updateCvmEnvs({ ...vm, encrypted_env: sealed, env_keys: ["A"] }));
await told("visibility", client.updateCvmVisibility({ ...vm, public_sysinfo: false, public_logs: true }));
await told("resources", client.updateCvmResources({ ...vm, instance_type: "tdx.medium" }));
await told("osImage", client.updateOsImage({ ...vm, os_image_name: image }));
const changed = await told("composeProvision", client.provisionCvmComposeFileUpdate({
  ...vm, app_compose: { docker_compose_file: `${text}# 4\n` },
}));
await told("composeCommit", client.commitCvmComposeFileUpdate({ ...vm, compose_hash: changed.compose_hash }));
await told("instance", phala.createAppInstance(client, { appId }));
await told("replica", phala.replicateCvm(client, vm));
const { cvms } = await told("after", phala.getAppInfo(client, { appId }));
await told("history", phala.getAppRevisions(client, { appId }));
for (const each of cvms) await client.deleteCvm({ uuid: each.vm_uuid });
const gone = await phala.safeGetAppInfo(client, { appId });
said.gone = gone.success ? null : gone.error.status;
console.log(JSON.stringify(said));
