"""The box with a systemd in it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from harmonyd.testing.systemd import SystemdBox


@pytest.mark.root
def test_a_box_is_a_machine_of_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    """Files of a layer are in it, what it writes and runs is not here, and nothing of it is left in the end."""
    layer = tmp_path / "layer"
    unit = layer / "etc/systemd/system/sleeper.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/sleep infinity\n")
    with SystemdBox(tmp_path, layers=[layer]) as box:
        box.run("systemctl", "start", "sleeper")
        assert box.show("sleeper", "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
        assert box.run("cat", text="said").stdout == "said"
        with pytest.raises(AssertionError, match="exit 1"):
            box.run("false")
        here = tmp_path / "written"
        box.run("mkdir", "-p", str(tmp_path))
        box.run("touch", str(here))
        assert box.path(str(here)).exists()
        assert not here.exists()
        interfaces = box.run("ip", "-brief", "link").stdout.split()
        assert interfaces[:2] == ["lo", "UNKNOWN"]
        running = psutil.process_iter(["cmdline"])
        inside = [process for process in running if process.info["cmdline"] == ["/bin/sleep", "infinity"]]
        assert inside
        cgroup = box._cgroup
    assert not any(process.is_running() for process in inside)
    assert cgroup is not None
    assert not cgroup.exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
def test_a_box_that_does_not_boot_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the set-up said, and nothing left."""
    monkeypatch.setattr("harmonyd.testing.systemd.SYSTEMD", "/no/such/systemd")
    with pytest.raises(RuntimeError, match="/no/such/systemd"):
        SystemdBox(tmp_path).start()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
