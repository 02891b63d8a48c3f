"""`batchmill webhooks`: receivers of events, and what became of each event."""

import json as json_library
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.text import Text

from contracts.states import DeliveryState
from producer.cli.completion import endpoints, job_ids
from producer.cli.options import Json
from producer.cli.output import emit, emit_json, emit_pairs, emit_table, say
from producer.cli.session import session_of
from producer.summary import local_time

if TYPE_CHECKING:
    from contracts.webhooks import Delivery, EndpointSummary
    from producer.webhooks import NewSecret

app = typer.Typer(help="Webhooks: who hears of jobs, and what was sent.", no_args_is_help=True)

EndpointName: TypeAlias = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="Its number, or its URL.", autocompletion=endpoints)
]
DeliveryId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The delivery's id.")]

_ENDPOINT = ("ENDPOINT", "URL", "STATE", "PENDING", "DELIVERED", "DEAD")
_DELIVERY = ("DELIVERY", "TO", "EVENT", "STATE", "TRIES", "WHEN", "LAST ANSWER")
_COLOURS = {DeliveryState.DELIVERED: "green", DeliveryState.DEAD: "red", DeliveryState.PENDING: "cyan"}


@app.command()
def add(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to POST events: https://host/path.")],
    json: Json = False,
) -> None:
    """Register a receiver and show its secret, once; jobs may then name it with --callback-url."""
    with session_of(context).open_client() as client:
        made = client.webhooks.add(url)
    _show_secret(made, json=json)
    say(f"endpoint {made.endpoint.id} is {made.endpoint.url}; its secret above is not shown again")


@app.command("list")
def list_webhooks(
    context: typer.Context,
    state: Annotated[
        list[DeliveryState] | None, typer.Option(help="Only deliveries in this state; may be repeated.")
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="ID", help="Only deliveries of this job.", autocompletion=job_ids)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many deliveries at most.")] = 20,
    json: Json = False,
) -> None:
    """Every endpoint, and the newest deliveries first."""
    with session_of(context).open_client() as client:
        endpoints = client.webhooks.list()
        deliveries = client.webhooks.deliveries(states=state or (), job=job, limit=limit)
    if json:
        emit_json(
            {
                "endpoints": [endpoint.model_dump(mode="json") for endpoint in endpoints],
                "deliveries": [delivery.model_dump(mode="json") for delivery in deliveries],
            }
        )
        return
    emit_table(_ENDPOINT, [_endpoint_row(one) for one in endpoints], right=("PENDING", "DELIVERED", "DEAD"))
    emit("")
    emit_table(_DELIVERY, [_delivery_row(one) for one in deliveries], right=("TO", "TRIES"))


@app.command()
def show(context: typer.Context, delivery_id: DeliveryId, json: Json = False) -> None:
    """Everything that is known of a delivery, with its body."""
    with session_of(context).open_client() as client:
        found = client.webhooks.delivery(delivery_id)
    if json:
        emit_json(found.model_dump(mode="json"))
        return
    facts = [
        ("id", str(found.id)),
        ("state", str(found.state)),
        ("event", _event(found)),
        ("job", str(found.job_id or "")),
        ("run", str(found.run_id or "")),
        ("endpoint", str(found.endpoint_id)),
        ("url", found.url),
        ("tries", str(found.attempt)),
        ("last status", str(found.last_status or "")),
        ("last error", found.last_error or ""),
        ("created", local_time(found.created_at)),
        ("next try", local_time(found.due_at) if found.state is DeliveryState.PENDING else ""),
        ("finished", local_time(found.finished_at)),
        ("body", json_library.dumps(found.body, ensure_ascii=False, indent=2)),
    ]
    emit_pairs((name, value) for name, value in facts if value)


