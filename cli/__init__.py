"""The `casemate` command."""
