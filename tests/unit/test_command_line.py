"""What the command says to a command line that is wrong: one line, with what would work."""

from __future__ import annotations

import pytest

from podlane.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stauts"], ["there is no command 'stauts'", "did you mean 'status'?", "`podlane --help`"]),
        (["zzz"], ["there is no command 'zzz'", "up, down"]),
        (["up", "--nodes", "x"], ["podlane up:", "'x' is not a valid integer", "`podlane up --help`"]),
        (["up", "--frobnicate"], ["podlane up: no such option", "--frobnicate"]),
        (["exec"], ["podlane exec: missing argument 'POD'"]),
        (["list", "-o", "yaml"], ["podlane list:", "'yaml' is not one of 'text', 'json'"]),
        (["--log-level", "loud", "list"], ["podlane:", "'loud' is not one of 'debug'"]),
        (["delete", "-f", "x", "--context", "c"], ["podlane: --context belongs to --kubeconfig"]),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr("sys.argv", ["podlane", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err
