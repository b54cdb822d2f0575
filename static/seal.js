// Encrypts variables for one app: X25519 between a key made here and the app's, the shared secret is the AES-256-GCM key.
// Sealed: our public key (32 bytes), nonce (12), ciphertext with its tag.
export async function seal(appKey, items) {
  if (appKey.length !== 32) throw new Error("the app's key is not one of X25519");
  const text = new TextEncoder().encode(JSON.stringify({ env: items }));
  const nonce = crypto.getRandomValues(new Uint8Array(12));
  // A page over plain HTTP from another machine has no WebCrypto, an older browser no X25519 in it.
  const way = (await hasWebCrypto()) ? withWebCrypto : withScript;
  const { ours, sealed } = await way(appKey, nonce, text);
  return Uint8Array.from([...ours, ...nonce, ...sealed]);
}

async function hasWebCrypto() {
  try {
    return Boolean(await crypto.subtle.generateKey("X25519", false, ["deriveBits"]));
  } catch {
    return false;
  }
}

async function withWebCrypto(appKey, nonce, text) {
  const pair = await crypto.subtle.generateKey("X25519", false, ["deriveBits"]);
  const theirs = await crypto.subtle.importKey("raw", appKey, "X25519", false, []);
  const shared = await crypto.subtle.deriveBits({ name: "X25519", public: theirs }, pair.privateKey, 256);
  const key = await crypto.subtle.importKey("raw", shared, "AES-GCM", false, ["encrypt"]);
  const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv: nonce }, key, text);
  const ours = await crypto.subtle.exportKey("raw", pair.publicKey);
  return { ours: new Uint8Array(ours), sealed: new Uint8Array(sealed) };
}

async function withScript(appKey, nonce, text) {
  await import("./vendor/nacl-fast.min.js"); // no module: it leaves itself in `nacl`
  const { gcm } = await import("./vendor/noble-ciphers/aes.js");
  const secret = crypto.getRandomValues(new Uint8Array(32));
  const shared = self.nacl.scalarMult(secret, appKey);
  if (shared.every((byte) => byte === 0)) throw new Error("the app's key is unusable");
  return { ours: self.nacl.scalarMult.base(secret), sealed: gcm(shared, nonce).encrypt(text) };
}

export function toHex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function fromHex(text) {
  return Uint8Array.from(text.replace(/^0x/, "").match(/../g) ?? [], (pair) => parseInt(pair, 16));
}
