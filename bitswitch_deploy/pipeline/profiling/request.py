"""What `profile` is asked for; and what cannot be, refused before anything is opened or sent to a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master import Master
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.package_master import find_master
from bitswitch_deploy.pipeline.package_target import own_target
from bitswitch_deploy.pipeline.profiling.bench import Width, package_widths
from bitswitch_deploy.pipeline.profiling.table import check_table_request
from bitswitch_deploy.profiling.statistics import MIN_TURNS
from bitswitch_deploy.target import Target

EngineName = Literal["onnxruntime", "tensorrt", "tensorrt_rtx", "trtexec"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What to measure.

    master: what the package was made from; None: see `find_master`. target: the package's, where it is not bundled.
    engine: None takes the one of the target. threads: None takes every core that may be used.
    turns, duration_s: of each candidate, at most one of them; None takes the time that the target's profile asks for.
    widths: labels; None takes all. budget_ms: for the p95 of every width.
    trace, latency_table: files to write. trust: time engines that bitswitch-deploy has no record of.
    """

    package: Path
    master: Path | None = None
    target: str | None = None
    engine: str | None = None
    batches: tuple[int, ...] = (1,)
    threads: int | None = None
    turns: int | None = None
    duration_s: float | None = None
    widths: tuple[str, ...] | None = None
    budget_ms: float | None = None
    trace: Path | None = None
    latency_table: Path | None = None
    trust: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the request comes to. widths: to time. master: None where it is not at hand."""

    target: Target
    engine: EngineName
    widths: tuple[Width, ...]
    master: Master | None


def check_request(request: ProfileRequest, manifest: Manifest) -> Subject:
    """What a request comes to for a package of this manifest; nothing is opened.

    Raises:
        UsageError: an unknown width or engine, a master or target of another package, a target that is not bundled and
            not named, a file that would hold several batch sizes, a number of turns that cannot be.
        InputFileError: the master, the target or a graph cannot be read.
    """
    _check_turns(request.turns, request.duration_s)
    target = own_target(manifest, request.target)
    engine = _engine(request.engine, target)
    widths = package_widths(request.package, manifest, request.widths)
    master = find_master(manifest, request.master)
    if request.latency_table is not None:
        check_table_request(widths, request.batches, engine=engine, target=target, master=master)
    if request.trace is not None and len(request.batches) > 1:
        raise UsageError(
            where="--trace",
            got=f"{len(request.batches)} batch sizes",
            allowed="one batch size for each timeline",
            do="measure them one after the other",
        )
    return Subject(target=target, engine=engine, widths=widths, master=master)


def _engine(name: str | None, target: Target) -> EngineName:
    wanted = name or target.engine.name
    for engine in ENGINES:
        if engine == wanted:
            return engine
    raise UsageError(where="--engine", got=repr(wanted), allowed=", ".join(ENGINES), do="choose one of these")


def _check_turns(turns: int | None, duration_s: float | None) -> None:
    """Refuse what no ratio can be computed from."""
    if turns is not None and duration_s is not None:
        raise UsageError(where="--duration", got="--turns as well", allowed="one of the two", do="leave one out")
    if turns is not None and turns < MIN_TURNS:
        raise UsageError(
            where="--turns",
            got=str(turns),
            allowed=f"{MIN_TURNS} or more: fewer hold no confidence interval",
            do=f"use --turns {MIN_TURNS} or more",
        )
