"""The alarm rules, one file per rule; each registers itself under the kind of its alarms."""
