"""A real systemd in a box, for tests of units: its own processes, mounts and network, over a throw-away copy of this
machine's files.

    with SystemdBox(tmp_path, layers=[staging_folder]) as box:
        box.run("systemctl", "start", "harmonyd")

Inside, systemd is process 1; the files are those of this machine, with the ``layers`` copied over them (folders such as
``make install DESTDIR=`` fills), and whatever is written goes to memory and is gone with the box. The network is a
loopback interface of its own. Limits of memory, tasks and CPU are not enforced. Needs root, util-linux, iproute2 and
systemd, and a kernel with overlay and cgroup2.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from harmonyd.testing.processes import log_tail, wait_until

PROGRAMS = ("unshare", "nsenter", "setpriv", "pivot_root", "ip", "mount", "systemctl")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SYSTEMD = "/lib/systemd/systemd"
BOOT_SECS = 30.0
_CGROUP_NAME = "harmonyd-box-"

# Runs in new namespaces, where the mounts it makes are seen by nobody else. $1: an empty folder; $2: PATH; $3:
# systemd; then the layers.
# systemd wants / to be a mount point and the old root out of sight: units with a sandbox of their own fail in a chroot.
_SET_UP = r"""
mount -t tmpfs -o mode=755 box "$1"
mkdir "$1"/upper "$1"/work "$1"/root
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" box "$1"/root
cd "$1"/root
path=$2 systemd=$3
shift 3
for layer; do cp -a "$layer"/. .; done
chmod 755 .
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mkdir -p sys/fs/cgroup && mount -t cgroup2 cgroup2 sys/fs/cgroup
for fresh in run dev tmp; do mount -t tmpfs -o mode=755 box $fresh; done
chmod 1777 tmp
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
ln -sf /dev/null etc/systemd/system/tmp.mount
ip link set lo up
mkdir .old
pivot_root . .old
umount -l .old
mount --make-rshared /
exec env -i container=box "PATH=$path" "$systemd" --system --unit=basic.target --log-target=journal --show-status=no
"""


class SystemdBox:
    """Boots when entered, is ended and cleaned away when left. ``folder`` takes what has to be outside of it."""

    def __init__(self, folder: Path, layers: Sequence[Path] = ()) -> None:
        self._folder = folder / "systemd-box"
        self._layers = [str(layer.absolute()) for layer in layers]
        self._outer: subprocess.Popen[bytes] | None = None
        self._init: psutil.Process | None = None
        self._cgroup: Path | None = None
        self._own_cgroup2: Path | None = None

    # --- its life

    def start(self) -> Self:
        """Boot, and wait until systemd has reached basic.target. Raises ``RuntimeError`` with its log."""
        (self._folder / "mnt").mkdir(parents=True)
        try:
            self._boot()
            wait_until(self._is_up, "systemd is up", BOOT_SECS)
        except (OSError, TimeoutError, subprocess.SubprocessError) as error:
            self.stop()
            raise RuntimeError(f"no systemd in the box: {error}\n{log_tail(self.log_file)}") from error
        return self

    def stop(self) -> None:
        """End every process in the box; its mounts go with them. Then remove its control groups."""
        if self._init is not None:
            self._init.kill()  # process 1 of a pid namespace takes all others with it
        if self._outer is not None:
            self._outer.kill()
            self._outer.wait()
        self._init = self._outer = None
        self._remove_cgroups()

    def _boot(self) -> None:
        # In a control group of its own from its first moment: what the box sees as the root of all of them.
        self._cgroup = self._cgroup2() / f"{_CGROUP_NAME}{os.getpid()}"
        self._cgroup.mkdir()
        namespaces = ["unshare", "--mount", "--uts", "--ipc", "--cgroup", "--net", "--pid", "--propagation", "private"]
        set_up = ["sh", "-euc", _SET_UP, "box", str(self._folder / "mnt"), PATH, SYSTEMD, *self._layers]
        enter = f'echo $$ > {shlex.quote(str(self._cgroup / "cgroup.procs"))}; exec "$@"'
        # It dies with us, however we die; and with it all that is in the box.
        command = ["setpriv", "--pdeathsig", "KILL", "--", *namespaces, "--fork", "--kill-child=KILL", "--", *set_up]
        with self.log_file.open("wb") as log:
            self._outer = subprocess.Popen(
                ["sh", "-euc", enter, "box", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _is_up(self) -> bool:
        assert self._outer is not None
        if (code := self._outer.poll()) is not None:
            raise OSError(f"it ended with {code}")
        if self._init is None:
            children = psutil.Process(self._outer.pid).children()
            self._init = next((child for child in children if Path(child.exe()) == Path(SYSTEMD).resolve()), None)
        state = self._init and self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _cgroup2(self) -> Path:
        """Where control groups of version 2 are; mounted here if nowhere."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[fields.index("-") + 1] == "cgroup2":
                return Path(fields[4])
        self._own_cgroup2 = self._folder / "cgroup"
        self._own_cgroup2.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", str(self._own_cgroup2)], check=True, capture_output=True)
        return self._own_cgroup2

    def _remove_cgroups(self) -> None:
        if self._cgroup is not None and self._cgroup.exists():
            wait_until(lambda: self._cgroup is None or _is_unpopulated(self._cgroup), "the box is empty")
            for folder, _, _ in os.walk(self._cgroup, topdown=False):
                Path(folder).rmdir()
        if self._own_cgroup2 is not None and self._own_cgroup2.is_mount():
            subprocess.run(["umount", str(self._own_cgroup2)], check=True)

    @property
    def log_file(self) -> Path:
        """What systemd says of itself."""
        return self._folder / "boot.log"

    # --- inside

    def command(self, *argv: str) -> list[str]:
        """The command line that runs ``argv`` inside as root."""
        if self._init is None:
            raise RuntimeError("the box is not running")
        enter = ["nsenter", "--target", str(self._init.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        return [*enter, "--wd=/", "--", "env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", *argv]

    def run(
        self, *argv: str, check: bool = True, timeout_secs: float = 60.0, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end; ``text`` is its standard input.

        With ``check``, ``AssertionError`` with all that it said if its exit code is not 0.
        """
        done = subprocess.run(
            self.command(*argv), input=text or "", capture_output=True, text=True, check=False, timeout=timeout_secs
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{shlex.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(self, *argv: str, stdin: bool = False) -> subprocess.Popen[str]:
        """Start a program inside; its standard output and error are one pipe, its input another one if wanted."""
        return subprocess.Popen(
            self.command(*argv),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def path(self, inside: str) -> Path:
        """A file inside, as it can be read and written from here."""
        if self._init is None:
            raise RuntimeError("the box is not running")
        return Path(f"/proc/{self._init.pid}/root{inside}")

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """What ``systemctl show`` says of a unit."""
        wanted = [f"--property={name}" for name in properties]
        lines = self.run("systemctl", "show", *wanted, unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, unit: str) -> list[tuple[int, str]]:
        """Priority and text of each line that a unit's processes wrote, oldest first."""
        self.run("journalctl", "--sync")
        lines = self.run("journalctl", f"_SYSTEMD_UNIT={unit}", "--output=export", "--output-fields=PRIORITY,MESSAGE")
        found = re.findall(r"(?:^|\n)(PRIORITY=(\d)\n)?MESSAGE=(.*)(?:\nPRIORITY=(\d))?", lines.stdout)
        return [(int(before or after or 6), text) for _, before, text, after in found]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _is_unpopulated(cgroup: Path) -> bool:
    return "populated 0" in (cgroup / "cgroup.events").read_text()
