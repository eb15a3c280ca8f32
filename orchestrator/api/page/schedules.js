// Schedules, and the starts of all replicas.

import { button, canAct } from "./actions.js";
import { h } from "./dom.js";
import { PHASES, ms } from "./model.js";
import { part } from "./queues.js";
import { ago, clock, date, plural, span, timer, until } from "./words.js";

export function schedulesPart(list) {
  const act = canAct();
  return part(
    "schedules",
    "Schedules",
    null,
    list.length
      ? h(
          "table",
          { class: "stacked" },
          h(
            "thead",
            null,
            h(
              "tr",
              null,
              h("th", { scope: "col" }, "Schedule"),
              h("th", { scope: "col" }, "When"),
              h("th", { scope: "col" }, "Last run"),
              h("th", { scope: "col" }, "Next run"),
              act ? h("th", { scope: "col" }, h("span", { class: "unseen" }, "Action")) : null,
            ),
          ),
          h(
            "tbody",
            null,
            list.map((one) =>
              h(
                "tr",
                { key: one.name, class: one.enabled === false ? "off" : "" },
                h(
                  "td",
                  null,
                  h("b", null, one.name),
                  one.job && one.job !== one.name ? h("small", null, one.job) : null,
                ),
                h(
                  "td",
                  { "data-name": "at" },
                  h("code", null, one.cron),
                  one.timezone && one.timezone !== "UTC" ? h("small", null, one.timezone) : null,
                ),
                h(
                  "td",
                  { "data-name": "last" },
                  one.last_run_at
                    ? [timer(ago(one.last_run_at)), h("small", null, clock(one.last_run_at))]
                    : h("span", { class: "soft" }, "never"),
                ),
                h(
                  "td",
                  { "data-name": "next" },
                  one.enabled === false
                    ? h("span", { class: "soft" }, "off")
                    : one.next_run_at
                      ? [timer(until(one.next_run_at)), h("small", null, clock(one.next_run_at))]
                      : h("span", { class: "soft" }, "not known"),
                ),
                act
                  ? h(
                      "td",
                      null,
                      button(
                        `trigger-${one.name}`,
                        "Run now",
                        `api/schedules/${encodeURIComponent(one.name)}/trigger`,
                        `${one.name} is queued.`,
                        one.name,
                      ),
                    )
                  : null,
              ),
            ),
          ),
        )
      : h("p", { class: "empty" }, "There is no schedule."),
  );
}

const SPENT = ["starting", ...PHASES]; // where a start's time goes

export function startsPart(list) {
  if (!list.length) return null;
  const rows = list.map((one) => {
    const phases = one.phases ?? one.phases_s ?? {};
    const times = SPENT.map((phase, n) => ({ phase, n, s: phases[phase] ?? 0 })).filter((p) => p.s > 0);
    const total = times.reduce((sum, p) => sum + p.s, 0);
    return { one, times, total, most: [...times].sort((a, b) => b.s - a.s)[0] };
  });
  const longest = Math.max(...rows.map((row) => row.total), 0.001);
  return part(
    "starts",
    "Starts",
    null,
    h(
      "ol",
      { class: "starts", role: "list" },
      rows.map(({ one, times, total, most }, n) => {
        const bad = one.outcome === "failed";
        return h(
          "li",
          { key: one.id ?? `${one.started_at}-${n}` },
          h(
            "span",
            { class: "when" },
            `${date(one.started_at)}, ${new Date(ms(one.started_at)).toLocaleTimeString("en-GB").slice(0, 5)}`,
            h("small", null, [one.version, one.command === "migrate" ? "migrate" : null].filter(Boolean).join(", ")),
          ),
          h(
            "span",
            { class: "bars" },
            h(
              "span",
              { class: "stack", "aria-hidden": "true", vars: { "--part": `${(100 * total) / longest}%` } },
              times.map((p) => h("i", { class: `k${p.n}`, vars: { "--grow": p.s } })),
            ),
            h(
              "small",
              { class: "mostly" },
              bad
                ? h("span", { class: "bad" }, `failed: ${one.error?.error ?? one.error?.message ?? "see the log"}. `)
                : null,
              most ? `mostly ${most.phase}, ${span(most.s)}` : "",
              one.migrations_applied ? `; ${plural(one.migrations_applied, "migration")}` : "",
            ),
          ),
          h("span", { class: "total" }, span(total)),
        );
      }),
    ),
    h(
      "p",
      { class: "legend", "aria-hidden": "true" },
      SPENT.map((phase, n) => h("span", null, h("i", { class: `k${n}` }), phase)),
    ),
  );
}
