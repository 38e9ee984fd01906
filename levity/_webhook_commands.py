"""`levity webhooks …`."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable

from levity.client import Levity
from levity.console import table
from levity.resources import Delivery, Webhook


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], remote: argparse.ArgumentParser
) -> None:
    """Add `webhooks` with its own commands.

    Args:
        commands: Of the whole command line.
        remote: Options of every command that talks to a service.
    """
    webhooks = commands.add_parser("webhooks", help="tell other services of jobs").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    command = webhooks.add_parser("create", parents=[remote], help="register a receiver; prints its secret, once")
    command.add_argument("receiver", metavar="URL", help="where events are posted")
    command.add_argument("--event", action="append", metavar="TYPE", help="such as job.succeeded; repeat for more")
    command.add_argument("--description", default="", help="what people know it by")
    command.set_defaults(run=_create)
    command = webhooks.add_parser("list", parents=[remote], help="newest first")
    command.add_argument("--job", metavar="JOB", help="those that this job was submitted with")
    command.set_defaults(run=_list)
    command = webhooks.add_parser("deliveries", parents=[remote], help="what was sent to one, newest first")
    command.add_argument("webhook", metavar="WEBHOOK", help="the webhook's id")
    command.add_argument("--state", help="only those in this state")
    command.add_argument("--limit", type=int, default=20, help="at most so many (%(default)s)")
    command.set_defaults(run=_deliveries)
    command = webhooks.add_parser("replay", parents=[remote], help="send an event again")
    command.add_argument("webhook", metavar="WEBHOOK", help="the webhook's id")
    command.add_argument("delivery", metavar="DELIVERY", help="the delivery's id")
    command.set_defaults(run=_replay)
    actions: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
        "show": (_show, "one webhook as JSON"),
        "test": (_test, "send a test event"),
        "rotate": (_rotate, "make a new secret and print it, once"),
        "enable": (_enable, "send again to one that was disabled"),
        "disable": (_disable, "send nothing more, and end what waits"),
        "delete": (_delete, "forget one and its deliveries"),
    }
    for name, (action, text) in actions.items():
        command = webhooks.add_parser(name, parents=[remote], help=text)
        command.add_argument("webhook", metavar="WEBHOOK", help="the webhook's id")
        command.set_defaults(run=action)


def _create(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        webhook = levity.create_webhook(options.receiver, events=options.event, description=options.description)
    _say(f"{webhook.id}\n{webhook.secret}")
    return 0


def _list(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        rows = [("id", "state", "events", "url")]
        rows += [
            (webhook.id, _state(webhook), ",".join(webhook.events), webhook.url)
            for webhook in levity.webhooks(job_id=options.job)
        ]
    _say("\n".join(table(rows)))
    return 0


def _deliveries(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        found = itertools.islice(levity.deliveries(options.webhook, state=options.state), options.limit)
        rows = [("id", "type", "state", "attempts", "created", "last")]
        rows += [
            (one.id, one.type, one.state, str(len(one.attempts)), one.created_at or "", _last(one)) for one in found
        ]
    _say("\n".join(table(rows)))
    return 0


def _replay(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        delivery = levity.replay_delivery(options.webhook, options.delivery)
    _say(f"{delivery.id} is {delivery.state}.")
    return 0


def _show(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        _say(json.dumps(levity.get_webhook(options.webhook).raw, indent=2))
    return 0


def _test(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        delivery = levity.test_webhook(options.webhook)
    _say(f"{delivery.id} is {delivery.state}; `levity webhooks deliveries {options.webhook}` shows how it goes.")
    return 0


def _rotate(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        webhook = levity.rotate_webhook_secret(options.webhook)
    sys.stderr.write(f"The secret so far signs too until {webhook.previous_secret_expires_at}.\n")
    _say(str(webhook.secret))
    return 0


def _enable(options: argparse.Namespace) -> int:
    return _switch(options, enabled=True)


def _disable(options: argparse.Namespace) -> int:
    return _switch(options, enabled=False)


def _switch(options: argparse.Namespace, *, enabled: bool) -> int:
    with Levity(options.url) as levity:
        webhook = levity.update_webhook(options.webhook, enabled=enabled)
    _say(f"{webhook.id} is {_state(webhook)}.")
    return 0


def _delete(options: argparse.Namespace) -> int:
    with Levity(options.url) as levity:
        levity.delete_webhook(options.webhook)
    _say(f"{options.webhook} is deleted.")
    return 0


def _state(webhook: Webhook) -> str:
    if webhook.enabled:
        return "failing" if webhook.failing_since else "enabled"
    return f"disabled ({(webhook.disabled_reason or {}).get('code')})"


def _last(delivery: Delivery) -> str:
    if not delivery.attempts:
        return ""
    attempt = delivery.attempts[-1]
    error = attempt.get("error") or {}
    return " ".join(str(part) for part in (attempt.get("status"), error.get("code")) if part is not None)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
