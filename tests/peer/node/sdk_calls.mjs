// Makes every documented call of npm `@phala/dstack-sdk` on one agent and prints what came back as JSON.
// Run by tests/peer/test_dstack_sdk.py; the argument is the endpoint.
import { DstackClient } from '@phala/dstack-sdk'
import { toViemAccountSecure } from '@phala/dstack-sdk/viem'
import { toKeypairSecure } from '@phala/dstack-sdk/solana'

const hex = bytes => Buffer.from(bytes).toString('hex')
const client = new DstackClient(process.argv[2])

async function signed(algorithm) {
  const data = Buffer.alloc(32, 0x11)
  const made = await client.sign(algorithm, data)
  const verify = async other => (await client.verify(algorithm, other, made.signature, made.public_key)).valid
  return {
    signature: hex(made.signature),
    public_key: hex(made.public_key),
    chain: made.signature_chain.map(hex),
    valid: await verify(data),
    valid_of_other_data: await verify(Buffer.alloc(32, 0x22)),
  }
}

async function one(number) {
  const own = new DstackClient(process.argv[2])
  await own.emitEvent(`peer-js-${number}`, String(number))
  const quote = await own.getQuote(String(number))
  return quote.replayRtmrs()[3] === quote.quote.slice(520 * 2, 568 * 2)
}

const key = await client.getKey('wallet/1', 'mainnet')
const solana = await client.getKey('wallet/2', 'mainnet', 'ed25519')
const tls = await client.getTlsKey({ subject: 'app.example', altNames: ['app.example', '127.0.0.1'], usageRaTls: true })
await client.emitEvent('peer-js', Buffer.from([0, 1, 2]))
const quote = await client.getQuote('peer report data')
const account = toViemAccountSecure(key)
const signatures = {}
for (const name of ['ed25519', 'secp256k1', 'secp256k1_prehashed']) signatures[name] = await signed(name)
console.log(JSON.stringify({
  reachable: await client.isReachable(),
  version: await client.version(),
  key: hex(key.key),
  key_chain: key.signature_chain.map(hex),
  key_again: hex((await client.getKey('wallet/1', 'mainnet')).key),
  ed25519_key: hex(solana.key),
  tls_key: tls.key,
  tls_chain: tls.certificate_chain,
  quote: quote.quote,
  event_log: JSON.parse(quote.event_log),
  replayed: Object.fromEntries(quote.replayRtmrs().map((value, index) => [index, value])),
  attestation: (await client.attest('peer report data')).attestation,
  info: await client.info(),
  signatures,
  ethereum: account.address,
  ethereum_signature: (await account.signMessage({ message: 'hello' })).slice(2),
  solana: toKeypairSecure(solana).publicKey.toBase58(),
  many: await Promise.all(Array.from({ length: 16 }, (_, number) => one(number))),
}))
