"""The rules, one a file; each registers itself under the kind of its alarms."""
