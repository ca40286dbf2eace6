"""What all work on another machine begins with: a connection that is taken up again when lost, and a folder there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bitswitch_deploy.errors import BitswitchError, CheckFailedError, PackageError, UnavailableError, UsageError
from bitswitch_deploy.remote.address import Address
from bitswitch_deploy.remote.device_folder import DeviceFolder
from bitswitch_deploy.remote.ssh import ConnectionLostError, Finished, Say, Ssh

# Seconds to wait before each new attempt after a connection was lost.
RETRY_AFTER_S = (2.0, 5.0, 15.0, 30.0)
_KINDS = {kind.exit_code: kind for kind in (CheckFailedError, UsageError, PackageError)}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The machine to work on. ssh_config: None takes the user's. say: gets what happens there, line by line."""

    address: Address
    ssh_config: Path | None
    say: Say

    @property
    def ssh_options(self) -> tuple[str, ...]:
        """Words for ssh in front of those of the address."""
        return () if self.ssh_config is None else ("-F", str(self.ssh_config))


def on_device(device: Device, name: str, work: Callable[[DeviceFolder], T]) -> T:
    """Do `work` in a folder of that name on the device; from its start again after each lost connection.

    What was copied before is still there then. So it is for the next call, if the device stays away.

    Raises:
        UnavailableError: ssh does not get in, or not any more.
        BitswitchError: as `work`.
    """
    for wait_s in RETRY_AFTER_S:
        try:
            return _once(device, name, work)
        except ConnectionLostError as lost:
            device.say(f"{lost.got}; again in {wait_s:g} s")
            time.sleep(wait_s)
    return _once(device, name, work)


class PatientFolder:
    """A folder on a device in which a command that a lost connection broke off is run again, it alone.

    For commands that may begin twice. lost: how often the connection was.
    """

    def __init__(self, device: Device, folder: DeviceFolder) -> None:
        self._device, self._folder = device, folder
        self.lost = 0

    def run(self, command: str, say: Say | None = None) -> Finished:
        """As that of the folder."""
        return self._patiently(lambda: self._folder.run(command, say))

    def start(self, command: str) -> None:
        """As that of the folder."""
        self._patiently(lambda: self._folder.start(command))

    def stop(self) -> bytes:
        """As that of the folder."""
        return self._patiently(self._folder.stop)

    def _patiently(self, call: Callable[[], T]) -> T:
        def resumed() -> T:
            self._folder.resume()
            return call()

        attempt = call
        for wait_s in RETRY_AFTER_S:
            try:
                return attempt()
            except ConnectionLostError as lost:
                self.lost += 1
                self._device.say(f"{lost.got}; again in {wait_s:g} s")
                time.sleep(wait_s)
                attempt = resumed
        return attempt()


def _once(device: Device, name: str, work: Callable[[DeviceFolder], T]) -> T:
    with Ssh(device.address, options=device.ssh_options) as ssh, DeviceFolder(ssh, name, device.say) as folder:
        return work(folder)


def failure(device: Device, done: Finished, *, allowed: str, do: str) -> BitswitchError:
    """The message of a command that failed there, under the exit code that it has here as well."""
    got = done.stderr or f"exit code {done.code}"
    return error_kind(done.code)(where=str(device.address), got=got, allowed=allowed, do=do)


def error_kind(exit_code: int) -> type[BitswitchError]:
    """The error whose exit code a command had there."""
    return _KINDS.get(exit_code, UnavailableError)
