"""Typed configuration: defaults < YAML < `key=value`. Errors name the key, its value and a remedy."""

from mtgen.config.data_section import DataConfig, MixtureConfig, SoundConfig
from mtgen.config.hardware import Device, Hardware, decide, decide_device, decide_here, local_hardware, resolve_device
from mtgen.config.messages import check, find_entry, parse_options
from mtgen.config.network_sections import AugmentConfig, BackboneConfig
from mtgen.config.run import Config
from mtgen.config.run_sections import CheckpointConfig, ExtractorConfig, TrainConfig
from mtgen.config.schedule import Schedule, value_at, within
from mtgen.config.section import (
    CONDITIONS,
    EXTRACTORS,
    TASKS,
    WEIGHTINGS,
    ConditionSettings,
    ConfigSection,
    PathKind,
    TaskSettings,
)
from mtgen.config.validation import load, validate

__all__ = [
    "CONDITIONS",
    "EXTRACTORS",
    "TASKS",
    "WEIGHTINGS",
    "AugmentConfig",
    "BackboneConfig",
    "CheckpointConfig",
    "ConditionSettings",
    "Config",
    "DataConfig",
    "Device",
    "ExtractorConfig",
    "Hardware",
    "PathKind",
    "Schedule",
    "ConfigSection",
    "MixtureConfig",
    "SoundConfig",
    "TaskSettings",
    "TrainConfig",
    "check",
    "decide",
    "decide_device",
    "decide_here",
    "find_entry",
    "load",
    "local_hardware",
    "parse_options",
    "resolve_device",
    "validate",
    "value_at",
    "within",
]
