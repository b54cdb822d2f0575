"""The verifier: POST /verify, GET /health, and the answer of `casemate verify`."""
