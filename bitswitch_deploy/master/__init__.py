"""The master file: one int8 network for every width. The format is documented in README.md beside this file."""

from __future__ import annotations

from bitswitch_deploy.master.master import Master, assemble_master, read_master, write_master
from bitswitch_deploy.master.sharded import master_files, master_name
from bitswitch_deploy.master.summary import LayerSummary, MasterSummary, WidthSummary, describe_master

__all__ = [
    "LayerSummary",
    "Master",
    "MasterSummary",
    "WidthSummary",
    "assemble_master",
    "describe_master",
    "master_files",
    "master_name",
    "read_master",
    "write_master",
]
