"""`profile --device ssh://...`: the same command on the device, and what it found out brought back.

With `--engine trtexec` a device needs trtexec only: turns are driven from here, and one trtexec there is one turn.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

from bitswitch_deploy import __version__
from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.catalogue import ALIASES, is_target_file, split_stack
from bitswitch_deploy.engines.device_facts import device_facts
from bitswitch_deploy.errors import ERROR_SCHEMA, InputFileError, UnavailableError
from bitswitch_deploy.master import master_files
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.manifest import MANIFEST, Manifest
from bitswitch_deploy.pipeline.checked_package import checked_manifest
from bitswitch_deploy.pipeline.package_master import master_beside
from bitswitch_deploy.pipeline.profiling.profile import profile
from bitswitch_deploy.pipeline.profiling.remote_host import host_of
from bitswitch_deploy.pipeline.profiling.request import ProfileRequest, check_request
from bitswitch_deploy.pipeline.profiling.trtexec_bench import Board
from bitswitch_deploy.pipeline.progress import LINES_WANTED, Progress, followed, without_progress
from bitswitch_deploy.profiling.board.device_lock import LOCK_NAME, is_measuring
from bitswitch_deploy.profiling.result import SCHEMA, ProfileResult
from bitswitch_deploy.records import Reader
from bitswitch_deploy.remote.device import Device, PatientFolder, error_kind, failure, on_device
from bitswitch_deploy.remote.device_folder import DeviceFolder, Listed, listed
from bitswitch_deploy.remote.ssh import Finished, Say
from bitswitch_deploy.remote.trtexec import TrtexecThere

# `_INSTALL` puts it there, as does pip where nobody is root; a shell without a terminal does not look there
_PROGRAM = 'PATH="$PATH:$HOME/.local/bin" bitswitch-deploy'
# an environment of its own, as the Python of newer systems takes no packages of pip (PEP 668); with those of the
# system, TensorRT among them
_INSTALL = (
    "python3 -m venv --system-site-packages ~/.bitswitch-deploy"
    f" && ~/.bitswitch-deploy/bin/pip install bitswitch-deploy=={__version__}"
    " && mkdir -p ~/.local/bin && ln -sf ~/.bitswitch-deploy/bin/bitswitch-deploy ~/.local/bin/"
)
_PACKAGE, _MASTER, _TARGET, _TRACE, _TABLE = "package", "master", "target", "trace.json", "latency-table.json"
_MISSED = 1
# where Python's tempfile has it; a word of the shell
_DEVICE_LOCK = f'"${{TMPDIR:-/tmp}}/{LOCK_NAME}"'
_READER = Reader(error=InputFileError, do="report it with what --json prints on the device")


def profile_there(request: ProfileRequest, device: Device, progress: Progress) -> ProfileResult:
    """Copy what the device lacks, profile there, bring the result and its files back, leave nothing behind.

    After a lost connection a profile that runs there is measured from the start: half of it is none. With trtexec only
    the turn that broke off is.

    Raises:
        UnavailableError: ssh does not get in, or the device has not this release of bitswitch-deploy; no trtexec.
        BitswitchError: as `profile`, under the same exit code.
    """
    manifest = checked_manifest(request.package)
    if request.master is None:
        request = replace(request, master=master_beside(manifest))
    _check(request, manifest)
    # beside a build of the same package, which has a folder of its own
    name = f"{hash_file(request.package / MANIFEST)[0][:16]}-profile"
    work = _drive_trtexec if request.engine == "trtexec" else _profile
    result = on_device(device, name, lambda folder: work(request, manifest, device, folder, progress))
    return replace(result, package=str(request.package), notes=(*result.notes, f"measured on {device.address}"))


def _drive_trtexec(
    request: ProfileRequest, manifest: Manifest, device: Device, folder: DeviceFolder, progress: Progress
) -> ProfileResult:
    folder.lock(_DEVICE_LOCK, is_measuring(str(device.address)))
    patient = PatientFolder(device, folder)
    trtexec = TrtexecThere(patient, request.package, _PACKAGE)
    _copy(device, folder, [file for file in package_files(request.package, manifest) if _is_engine(file)], progress)
    with TemporaryDirectory(prefix="bitswitch-") as copy:
        host = host_of(patient, Path(copy))
        host.refresh()
        facts = device_facts(host.root, ask=lambda words: host.run(words) or "")
        result = profile(request, progress, host=host, board=Board(trtexec=trtexec, facts=facts))
    if not patient.lost:
        return result
    note = f"the connection was lost {patient.lost} times while it was measured; what that broke off was run again"
    return replace(result, notes=(*result.notes, note))


def _is_engine(file: Listed) -> bool:
    return file[1].endswith(".engine")


def _profile(
    request: ProfileRequest, manifest: Manifest, device: Device, folder: DeviceFolder, progress: Progress
) -> ProfileResult:
    _check_release(device, folder)
    _copy(device, folder, [*package_files(request.package, manifest), *_own_files(request)], progress)
    progress.start(f"profiling on {device.address.host}", 1)
    hear = followed(progress, device.say, where=device.address.host)
    done = folder.run(f"{LINES_WANTED}=1 {_PROGRAM} profile {shlex.join(arguments(request))}", _but_errors(hear))
    _check_success(device, done)
    result = _decode(done.stdout, where=f"{device.address}: result")
    outputs = {_TRACE: request.trace, _TABLE: request.latency_table}
    wanted = {path: target for path, target in outputs.items() if target is not None}
    with TemporaryDirectory(prefix="bitswitch-") as place:
        folder.download(list(wanted), Path(place))
        for path, target in wanted.items():
            replace_file(target, Path(place, path).read_bytes())
    return result


def _but_errors(say: Say) -> Say:
    """Says nothing from the message of the error on, which is raised here."""
    has_failed = False

    def hear(line: str) -> None:
        nonlocal has_failed
        has_failed = has_failed or line.startswith("error: ")
        if not has_failed:
            say(line)

    return hear


def _check_success(device: Device, done: Finished) -> None:
    """Raise here what was raised there: with --json an error is a document as well."""
    with suppress(ValueError):
        error = json.loads(done.stdout)
        if isinstance(error, dict) and error.get("schema") == ERROR_SCHEMA:
            words = {name: str(error.get(name)) for name in ("where", "got", "allowed", "do")}
            raise error_kind(done.code)(**(words | {"where": f"{device.address}: {words['where']}"}))
    if done.code not in (0, _MISSED) or not done.stdout.strip():
        done = replace(done, stderr=without_progress(done.stderr))
        raise failure(device, done, allowed="a profile of the package", do="follow the message above")


def _copy(device: Device, folder: DeviceFolder, files: Sequence[Listed], progress: Progress) -> None:
    progress.start(f"copying to {device.address.host}", sum(path.stat().st_size for path, _, _ in files))
    folder.upload(files, progress.advance)


def _check(request: ProfileRequest, manifest: Manifest) -> None:
    """Refuse here, before anything is sent, what depends on files of this machine or on nothing else."""
    # which target an alias means is for the device to say
    is_alias = request.target is not None and split_stack(request.target)[0] in ALIASES
    check_request(replace(request, target=None) if is_alias else request, manifest)


def _check_release(device: Device, folder: DeviceFolder) -> None:
    wanted = f"bitswitch-deploy, version {__version__}"
    asked = folder.run(f"{_PROGRAM} --version")
    answer = asked.stdout.decode("utf-8", "replace").strip()
    if answer != wanted:
        raise UnavailableError(
            where=str(device.address),
            got=answer or asked.stderr or f"exit code {asked.code}",
            allowed=f"{wanted}, as here",
            do=f"install it there: ssh {shlex.join((*device.ssh_options, *device.address.words))} '{_INSTALL}'\n"
            "      or, where Python is older than 3.10, as on JetPack 5, or trtexec is all there is: --engine trtexec",
        )


def package_files(package: Path, manifest: Manifest) -> Iterator[Listed]:
    """The package and the engines that were built of it, with their records and what was read back of them."""
    yield listed(package / MANIFEST, f"{_PACKAGE}/{MANIFEST}")
    for entry in manifest.files:
        yield package / entry.path, f"{_PACKAGE}/{entry.path}", entry.sha256
    if manifest.built_on_device is not None:
        for pattern in ("*.engine", "*.engine.json", "*.layers.json"):
            for path in sorted((package / manifest.built_on_device).glob(pattern)):
                yield listed(path, f"{_PACKAGE}/{manifest.built_on_device}/{path.name}")


def _own_files(request: ProfileRequest) -> Iterator[Listed]:
    """What options name."""
    if request.master is not None:
        for path in master_files(request.master):
            yield listed(path, f"{_MASTER}/{path.name}")
    if request.target is not None and is_target_file(name := split_stack(request.target)[0]):
        yield listed(Path(name), f"{_TARGET}/{Path(name).name}")


def arguments(request: ProfileRequest) -> tuple[str, ...]:
    """The request as words of the command line, with the paths that its files have in the folder there."""
    target = request.target
    if target is not None and is_target_file(split_stack(target)[0]):
        target = f"./{_TARGET}/{target.rpartition('/')[2]}"
    options = {
        "--engine": request.engine,
        "--master": f"./{_MASTER}/{request.master.name}" if request.master is not None else None,
        "--target": target,
        "--widths": ",".join(request.widths) if request.widths is not None else None,
        "--batch": ",".join(map(str, request.batches)),
        "--threads": request.threads,
        "--turns": request.turns,
        "--duration": _plain(request.duration_s),
        "--budget": f"{_plain(request.budget_ms)}ms" if request.budget_ms is not None else None,
        "--trace": _TRACE if request.trace is not None else None,
        "--latency-table": _TABLE if request.latency_table is not None else None,
    }
    words = [f"{option}={value}" for option, value in options.items() if value is not None]
    return (f"./{_PACKAGE}", *words, *(["--trust"] if request.trust else []), "--json")


def _plain(number: float | None) -> str | None:
    """The shortest text that reads as the same number, without an exponent."""
    return format(Decimal(repr(number)), "f") if number is not None else None


def _decode(stdout: bytes, *, where: str) -> ProfileResult:
    document = _READER.load_json(stdout.decode("utf-8", "replace"), where=where)
    if document.pop("schema", None) != SCHEMA:
        raise _READER.refusal(where, "another schema", SCHEMA, is_text=True)
    return _READER.decode(ProfileResult, document, where=where)