@app.command()
def replay(
    context: typer.Context,
    delivery_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Deliveries.")] = None,
    dead: Annotated[
        str | None,
        typer.Option(
            metavar="ENDPOINT", help="All dead deliveries of this endpoint instead.", autocompletion=endpoints
        ),
    ] = None,
) -> None:
    """Send events again, under the ids that they had, with the whole schedule before them."""
    if bool(delivery_ids) == (dead is not None):
        raise typer.BadParameter("give either ids of deliveries, or --dead ENDPOINT")
    with session_of(context).open_client() as client:
        if dead is not None:
            count = client.webhooks.replay_dead(dead)
            say(f"{count:,} {'delivery is' if count == 1 else 'deliveries are'} sent again")
            return
        for delivery_id in delivery_ids or ():
            say(f"delivery {client.webhooks.replay(delivery_id).id} is sent again")


@app.command()
def disable(context: typer.Context, endpoint: EndpointName) -> None:
    """Send nothing there any more: what is pending is dead, and no new job may name it."""
    with session_of(context).open_client() as client:
        found = client.webhooks.disable(endpoint)
    say(f"endpoint {found.id} ({found.url}) is disabled")


@app.command()
def enable(context: typer.Context, endpoint: EndpointName) -> None:
    """Take an endpoint up again; what died meanwhile stays dead until it is replayed."""
    with session_of(context).open_client() as client:
        found = client.webhooks.enable(endpoint)
    say(f"endpoint {found.id} ({found.url}) is enabled; `batchmill webhooks replay --dead {found.id}` sends the rest")


@app.command()
def rotate(
    context: typer.Context,
    endpoint: EndpointName,
    hours: Annotated[float, typer.Option(min=0, help="How long the old secret signs as well.")] = 24.0,
    json: Json = False,
) -> None:
    """Give an endpoint a new secret and show it, once."""
    with session_of(context).open_client() as client:
        made = client.webhooks.rotate(endpoint, overlap=timedelta(hours=hours))
    _show_secret(made, json=json)
    until = made.endpoint.previous_until
    say(
        f"endpoint {made.endpoint.id} has the secret above, which is not shown again; "
        + (f"the one before signs as well until {local_time(until)}" if until else "the one before signs no more")
    )


@app.command()
def reencrypt(context: typer.Context) -> None:
    """Put every secret under the first key of BATCHMILL_SECRET_KEY, so that the others can go."""
    with session_of(context).open_client() as client:
        count = client.webhooks.reencrypt()
    say(f"the secrets of {count:,} endpoint{'' if count == 1 else 's'} are encrypted with the first key")


def _show_secret(made: "NewSecret", *, json: bool) -> None:
    if json:
        emit_json({**made.endpoint.model_dump(mode="json"), "secret": made.secret})
    else:
        emit(made.secret)


def _endpoint_row(endpoint: "EndpointSummary") -> tuple[str | Text, ...]:
    if endpoint.disabled_at is not None:
        state = Text(f"disabled: {endpoint.disabled_reason}", style="red")
    elif endpoint.previous_until is not None:
        state = Text(f"two secrets until {local_time(endpoint.previous_until)}", style="yellow")
    else:
        state = Text("active", style="green")
    dead = Text(f"{endpoint.dead:,}", style="red" if endpoint.dead else "")
    return (str(endpoint.id), endpoint.url, state, f"{endpoint.pending:,}", f"{endpoint.delivered:,}", dead)


def _delivery_row(delivery: "Delivery") -> tuple[str | Text, ...]:
    pending = delivery.state is DeliveryState.PENDING
    return (
        str(delivery.id),
        str(delivery.endpoint_id),
        _event(delivery),
        Text(delivery.state, style=_COLOURS[delivery.state]),
        str(delivery.attempt),
        f"due {local_time(delivery.due_at)}" if pending else local_time(delivery.finished_at),
        delivery.last_error or (str(delivery.last_status) if delivery.last_status else ""),
    )


def _event(delivery: "Delivery") -> str:
    return delivery.event if delivery.percent is None else f"{delivery.event} {delivery.percent} %"
