"""Where a container runtime finds the plugin."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from podlane.agent.install import CONFLIST, install, program
from podlane.agent.options import AgentOptions
from podlane.cni import plugins
from podlane.errors import ConfigError


def options(where: Path, **changes: str) -> AgentOptions:
    paths = {"cni_bin_dir": str(where / "bin"), "cni_conf_dir": str(where / "etc" / "net.d")}
    return AgentOptions(node_name="n1", **(paths | changes))  # type: ignore[arg-type]


def test_program_and_configuration_are_there_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    install(options(tmp_path))
    program, conflist = tmp_path / "bin" / "podlane", tmp_path / "etc" / "net.d" / CONFLIST
    assert os.access(program, os.X_OK)
    (plugin,) = json.loads(conflist.read_text())["plugins"]
    offered = dict.fromkeys(("portMappings", "bandwidth", "ips", "mac"), True)
    assert plugin == {"type": "podlane", "capabilities": offered}
    before = [path.stat().st_ino for path in (program, conflist)]
    install(options(tmp_path))
    assert [path.stat().st_ino for path in (program, conflist)] == before
    assert sorted(p.name for p in conflist.parent.iterdir()) == [CONFLIST]


def test_every_types_name_leads_to_the_program(tmp_path: Path) -> None:
    foreign = {"bridge": b"\x7fELF", "ptp": b""}
    (tmp_path / "bin").mkdir()
    for name, content in foreign.items():
        (tmp_path / "bin" / name).write_bytes(content)
    (tmp_path / "bin" / "static").symlink_to("/usr/lib/cni/static")
    assert sorted(path.name for path in program(options(tmp_path))) == ["bridge", "ptp", "static"]
    for name in plugins.load():
        path = tmp_path / "bin" / name
        if name in foreign:
            assert path.read_bytes() == foreign[name]
        elif name != "static":
            assert path.resolve() == tmp_path / "bin" / "podlane"
    assert os.readlink(tmp_path / "bin" / "static") == "/usr/lib/cni/static"


def test_nothing_is_asked_for_nothing_is_made(tmp_path: Path) -> None:
    install(options(tmp_path, cni_bin_dir="", cni_conf_dir=""))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["bin/podlane", f"etc/net.d/{CONFLIST}"])
def test_a_file_of_somebody_else_stays(tmp_path: Path, where: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text('{"name": "theirs"}')
    with pytest.raises(ConfigError, match="is not podlane's and stays"):
        install(options(tmp_path))
    assert path.read_text() == '{"name": "theirs"}'


def test_an_older_file_of_ours_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "net.d" / CONFLIST
    path.parent.mkdir(parents=True)
    path.write_text('{"name": "podlane", "plugins": []}')
    install(options(tmp_path))
    document = json.loads(path.read_text())
    assert document["plugins"]
    # containerd 1.x knows the one, and refuses results of a newer version; newer runtimes take the other
    assert (document["cniVersion"], document["cniVersions"]) == ("1.0.0", ["1.0.0", "1.1.0"])


@pytest.mark.parametrize("name", ["a state", "st", "a 'quoted\" state" + "x" * 80])
@pytest.mark.parametrize("language", ["C", "Python"])
def test_the_program_finds_an_agent_with_paths_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, name: str
) -> None:
    """Nobody listens there: DEL goes to the spool of that agent and succeeds."""
    if language == "Python":
        monkeypatch.setattr("podlane.agent.install.compiled", lambda: None)
    state = tmp_path / name
    install(options(tmp_path, cni_socket=str(tmp_path / "x y.sock"), state_dir=str(state)))
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": "c",
        "CNI_IFNAME": "eth0",
    }
    done = subprocess.run(
        [tmp_path / "bin" / "podlane"],
        env=environment | {"CNI_PATH": "/opt/cni/bin"},
        input=b'{"cniVersion": "1.1.0", "name": "podlane", "type": "podlane"}',
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert len(list((state / "cni-spool").glob("*.request"))) == 1
