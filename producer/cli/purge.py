"""`batchmill purge`: remove what need not be kept any longer."""

from typing import Annotated

import typer

from producer.cli.options import Json
from producer.cli.output import emit_json, emit_pairs, err, say
from producer.cli.session import session_of


def purge(
    context: typer.Context,
    jobs_older_than: Annotated[
        float | None,
        typer.Option(
            min=0, max=36_500, metavar="DAYS", help="Jobs that ended so long ago.  [default: 90; 0 keeps all]"
        ),
    ] = None,
    results_older_than: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=36_500,
            metavar="DAYS",
            help="Results and inputs so old to which no job refers.  [default: 365; 0 keeps all]",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: Json = False,
) -> None:
    """Remove old jobs, and old results and inputs that no job refers to; workers do this by themselves now and then."""
    from storage import retention
    from storage.database import Database
    from storage.retention import Retention

    with session_of(context).open_client() as client:
        settings = client.settings
        how = Retention.of_days(
            settings.retain_jobs_days if jobs_older_than is None else jobs_older_than,
            settings.retain_results_days if results_older_than is None else results_older_than,
        )
        with Database(str(settings.database_url)) as database, err.status("looking for what is not used"):
            gone = retention.preview(database, how) if dry_run else retention.purge(database, how)
    if json:
        emit_json({"dry_run": dry_run, **vars(gone)})
        return
    emit_pairs((name, f"{count:,}") for name, count in vars(gone).items())
    say("nothing was removed: this was a dry run" if dry_run else "removed")
