// Jobs that run, and the list of all jobs by filter: the address holds the filter and the page.

import { button, canAct } from "./actions.js";
import { get } from "./data.js";
import { h } from "./dom.js";
import { field, link, missing, part, stateOf, tag } from "./parts.js";
import { go, route } from "./router.js";
import { ago, count, plural, since, timer, until } from "./words.js";

const STATES = ["scheduled", "queued", "running", "succeeded", "failed", "cancelled"];
const FILTERS = ["state", "name", "queue", "schedule", "retrying", "failure", "q"];
const PAGE = 50;

const jobPath = (id, verb) => `api/jobs/${encodeURIComponent(id)}/${verb}`;

export function jobTitle(job) {
  return h(
    "div",
    { class: "title" },
    link(["jobs", String(job.id)], null, [h("b", null, job.name), " ", h("span", { class: "id" }, `#${job.id}`)]),
    job.attempt > 1 ? h("span", { class: "id" }, `attempt ${job.attempt} of ${job.max_attempts}`) : null,
  );
}

/** How far a running job says that it is. */
export function meter(job) {
  const { done, total } = job.progress ?? {};
  const percent = total ? Math.min(100, (100 * done) / total) : null;
  return h(
    "span",
    {
      class: `meter${percent === null ? " unknown" : ""}`,
      role: "progressbar",
      "aria-label": `Progress of ${job.name} #${job.id}`,
      "aria-valuemin": percent === null ? null : 0,
      "aria-valuemax": percent === null ? null : 100,
      "aria-valuenow": percent === null ? null : Math.round(percent),
    },
    h("i", { vars: { "--part": `${percent ?? 30}%` } }),
  );
}

/** The actions that a job's state allows. */
export function jobActions(job) {
  const about = `${job.name} #${job.id}`;
  const unfinished = ["scheduled", "queued", "running"].includes(job.state);
  return [
    ["failed", "cancelled", "scheduled"].includes(job.state)
      ? button(
          `retry-${job.id}`,
          job.state === "scheduled" ? "Run now" : "Retry",
          jobPath(job.id, "retry"),
          `Job #${job.id} is queued again.`,
          about,
        )
      : null,
    unfinished && !job.cancel_requested
      ? button(`cancel-${job.id}`, "Cancel", jobPath(job.id, "cancel"), `Job #${job.id} is cancelled.`, about)
      : null,
  ];
}

export function runningPart() {
  const one = get("api/jobs?state=running&limit=20");
  const list = one.data?.jobs ?? [];
  return part(
    "running",
    "Running",
    one.data?.next_cursor ? link(["jobs"], { state: "running" }, "All that run") : list.length ? plural(list.length, "job") : null,
    missing(one) ??
      (list.length
        ? h(
            "ul",
            { class: "list" },
            list.map((job) => {
              const { done, total, note } = job.progress ?? {};
              return h(
                "li",
                { key: job.id },
                h("div", { class: "what" }, jobTitle(job), note ? h("p", { class: "said" }, note) : null),
                h(
                  "div",
                  { class: "acts" },
                  total ? h("span", null, `${count(done)} of ${count(total)}`) : null,
                  job.started_at ? timer(since(job.started_at)) : null,
                  job.cancel_requested ? h("span", null, "is being cancelled") : jobActions(job),
                ),
                h("div", { class: "wide" }, meter(job)),
              );
            }),
          )
        : h("p", { class: "empty" }, "Nothing runs.")),
  );
}

/** When a job did what its state says. */
function when(job) {
  if (job.state === "scheduled") return timer(until(job.run_at));
  if (job.state === "running") return ["for ", timer(since(job.started_at))];
  return timer(ago(job.finished_at ?? job.run_at));
}

function row(job) {
  const state = stateOf(job);
  return h(
    "li",
    { key: job.id },
    h(
      "div",
      { class: "what" },
      jobTitle(job),
      job.error_message && ["failed", "retrying"].includes(state)
        ? h("p", { class: "said" }, job.error_message)
        : job.progress?.note
          ? h("p", { class: "said" }, job.progress.note)
          : null,
    ),
    h("div", { class: "acts" }, tag(state), h("span", { class: "when" }, when(job)), jobActions(job)),
  );
}

/** The filter of the address, as the API takes it. */
const filterOf = (query) => Object.fromEntries(FILTERS.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));

function options(values, empty) {
  return [h("option", { value: "" }, empty), ...values.map((one) => h("option", { value: one }, one))];
}

