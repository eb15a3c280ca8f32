"""`schedules`: list the cron rows, write or change one, pause it, run it now."""

from __future__ import annotations

from orchestrator.commands.runner import print_json, run, with_json

TYPE_CHECKING = False  # as in typing, which costs a start 8 ms
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from orchestrator.commands.api_client import Client
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings


def schedules(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of `schedules`."""
    from argparse import SUPPRESS

    from orchestrator.commands.api_client import watches, with_api

    actions = parser.add_subparsers(required=True, metavar="<action>", dest="action")
    listed = actions.add_parser("list", help="all schedules, by name")
    written = actions.add_parser("set", help="make a schedule, or change one")
    written.add_argument("--job", metavar="NAME", help="the handler (a new schedule: its name)")
    written.add_argument("--cron", metavar="CRON", help="five fields, as in '*/5 * * * *'")
    written.add_argument("--timezone", metavar="ZONE", help="the zone that they are read in (a new schedule: UTC)")
    written.add_argument("--payload", metavar="JSON")
    pause = actions.add_parser("pause", help="let it make no more jobs")
    resume = actions.add_parser("resume", help="let a paused one go on")
    now = actions.add_parser("run", help="add its job now")
    for added in (written, pause, resume, now):
        added.add_argument("name", metavar="NAME")
    watches(listed)
    for added in actions.choices.values():
        with_api(added)
        with_json(added)
        added.add_argument("-v", "--verbose", action="store_true", default=SUPPRESS, help="debug lines too")
    parser.set_defaults(run=_schedules, watch=False)


def _schedules(options: argparse.Namespace) -> int:
    async def work(settings: Settings, life: Lifecycle) -> int:
        from orchestrator.commands.api_client import asking, shown

        needs_handlers = options.action in {"set", "run"}
        async with asking(settings, life, direct=options.direct, handlers=needs_handlers) as client:
            if options.action == "list":
                await shown(options, client, lambda one: one.ask("GET", "/api/schedules"), _print_list)
            else:
                await _change(options, client)
        return 0

    return run(options, work, lambda code: code, default_level="warning")


async def _change(options: argparse.Namespace, client: Client) -> None:
    from urllib.parse import quote

    from orchestrator.commands.console import say

    path = f"/api/schedules/{quote(options.name, safe='')}"
    if options.action == "run":
        made = await client.ask("POST", f"{path}/trigger")
        words = f"#{made['id']} is {made['state']}{'' if made['created'] else ', and was there before'}"
    else:
        made = await _write(options, client, path)
        words = f"{made['name']}: {made['cron']} ({made['timezone']}), {'on' if made['enabled'] else 'paused'}"
    if options.json:
        print_json(made)
    else:
        say(words)


async def _write(options: argparse.Namespace, client: Client, path: str) -> Any:
    import msgspec

    from orchestrator.commands.api_client import RefusedError

    if options.action in {"pause", "resume"}:
        return await client.ask("PATCH", path, body={"enabled": options.action == "resume"})
    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("job", "cron", "timezone") if getattr(options, name) is not None
    }
    if options.payload is not None:
        try:
            given["payload"] = msgspec.json.decode(options.payload)
        except (msgspec.DecodeError, UnicodeError) as error:
            options.whole_parser("schedules").error(f"the payload is not JSON: {error}")
    names = {one["name"] for one in (await client.ask("GET", "/api/schedules"))["schedules"]}
    if options.name in names:
        return await client.ask("PATCH", path, body=given)
    if "cron" not in given:
        raise RefusedError(f"there is no schedule {options.name!r}", remedy="A new one needs --cron.")
    return await client.ask("PUT", path, body={"job": options.name, **given})


def _print_list(found: dict[str, Any]) -> None:
    from rich.markup import escape

    from orchestrator.commands.api_client import ago
    from orchestrator.commands.console import results, table

    console, rows = results(), table("schedule", "when", "last", "next")
    for one in found["schedules"]:
        zone = "" if one["timezone"] == "UTC" else f"\n[dim]{escape(one['timezone'])}[/]"
        named = escape(one["name"]) + ("" if one["job"] == one["name"] else f"\n[dim]{escape(one['job'])}[/]")
        state = one["last_job_state"]
        last = ago(one["last_job_at"] or one["last_run_at"])
        if state == "failed":
            last = f"[red]failed[/] {last}"
        rows.add_row(
            named, escape(one["cron"]) + zone, last, ago(one["next_run_at"]) if one["enabled"] else "[yellow]paused[/]"
        )
    console.print(rows if found["schedules"] else "There is no schedule.")
