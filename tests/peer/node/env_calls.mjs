// Encrypts an environment and checks a KMS's signatures with npm @phala/dstack-sdk; JSON in, JSON out.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { webcrypto } from "node:crypto";

// Debian 12's Node has it under another name than browsers and newer ones.
globalThis.crypto ??= webcrypto;

const require = createRequire(process.argv[2] + "/");
const { encryptEnvVars } = require("@phala/dstack-sdk/encrypt-env-vars");
const verify = require("@phala/dstack-sdk/verify-env-encrypt-public-key");

const given = JSON.parse(readFileSync(0, "utf8"));
const bytes = (name) => Uint8Array.from(Buffer.from(given[name], "hex"));
const variables = Object.entries(given.variables).map(([key, value]) => ({ key, value }));
const signed = [bytes("public_key"), bytes("signature_v1"), given.app_id, given.timestamp];
console.log(
  JSON.stringify({
    sealed: await encryptEnvVars(variables, given.public_key),
    signer: verify.verifyEnvEncryptPublicKey(...signed),
    legacy_signer: verify.verifyEnvEncryptPublicKeyLegacy(
      bytes("public_key"), bytes("signature"), given.app_id),
  }),
);
