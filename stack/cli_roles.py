"""`batchmill roles`: database roles with the least rights."""

import typer

from producer.cli.options import Json
from producer.cli.output import emit_json, emit_table, say

app = typer.Typer(help="Database roles: who may do what, and no more.", no_args_is_help=True)


@app.command()
def apply(json: Json = False) -> None:
    """Make the roles that do not exist, and give each what it needs; to be repeated after a migration."""
    from sqlalchemy.exc import DBAPIError

    from contracts.errors import ConfigurationError
    from contracts.settings import load_settings
    from storage import roles

    settings = load_settings()
    if settings.embedded:
        raise ConfigurationError("the embedded stack applies roles by itself: this is for a database of your own")
    try:
        roles.apply(str(settings.database_url))
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise ConfigurationError(
            f"roles were left as they are: {reason}; run it as a superuser, or as the database's owner with CREATEROLE"
        ) from error
    if json:
        emit_json([{"role": role.name, "purpose": role.purpose} for role in roles.ROLES])
        return
    emit_table(("ROLE", "FOR"), [(role.name, role.purpose) for role in roles.ROLES])
    say("where the server asks for passwords, set one for each role that you use: ALTER ROLE … PASSWORD '…'")
