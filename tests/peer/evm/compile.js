// Prints {contract name: creation code in hex} of a Solidity file.
const fs = require("fs");
const solc = require(process.argv[2] + "/node_modules/solc");
const input = {
  language: "Solidity",
  sources: { "kms.sol": { content: fs.readFileSync(process.argv[3], "utf8") } },
  settings: { evmVersion: "paris", outputSelection: { "*": { "*": ["evm.bytecode.object"] } } },
};
const output = JSON.parse(solc.compile(JSON.stringify(input)));
const wrong = (output.errors || []).filter((each) => each.severity === "error");
if (wrong.length) {
  console.error(wrong.map((each) => each.formattedMessage).join("\n"));
  process.exit(1);
}
const made = Object.entries(output.contracts["kms.sol"]);
console.log(JSON.stringify(Object.fromEntries(made.map(([name, c]) => [name, c.evm.bytecode.object]))));
