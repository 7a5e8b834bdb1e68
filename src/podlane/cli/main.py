"""The `podlane` command. Each subcommand lives in a module of its own, imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys

import click

from podlane import __version__
from podlane.errors import PodlaneError

# name -> (module with `command`, short help)
COMMANDS = {
    "up": ("up", "Bring a lab up: nodes, network, API, manifests."),
    "down": ("down", "Take a lab down and remove all of it."),
    "list": ("list_", "List the labs of this machine."),
    "status": ("status", "Show a lab's nodes, agents and pods."),
    "apply": ("apply", "Create or update objects from manifests."),
    "delete": ("delete", "Delete the objects of manifests."),
    "convert": ("convert", "Rewrite old manifests in current API versions."),
    "kubeconfig": ("kubeconfig", "Print the path of a lab's kubeconfig."),
    "exec": ("exec_", "Run a command in a pod's container."),
    "node": ("node", "Run a command in a node's namespaces."),
    "outside": ("outside", "Run a command on the host outside the cluster."),
    "check": ("check", "Try every way of communicating, with real packets."),
    "explain": ("explain", "Tell a packet's way and verdict, from the desired tables."),
    "matrix": ("matrix", "Show who reaches whom, and what a change of policies would do."),
    "lint": ("lint", "Name what in NetworkPolicies cannot mean what it seems to."),
    "services": ("services", "Show services, their endpoints, and what each node chooses."),
    "flows": ("flows", "Show the nodes' connections, with names."),
    "trace": ("trace", "Send one packet and show every link it crosses."),
    "bugreport": ("bugreport", "Collect what somebody who is to help needs to see."),
    "agent": ("agent", "Run the node agent."),
    "cleanup": ("cleanup", "Take away what kube-proxy or Flannel left on this node."),
    "uninstall": ("uninstall", "Remove everything of podlane from this node."),
    "controller": ("controller", "Run the cluster's controller."),
    "version": ("version", "Print the version."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"podlane.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="podlane")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    help="Least to log.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Form of log lines.")
def cli(log_level: str, log_format: str) -> None:
    """The whole Kubernetes network, as a lab on this machine or on a cluster.

    Example: podlane up --nodes 3 -f examples/ && podlane check
    """
    from podlane.logs import configure

    configure(log_level, log_format)


def usage_error(error: click.ClickException) -> str:
    """One line: what is wrong with the command line, and where it is told how it goes."""
    what = error.format_message().strip().rstrip(".")
    what = what[:1].lower() + what[1:]
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return f"podlane: {what}"
    return f"{context.command_path}: {what}; see `{context.command_path} --help`"


def main() -> None:
    """Errors become one clear line on stderr; status 2 is the user's mistake, 1 anything else."""
    try:
        status = cli.main(prog_name="podlane", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        click.echo("podlane: interrupted", err=True)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(usage_error(error), err=True)
        sys.exit(error.exit_code)
    except PodlaneError as error:
        click.echo(f"podlane: {error}", err=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.exit(1)
