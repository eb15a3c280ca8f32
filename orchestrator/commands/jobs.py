"""`jobs`: what is in the queue, one job and its log, and what a person does about it."""

from __future__ import annotations

from orchestrator.commands.runner import run, with_json

TYPE_CHECKING = False  # as in typing, which costs a start 8 ms
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from orchestrator.commands.api_client import Client
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings

_STATES = ("scheduled", "queued", "running", "succeeded", "failed", "cancelled")
_BULK = {"retry": "retried", "cancel": "cancelled", "discard": "discarded"}


def jobs(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of `jobs`."""
    from argparse import SUPPRESS

    from orchestrator.commands.api_client import watches, with_api

    actions = parser.add_subparsers(required=True, metavar="<action>", dest="action")
    listed = actions.add_parser("list", help="jobs, the newest first")
    failures = actions.add_parser("failures", help="what fails now, grouped by name and error")
    show = actions.add_parser("show", help="one job, whole")
    log = actions.add_parser("log", help="what a job logged; with --watch as it logs")
    retry = actions.add_parser("retry", help="run again what failed, was cancelled, or waits")
    cancel = actions.add_parser("cancel", help="cancel what waits or runs")
    discard = actions.add_parser("discard", help="remove finished jobs")
    add = actions.add_parser("add", help="add a job, and print its id")
    pause = actions.add_parser("pause", help="begin no more jobs of a queue, on all replicas")
    resume = actions.add_parser("resume", help="let a paused queue go on")
    for added in (show, log):
        added.add_argument("id", type=int, metavar="ID")
    for added in (retry, cancel, discard):
        added.add_argument("ids", type=int, nargs="*", metavar="ID", help="these; without any, all of the filter")
        added.add_argument("--yes", action="store_true", help="do it without asking")
    for added in (listed, retry, cancel, discard):
        added.add_argument("--state", choices=_STATES)
        added.add_argument("--name", metavar="NAME", help="of this handler")
        added.add_argument("--queue", metavar="QUEUE")
        added.add_argument("--schedule", metavar="NAME", help="that this schedule made")
        added.add_argument("--failure", metavar="KEY", help="of this group of failures")
        added.add_argument("--retrying", action="store_const", const="true", help="that failed and are tried again")
    listed.add_argument("--search", dest="q", metavar="TEXT", help="an id, or a part of a name or an error")
    listed.add_argument("--limit", type=int, default=20, metavar="N", help="how many (20)")
    listed.add_argument("--cursor", metavar="CURSOR", help="go on behind the page that ended with it")
    add.add_argument("name", metavar="NAME", help="the handler")
    add.add_argument("payload", nargs="?", default="{}", metavar="JSON", help="the payload ({})")
    for option, kind in (("queue", str), ("delay_s", float), ("priority", int), ("dedupe_key", str)):
        add.add_argument(f"--{option.replace('_', '-')}", type=kind, metavar=option.upper())
    for added in (pause, resume):
        added.add_argument("queue", metavar="QUEUE")
    for added in (listed, failures, show, log):
        watches(added)
    for added in actions.choices.values():
        with_api(added)
        with_json(added)
        added.add_argument("-v", "--verbose", action="store_true", default=SUPPRESS, help="debug lines too")
    parser.set_defaults(run=_jobs, watch=False)


def _jobs(options: argparse.Namespace) -> int:
    async def work(settings: Settings, life: Lifecycle) -> int:
        from orchestrator.commands.api_client import asking

        async with asking(settings, life, direct=options.direct, handlers=options.action == "add") as client:
            return await _ACTIONS[options.action](options, client)

    return run(options, work, lambda code: code, default_level="warning")


async def _list(options: argparse.Namespace, client: Client) -> int:
    from orchestrator.commands.api_client import shown

    query = {**_filter(options), "q": options.q, "limit": options.limit, "cursor": options.cursor}
    await shown(options, client, lambda one: one.ask("GET", "/api/jobs", query=query), _print_list)
    return 0


def _filter(options: argparse.Namespace) -> dict[str, Any]:
    names = ("state", "name", "queue", "schedule", "failure", "retrying")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _print_list(page: dict[str, Any]) -> None:
    from rich.markup import escape

    from orchestrator.commands.api_client import ago
    from orchestrator.commands.console import results, table

    console, shown = results(), table("id", "state", "job", "when", right=("id",))
    for job in page["jobs"]:
        when = job["run_at"] if job["state"] == "scheduled" else job["finished_at"] or job["started_at"]
        named = escape(job["name"])
        if job["error_message"] and job["state"] in {"failed", "scheduled", "queued"}:
            named += f"\n[dim]{escape(_short(job['error_message']))}[/]"
        shown.add_row(str(job["id"]), _state(job), named, ago(when or job["created_at"]))
    console.print(shown if page["jobs"] else "No job.")
    if page["next_cursor"]:
        console.print(f"[dim]More: --cursor {page['next_cursor']}[/]")


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= 100 else f"{line[:99]}…"  # noqa: PLR2004


def _state(job: dict[str, Any]) -> str:
    colours = {"failed": "red", "running": "cyan", "succeeded": "green", "cancelled": "dim"}
    is_retried = job["state"] in {"scheduled", "queued"} and job["attempt"] > 0 and job["error_message"]
    word = "retrying" if is_retried else job["state"]
    colour = "yellow" if is_retried else colours.get(job["state"], "")
    return f"[{colour}]{word}[/]" if colour else word


async def _failures(options: argparse.Namespace, client: Client) -> int:
    from orchestrator.commands.api_client import ago, shown

    def show(found: dict[str, Any]) -> None:
        from rich.markup import escape

        from orchestrator.commands.console import results, table

        console = results()
        rows = table("failed", "retrying", "what", "last", right=("failed", "retrying"))
        for group in found["groups"]:
            error = f"{group['error_type'] or 'failed'}: {group['message'] or ''}"
            what = f"{escape(group['name'])}\n[dim]{escape(_short(error))}\n--failure {group['key']}[/]"
            rows.add_row(str(group["failed"]), str(group["retrying"]), what, ago(group["last_at"]))
        console.print(rows if found["groups"] else "Nothing fails.")

    await shown(options, client, lambda one: one.ask("GET", "/api/jobs/failures"), show)
    return 0


async def _show(options: argparse.Namespace, client: Client) -> int:
    from orchestrator.commands.api_client import shown

    await shown(options, client, lambda one: one.ask("GET", f"/api/jobs/{options.id}"), _print_job)
    return 0


def _print_job(job: dict[str, Any]) -> None:
    import msgspec

    from orchestrator.commands.api_client import ago
    from orchestrator.commands.console import results, table

    console, facts = results(), table("", "")
    facts.show_header = False
    for name in ("state", "queue", "schedule", "priority", "worker", "dedupe_key", "timeout_s", "progress"):
        if job[name] not in (None, 0):
            facts.add_row(name, _state(job) if name == "state" else _plain(job[name]))
    facts.add_row("attempt", f"{job['attempt']} of {job['max_attempts']}")
    for name in ("created_at", "run_at", "started_at", "finished_at"):
        if job[name]:
            facts.add_row(name.removesuffix("_at"), f"{job[name][:19]}Z, {ago(job[name])}")
    for change in job["changes"]:
        facts.add_row("by", _plain(f"{change['by']}: {change['method']} {change['path']}, {ago(change['at'])}"))
    console.print(f"[bold]{_plain(job['name'])}[/] #{job['id']}")
    console.print(facts)
    for name in ("payload", "output"):
        if job[name] not in (None, {}):
            console.print(f"[bold]{name}[/]")
            console.print(msgspec.json.format(msgspec.json.encode(job[name])).decode(), markup=False)
    for attempt in job["attempts"]:
        console.print(f"[bold]attempt {attempt['attempt']}[/] {attempt['outcome']}, {ago(attempt['finished_at'])}")
        error = attempt["error"]
        if error:
            console.print(error.get("trace") or f"{error['type']}: {error['message']}", markup=False)


def _plain(value: object) -> str:
    from rich.markup import escape

    return escape(str(value))


async def _log(options: argparse.Namespace, client: Client) -> int:
    import asyncio
    import sys

    from orchestrator.commands.runner import print_json
    from orchestrator.streams import has_reader

    cursor: str | None = None
    while True:
        page = await client.ask("GET", f"/api/jobs/{options.id}/log", query={"cursor": cursor, "limit": 200})
        lines = page["lines"]
        if options.json and lines:
            print_json(lines)
        elif not options.json:
            _print_lines(lines)
        if lines:
            cursor = str(lines[-1]["id"])
        if page["next_cursor"] is None:
            sys.stdout.flush()
            if not (options.watch and has_reader()) or page["state"] in {"succeeded", "failed", "cancelled"}:
                return 0
            await asyncio.sleep(1.0)


def _print_lines(lines: list[dict[str, Any]]) -> None:
    from orchestrator.commands.console import say

    for line in lines:
        facts = " ".join(f"{name}={value}" for name, value in (line["facts"] or {}).items())
        say(f"{line['at'][11:19]} {line['level']:<7} {line['event']} {facts}".rstrip())


async def _act(options: argparse.Namespace, client: Client) -> int:
    """Retry, cancel or discard: these jobs, or all of a filter."""
    which = _filter(options)
    if options.ids and which:
        options.whole_parser("jobs").error("give ids or a filter, not both")
    if not options.ids and not which:
        options.whole_parser("jobs").error("give ids, or a filter such as --state failed --name NAME")
    return await (_act_on_ids(options, client) if options.ids else _act_on_filter(options, client, which))


async def _act_on_ids(options: argparse.Namespace, client: Client) -> int:
    from orchestrator.commands.console import say
    from orchestrator.commands.runner import print_json

    made = []
    for one in options.ids:
        if options.action == "discard":
            await client.ask("DELETE", f"/api/jobs/{one}")
            made.append({"id": one, "state": "discarded"})
        else:
            made.append(await client.ask("POST", f"/api/jobs/{one}/{options.action}"))
        if not options.json:
            say(f"#{one} is {made[-1]['state']}")
    if options.json:
        print_json(made)
    return 0


async def _act_on_filter(options: argparse.Namespace, client: Client, which: dict[str, Any]) -> int:
    """All of the filter; how many they are is asked about first."""
    from orchestrator.commands.console import confirmed, counted, say
    from orchestrator.commands.runner import print_json

    action, done = options.action, _BULK[options.action]
    count = await client.ask("GET", "/api/jobs/count", query={**which, "action": action})
    if count["more"]:
        say(f"The filter is about more than {count['count']} jobs: narrow it.")
        return 1
    if not count["count"]:
        say("No such job.")
        return 0
    if not await confirmed(f"{counted(count['count'], 'job')} will be {done}. Go on?", yes=options.yes):
        return 1
    if "retrying" in which:
        which["retrying"] = True
    body = {"action": action, "filter": which, "expected": count["count"]}
    result = await client.ask("POST", "/api/jobs/bulk", body=body)
    if options.json:
        print_json(result)
    else:
        left = f", {result['left_out']} left out (their dedupe key is taken)" if result["left_out"] else ""
        say(f"{counted(result['changed'], 'job')} {done}{left}.")
    return 0


async def _add(options: argparse.Namespace, client: Client) -> int:
    import msgspec

    from orchestrator.commands.console import say
    from orchestrator.commands.runner import print_json

    body: dict[str, Any] = {"name": options.name}
    try:
        body["payload"] = msgspec.json.decode(options.payload)
    except (msgspec.DecodeError, UnicodeError) as error:
        options.whole_parser("jobs").error(f"the payload is not JSON: {error}")
    for name in ("queue", "delay_s", "priority", "dedupe_key"):
        if getattr(options, name) is not None:
            body[name] = getattr(options, name)
    made = await client.ask("POST", "/api/jobs", body=body)
    if options.json:
        print_json(made)
    else:
        say(f"#{made['id']} is {made['state']}{'' if made['created'] else ', and was there before'}")
    return 0


async def _pause(options: argparse.Namespace, client: Client) -> int:
    from urllib.parse import quote

    from orchestrator.commands.console import say
    from orchestrator.commands.runner import print_json

    made = await client.ask("POST", f"/api/queues/{quote(options.queue, safe='')}/{options.action}")
    if options.json:
        print_json(made)
    else:
        say(f"{made['name']} is {'paused' if made['paused'] else 'not paused'}{'' if made['changed'] else ' already'}")
    return 0


_ACTIONS = {
    "list": _list,
    "failures": _failures,
    "show": _show,
    "log": _log,
    "retry": _act,
    "cancel": _act,
    "discard": _act,
    "add": _add,
    "pause": _pause,
    "resume": _pause,
}
