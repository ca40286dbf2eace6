"""`build --device ssh://...`: the package's own script on the device, and what it built brought back."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from bitswitch_deploy.engines.bundle import SCRIPT
from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.engine_record import BUILD_FOLDER, EngineRecord, read_record, record_path
from bitswitch_deploy.errors import PackageError, UsageError
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.manifest import MANIFEST, Manifest
from bitswitch_deploy.pipeline.building.build import BuildRequest, build_lock, engine_row
from bitswitch_deploy.pipeline.building.kept_layers import kept_facts
from bitswitch_deploy.pipeline.checked_package import checked_manifest
from bitswitch_deploy.pipeline.graph_files import GraphRole
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.remote.address import Address
from bitswitch_deploy.remote.device import Device, failure, on_device
from bitswitch_deploy.remote.device_folder import DeviceFolder, Listed, listed
from bitswitch_deploy.remote.ssh import Finished
from bitswitch_deploy.report.build_report import BuildReport, EngineRow


def build_there(request: BuildRequest, device: Device, progress: Progress) -> BuildReport:
    """Copy what the device lacks, build there, bring engines, records and logs back, leave nothing behind.

    A connection that is lost is taken up again, and goes on with the engines that are built, also with `force`. The
    next call goes on with them as well, without `force`.

    Raises:
        UnavailableError: ssh does not get in, or the device cannot build; the message says what is missing.
        UsageError: the package has no engines that a device builds, or an option does not fit.
        CheckFailedError: the package is not as it was exported, or an engine could not be built; its log is here.
        OutputError: a disk is full, there or here.
    """
    manifest = checked_manifest(request.package)
    _check(request, manifest)
    name = hash_file(request.package / MANIFEST)[0][:16]
    with build_lock(request.package / BUILD_FOLDER):
        return on_device(device, name, _RemoteBuild(request, manifest, device, progress))


def _check(request: BuildRequest, manifest: Manifest) -> None:
    if SCRIPT not in [entry.path for entry in manifest.files]:
        raise UsageError(
            where=str(request.package),
            got=f"a package for {manifest.target}, which has no {SCRIPT}",
            allowed="a package whose engines are built on a device",
            do="leave out --device",
        )
    if request.target is not None:
        raise UsageError(
            where="--target",
            got="--device as well",
            allowed="one of the two: the package has all that the device needs to know",
            do="leave it out",
        )
    if request.timing_cache is not None:
        raise UsageError(
            where="--timing-cache",
            got="--device as well",
            allowed="one of the two: the device keeps its own timing cache",
            do="leave it out",
        )


class _RemoteBuild:
    """One build, called once more after each lost connection: engines that were built by then stay."""

    def __init__(self, request: BuildRequest, manifest: Manifest, device: Device, progress: Progress) -> None:
        self._request, self._manifest, self._device, self._progress = request, manifest, device, progress
        self._engines = [] if request.force else list(_engines_here(request.package))
        self._is_cleared = not request.force

    def __call__(self, folder: DeviceFolder) -> BuildReport:
        request, device, package = self._request, self._device, self._request.package
        if not self._is_cleared:
            # without its record an engine is built again: once, and not after each lost connection
            folder.run(f"rm -f -- {BUILD_FOLDER}/*.engine.json")
            self._is_cleared = True
        self._upload(folder)
        done = self._run(folder)
        self._progress.start(f"copying from {device.address.host}", 1)
        folder.download(folder.names(BUILD_FOLDER), package)
        if done.code:
            do = f"follow the message above; the logs are in {package / BUILD_FOLDER}"
            raise failure(device, done, allowed="engines for every width", do=do)
        return _report(request, self._manifest, device.address, {path: digest for _, path, digest in self._engines})

    def _upload(self, folder: DeviceFolder) -> None:
        there = folder.names(BUILD_FOLDER)
        files = list(_files(self._request.package, self._manifest))
        # an engine that is there with its record was built there, and later than ours
        files += [each for each in self._engines if f"{each[1].removesuffix('.json')}.json" not in there]
        host = self._device.address.host
        self._progress.start(f"copying to {host}", sum(path.stat().st_size for path, _, _ in files))
        folder.upload(files, self._progress.advance)

    def _run(self, folder: DeviceFolder) -> Finished:
        labels = [entry.name for entry in (*self._manifest.references, *self._manifest.graphs)]
        self._progress.start(f"building on {self._device.address.host}", len(labels))

        def hear(line: str) -> None:
            self._device.say(line)
            if is_done(line, labels):
                self._progress.advance()

        return folder.run(f"sh ./{SCRIPT}{_arguments(self._request)}", hear)


def is_done(line: str, labels: Sequence[str]) -> bool:
    """Whether a line of the script says that it is done with an engine."""
    label, colon, text = line.partition(": ")
    return bool(colon) and label in labels and (text.endswith((".engine", "up to date")) or text.startswith("FAILED"))


def _files(package: Path, manifest: Manifest) -> Iterator[Listed]:
    """What the script reads."""
    for entry in manifest.files:
        if entry.role in ("graph", "reference", "weights", "bundle"):
            yield package / entry.path, entry.path, entry.sha256


def _engines_here(package: Path) -> Iterator[Listed]:
    """The engines that are here already, so that they are not built again, each before its record."""
    for record in sorted((package / BUILD_FOLDER).glob("*.engine.json")):
        for path in (record.with_suffix(""), record):
            if path.is_file():
                yield listed(path, f"{BUILD_FOLDER}/{path.name}")


def _arguments(request: BuildRequest) -> str:
    flags = [f"--{name}" for name in ("fp32", "dla") if getattr(request.options, name)]
    if request.options.workspace_mb is not None:
        flags += ["--workspace", str(request.options.workspace_mb)]
    flags += ["--timeout", str(request.options.timeout_min)]
    return "".join(f" {shlex.quote(flag)}" for flag in flags)


def _report(request: BuildRequest, manifest: Manifest, address: Address, before: dict[str, str]) -> BuildReport:
    found = list(_engines(request.package, manifest, before))
    records = [record for _, record in found]
    last = records[-1].recipe
    return BuildReport(
        package=str(request.package),
        target=manifest.target,
        builder=f"{records[-1].tool}, {last.module} {last.version}, at {address}",
        device=last.device or DeviceFacts(arch="unknown"),
        timing_cache=None,
        notes=(),
        engines=tuple(row for row, _ in found),
    )


def _engines(package: Path, manifest: Manifest, before: dict[str, str]) -> Iterator[tuple[EngineRow, EngineRecord]]:
    for entry in (*manifest.references, *manifest.graphs):
        path = package / BUILD_FOLDER / f"{Path(entry.path).stem}.engine"
        record = read_record(path)
        if record is None or hash_file(path)[0] != record.sha256:
            raise PackageError(
                where=str(path),
                got="it is not what its record says",
                allowed="what the device built",
                do="build it again: --force",
            )
        known = before.get(f"{BUILD_FOLDER}/{record_path(path).name}") == hash_file(record_path(path))[0]
        facts = kept_facts(path, onnx.load(str(package / entry.path), load_external_data=False))
        role: GraphRole = "reference" if entry.role == "reference" else "graph"
        yield engine_row(record.label, role, path, state="up to date" if known else "built", facts=facts), record
