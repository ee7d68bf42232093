"""The command itself, and what all its parts share."""

from __future__ import annotations

import click

from qtasks_pluggy.cli.doctor import doctor
from qtasks_pluggy.cli.hooks import hooks
from qtasks_pluggy.cli.plugins import plugins
from qtasks_pluggy.cli.run import run


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        """Run a command; Ctrl-C ends it with the code that shells expect."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qtasks-pluggy", message="%(package)s %(version)s")
def command() -> None:
    """Run tasks, and see the plugins that decide about their errors."""


command.add_command(run)
command.add_command(plugins)
command.add_command(doctor)
command.add_command(hooks)
