// Starts of all replicas: where their time went; and one of them, with the migrations that it applied.

import { get } from "./data.js";
import { h } from "./dom.js";
import { failurePanel } from "./failure.js";
import { PHASES } from "./model.js";
import { facts, link, missing, moment, part, tag } from "./parts.js";
import { clock, plural, span } from "./words.js";

const SPENT = ["starting", ...PHASES]; // where a start's time goes
const SHOWN = 5;

function measured(one) {
  const times = SPENT.map((phase, n) => ({ phase, n, s: one.phases[phase] ?? 0 })).filter((p) => p.s > 0);
  const total = times.reduce((sum, p) => sum + p.s, 0);
  return { one, times, total, most: [...times].sort((a, b) => b.s - a.s)[0] };
}

const stack = (times, part) =>
  h(
    "span",
    { class: "stack", "aria-hidden": "true", vars: { "--part": `${part}%` } },
    times.map((p) => h("i", { class: `k${p.n}`, title: `${p.phase} ${span(p.s)}`, vars: { "--grow": p.s } })),
  );

const legend = () =>
  h(
    "p",
    { class: "legend", "aria-hidden": "true" },
    SPENT.map((phase, n) => h("span", null, h("i", { class: `k${n}` }), phase)),
  );

export function startsPart({ all = false, cursor = null } = {}) {
  const page = get(`api/starts?limit=${all ? 50 : SHOWN}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`, { live: false, every_s: 30 });
  const rows = (page.data?.starts ?? []).map(measured);
  if (!rows.length) return all || page.error ? part("starts", "Starts", null, missing(page) ?? h("p", { class: "empty" }, "None.")) : null;
  const longest = Math.max(...rows.map((row) => row.total), 0.001);
  return part(
    "starts",
    "Starts",
    all ? null : link(["starts"], null, "All starts"),
    h(
      "ol",
      { class: "starts", role: "list" },
      rows.map(({ one, times, total, most }) =>
        h(
          "li",
          { key: one.id },
          h(
            "span",
            { class: "when" },
            link(["starts", String(one.id)], null, clock(one.started_at), { title: one.started_at }),
            h("small", null, [one.host, one.version, one.command === "migrate" ? "migrate" : null].filter(Boolean).join(", ")),
          ),
          h(
            "span",
            { class: "bars" },
            stack(times, (100 * total) / longest),
            h(
              "small",
              { class: "mostly" },
              one.outcome === "failed" ? h("span", { class: "bad" }, `failed: ${one.error?.error ?? one.error?.message ?? "see the log"}. `) : null,
              most ? `mostly ${most.phase}, ${span(most.s)}` : "",
              one.migrations_applied ? `; ${plural(one.migrations_applied, "migration")}` : "",
            ),
          ),
          h("span", { class: "total" }, span(total)),
        ),
      ),
    ),
    legend(),
    all && page.data.next_cursor ? h("nav", { class: "pages", "aria-label": "Pages" }, link(["starts"], { cursor: page.data.next_cursor }, "Older")) : null,
  );
}

const sourceOf = (ledger) => (ledger.startsWith("orchestrator.") ? "service" : "user");

export function startView(id) {
  const one = get(`api/starts/${encodeURIComponent(id)}`, { live: false, every_s: 300 });
  if (missing(one)) return part("start-one", `Start #${id}`, null, missing(one));
  const start = one.data;
  const { times, total } = measured(start);
  return [
    part(
      "start-one",
      `Start #${start.id}`,
      tag(start.outcome),
      facts([
        ["Began", moment(start.started_at)],
        ["Host", `${start.host}, pid ${start.pid}`],
        ["Command", start.command],
        ["Version", start.version],
        ["Took", span(total)],
      ]),
      h("div", { class: "one-start" }, stack(times, 100)),
      h(
        "dl",
        { class: "facts" },
        times.map((p) => [h("dt", null, h("i", { class: `swatch k${p.n}`, "aria-hidden": "true" }), p.phase), h("dd", null, span(p.s))]),
      ),
    ),
    start.error ? h("section", { class: "failure", key: "why", "aria-label": "Why it failed" }, failurePanel({ facts: start.error })) : null,
    part(
      "start-migrations",
      "Migrations that it applied",
      start.migrations.length ? span(start.migrations.reduce((sum, m) => sum + m.duration_s, 0)) : null,
      start.migrations.length
        ? h(
            "ol",
            { class: "rows", role: "list" },
            start.migrations.map((m) =>
              h(
                "li",
                { key: `${m.ledger}/${m.name}` },
                h("span", { class: "file" }, link(["migrations", sourceOf(m.ledger), m.name], null, m.name)),
                sourceOf(m.ledger) === "service" ? h("span", { class: "tag" }, "own") : h("span", null),
                h("span", { class: "time" }, span(m.duration_s)),
              ),
            ),
          )
        : h("p", { class: "empty" }, "None."),
    ),
  ];
}
