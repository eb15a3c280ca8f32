"""Find jobs by a text: their id, their name, their error. Reads the database, so many jobs for a page and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.jobs.store import ID_MAX, SUMMARY, JobPage, JobSummary, conditions_of, fields_of

if TYPE_CHECKING:
    from orchestrator.jobs.store import JobFilter

# A search reads so many jobs for a page, whatever it finds among them: who wants more asks for the next page.
SEARCHED_MAX = 10_000


async def search_jobs(connection: Any, which: JobFilter, text: str, *, before: int | None, limit: int) -> JobPage:
    """A page of the jobs that the filter lets through and whose id is `text`, or whose name or error holds it.

    A page may be short, or empty, and not be the last: it ends where `SEARCHED_MAX` jobs were looked at.
    """
    if text.isascii() and text.isdigit() and before is None and int(text) <= ID_MAX:
        rows = await connection.fetch(f"SELECT {SUMMARY} FROM orchestrator.jobs j WHERE j.id = $1", int(text))  # noqa: S608 constants
        if rows:
            return JobPage([JobSummary(**fields_of(row)) for row in rows], None)
    conditions, arguments = conditions_of(which, before)
    n = len(arguments)
    rows = await connection.fetch(
        f"""
        WITH looked_at AS MATERIALIZED (
            SELECT j.id,
                strpos(lower(j.name), ${n + 1}) > 0 OR strpos(lower(j.error->>'message'), ${n + 1}) > 0
                OR strpos(lower(j.error->>'type'), ${n + 1}) > 0 AS is_found
            FROM (
                SELECT id, name, error FROM orchestrator.jobs j WHERE {" AND ".join([*conditions, "true"])}
                ORDER BY j.id DESC LIMIT {SEARCHED_MAX}
            ) j
        ), found AS (
            SELECT id FROM looked_at WHERE is_found ORDER BY id DESC LIMIT ${n + 2}
        )
        SELECT {SUMMARY}, (SELECT CASE WHEN count(*) = {SEARCHED_MAX} THEN min(id) END FROM looked_at) AS searched_to
        FROM (SELECT id FROM found UNION ALL SELECT NULL ORDER BY id DESC NULLS LAST) f
        LEFT JOIN orchestrator.jobs j ON j.id = f.id ORDER BY j.id DESC NULLS LAST
        """,  # noqa: S608 columns and operators are constants, values are parameters
        *arguments,
        text.lower(),
        limit + 1,
    )
    searched_to = rows[-1]["searched_to"]
    jobs = [
        JobSummary(**{name: value for name, value in fields_of(row).items() if name != "searched_to"})
        for row in rows
        if row["id"] is not None
    ]
    if len(jobs) > limit:
        return JobPage(jobs[:limit], str(jobs[limit - 1].id))
    return JobPage(jobs, None if searched_to is None else str(searched_to))