function filters(query) {
  const names = (get("api/handlers", { every_s: 300, live: false }).data?.handlers ?? []).map((one) => one.name);
  const queues = (get("api/queues", { every_s: 5 }).data?.queues ?? []).map((one) => one.name);
  const schedules = (get("api/schedules", { live: false }).data?.schedules ?? []).map((one) => one.name);
  const known = (list, name) => [...new Set([...list, ...(query.get(name) ? [query.get(name)] : [])])].sort();
  const set = (name, value) => {
    const next = { ...filterOf(query), [name]: value };
    if (name === "state") delete next.retrying;
    go(["jobs"], next);
  };
  const choice = (name, label, values, empty) =>
    field(
      `by-${name}`,
      label,
      h(
        "select",
        { id: `by-${name}`, value: query.get(name) ?? "", on: { change: (event) => set(name, event.target.value) } },
        options(values, empty),
      ),
    );
  const search = (event) => {
    event.preventDefault();
    set("q", event.target.querySelector("input").value.trim());
  };
  return h(
    "form",
    { class: "filters", role: "search", key: "filters", on: { submit: search } },
    choice("state", "State", STATES, "any"),
    choice("name", "Name", known(names, "name"), "any"),
    choice("queue", "Queue", known(queues, "queue"), "any"),
    choice("schedule", "Schedule", known(schedules, "schedule"), "any"),
    field(
      "by-q",
      "Search",
      h("input", { id: "by-q", type: "search", maxlength: 200, placeholder: "id, name or error", value: query.get("q") ?? "" }),
    ),
    h("button", { type: "submit" }, "Search"),
  );
}

const BULK = {
  retry: ["Retry", "queued again", ["failed", "cancelled", "scheduled"]],
  cancel: ["Cancel", "cancelled", ["scheduled", "queued", "running"]],
  discard: ["Discard", "removed", ["succeeded", "failed", "cancelled"]],
};

/** Actions on all jobs of the filter, each with how many they are; none for a search, which is no filter of the API. */
function bulk(which) {
  const { q, ...filter } = which;
  if (!canAct() || q || !Object.keys(filter).length) return null;
  if (filter.retrying) filter.retrying = true;
  const query = new URLSearchParams(which).toString();
  const shown = Object.entries(BULK)
    .filter(([, [, , states]]) => !which.state || states.includes(which.state))
    .filter(([action]) => !which.retrying || action !== "discard")
    .map(([action, [label, done]]) => {
      const { data } = get(`api/jobs/count?${query}&action=${action}`, { every_s: 5, live: false });
      if (!data?.count) return null;
      if (data.more) return h("span", { class: "soft" }, `${label}: more than ${count(data.count)}, narrow the filter`);
      return button(
        `bulk-${action}`,
        `${label} all ${count(data.count)}`,
        "api/jobs/bulk",
        (answer) => `${plural(answer.changed, "job")} ${done}${answer.left_out ? `, ${answer.left_out} left out` : ""}.`,
        "of this filter",
        {
          body: { action, filter, expected: data.count },
          sure: `${label} ${plural(data.count, "job")}${action === "discard" ? " for good" : ""}?`,
        },
      );
    });
  return shown.some(Boolean) ? h("div", { class: "bulk", key: "bulk" }, shown) : null;
}

export function jobsView() {
  const { query } = route();
  const which = filterOf(query);
  const cursor = query.get("cursor");
  const asked = new URLSearchParams({ ...which, limit: PAGE, ...(cursor ? { cursor } : {}) });
  const one = get(`api/jobs?${asked}`);
  const list = one.data?.jobs ?? [];
  const title = which.retrying ? "Jobs that are tried again" : which.state ? `Jobs: ${which.state}` : "Jobs";
  return part(
    "jobs",
    title,
    [
      Object.keys(which).length ? link(["jobs"], null, "All jobs") : null,
      canAct() ? link(["add"], which.name ? { name: which.name } : null, "Add a job", { class: "button" }) : null,
    ],
    filters(query),
    which.failure ? h("p", { class: "soft" }, "One kind of failure. ", link(["failures"], null, "All failures")) : null,
    bulk(which),
    missing(one) ??
      (list.length
        ? h("ul", { class: "list" }, list.map(row))
        : h("p", { class: "empty" }, one.data.next_cursor ? "None among the jobs that were searched so far." : "No such job.")),
    h(
      "nav",
      { class: "pages", "aria-label": "Pages" },
      cursor ? link(["jobs"], which, "Newest") : null,
      one.data?.next_cursor ? link(["jobs"], { ...which, cursor: one.data.next_cursor }, which.q ? "Search on" : "Older") : null,
    ),
  );
}
