// The migrations of a start: a bar for each, the one that runs, and the list.

import { copyButton } from "./actions.js";
import { h } from "./dom.js";
import { ms } from "./model.js";
import { address, age, count, plural, running, span, timer, words } from "./words.js";

export function sql(text) {
  return h("div", { class: "sql" }, h("pre", null, h("code", null, text)), copyButton(text));
}

/** Every migration as a bar: how high says how long (by the logarithm), how dark what state. */
export function sky(items) {
  const { rows } = items;
  const most = Math.max(0.02, ...rows.map((row) => row.duration_s ?? 0));
  const gap = rows.length > 120 ? 0.5 : 2;
  const height = (row) => {
    if (row.state === "running" || row.state === "failed") return 48;
    if (row.duration_s === null) return 7;
    return 9 + (39 * Math.log1p(row.duration_s * 50)) / Math.log1p(most * 50);
  };
  const wide = Math.max(rows.length, 40);
  return h(
    "svg",
    { class: "sky", viewBox: `0 0 ${wide * 10} 48`, preserveAspectRatio: "none", "aria-hidden": "true" },
    rows.map((row, n) => {
      const kind = row.state === "applied" && row.duration_s !== null ? "fresh" : row.state;
      const tall = height(row);
      return h("rect", {
        class: kind,
        x: n * 10,
        y: (48 - tall).toFixed(1),
        width: 10 - gap,
        height: tall.toFixed(1),
        rx: 1.5,
      });
    }),
  );
}

export function current(start) {
  const { migrations, timestamp } = start;
  const { activity } = migrations;
  const top = h(
    "div",
    { class: "top" },
    h("b", null, migrations.current),
    migrations.statements > 1 ? h("span", null, `statement ${migrations.statement} of ${migrations.statements}`) : null,
  );
  const part = migrations.statements > 1 ? Math.max(0, migrations.statement - 1) / migrations.statements : null;
  const percent = activity?.percent ?? null;
  const shown = percent !== null ? percent : part !== null ? part * 100 : null;
  const started = activity ? ms(timestamp) - activity.elapsed_s * 1000 : null;
  const blockers = activity?.blockers ?? [];
  const left_s = percent > 0.5 && percent < 100 ? (activity.elapsed_s * (100 - percent)) / percent : null;
  const says = [
    percent !== null ? `${percent.toFixed(percent < 10 ? 1 : 0)} %` : null,
    activity?.stage ? words(activity.stage) : null,
    // the disk's and the server's own moments of waiting come and go and say nothing to a person
    activity?.wait_event && !blockers.length && !/^(IO|LWLock|Timeout|Activity):/.test(activity.wait_event)
      ? `waits: ${words(activity.wait_event)}`
      : null,
  ].filter(Boolean);
  return h(
    "div",
    { class: "running-now", key: "running-now" },
    top,
    activity?.excerpt ? h("pre", null, h("code", null, activity.excerpt)) : null,
    h(
      "span",
      {
        class: `meter${shown === null ? " unknown" : ""}`,
        role: "progressbar",
        "aria-label": `Progress of ${migrations.current}`,
        "aria-valuemin": shown === null ? null : 0,
        "aria-valuemax": shown === null ? null : 100,
        "aria-valuenow": shown === null ? null : Math.round(shown),
      },
      h("i", { vars: { "--part": `${shown ?? 30}%` } }),
    ),
    h(
      "div",
      { class: "meter-words" },
      h("span", null, says.join(", ") || (activity ? words(activity.statement_kind) : "running")),
      h(
        "span",
        null,
        started === null ? null : timer((t) => running((t - started) / 1000)),
        left_s === null ? "" : `, about ${age(Math.max(1, left_s))} left`,
      ),
    ),
    blockers.map((one) =>
      h(
        "p",
        { class: "warn", key: `b-${one.pid}` },
        `Waits for pid ${one.pid}`,
        one.application_name ? ` (${one.application_name})` : "",
        one.client_address ? ` from ${address(one.client_address)}` : "",
        one.state && one.state !== "active" ? `, ${one.state}` : "",
        one.query ? h("code", null, ` ${one.query}`) : "",
      ),
    ),
  );
}

export function listing(items) {
  const slowest = new Set(
    items.slowest
      .filter((one) => one.duration_s >= 1 || one.duration_s > items.spent_s * 0.2)
      .slice(0, 3)
      .map((one) => `${one.source}/${one.name}`),
  );
  const several = new Set(items.rows.map((row) => row.source)).size > 1;
  const after = items.total - items.left_out_before - items.rows.length;
  const slow = items.slowest.filter((one) => slowest.has(`${one.source}/${one.name}`) && one.duration_s >= 0.1);
  return [
    slow.length
      ? h(
          "p",
          null,
          "Slowest: ",
          slow.map((one, n) => [n ? ", " : "", h("b", null, one.name), ` ${span(one.duration_s)}`]),
        )
      : null,
    h(
      "details",
      { key: "all" },
      h("summary", null, `All ${plural(items.total, "migration")}`),
      h(
        "ol",
        { class: "rows", tabindex: 0, role: "list", "aria-label": "Migrations" },
        items.left_out_before
          ? h(
              "li",
              { key: "before", class: "soft" },
              h("span", null, `${count(items.left_out_before)} older ones, applied`),
            )
          : null,
        [...items.rows].map((row) => {
          const name = `${row.source}/${row.name}`;
          return h(
            "li",
            { key: name, class: row.state },
            h("span", { class: "file" }, row.name),
            slowest.has(name)
              ? h("span", { class: "tag warn" }, "slow")
              : several && row.source === "service"
                ? h("span", { class: "tag" }, "own")
                : h("span", null),
            h("span", { class: "time" }, row.duration_s !== null ? span(row.duration_s) : row.state),
          );
        }),
        after > 0 ? h("li", { key: "after", class: "soft" }, h("span", null, `${count(after)} more to come`)) : null,
      ),
    ),
  ];
}
