// All migrations of both folders, and one of them with its text and its statements.

import { copyButton } from "./actions.js";
import { get } from "./data.js";
import { h } from "./dom.js";
import { facts, link, missing, moment, part, tag } from "./parts.js";
import { count, plural, sentence, span, words } from "./words.js";

const TITLES = { user: "Your migrations", service: "The service’s own migrations" };

function findings(list) {
  if (!list.length) return null;
  return h(
    "ul",
    { class: "notes", "aria-label": "Where files and ledger disagree" },
    list.map((one) =>
      h(
        "li",
        { key: `${one.kind}-${one.name}` },
        h("b", null, `${sentence(words(one.kind)).slice(0, -1)}: ${one.name}`),
        h("p", null, sentence(one.decision)),
        h("p", null, one.remedy),
      ),
    ),
  );
}

function source(one) {
  const row = (file, state, time) =>
    h(
      "li",
      { key: `${state}-${file.name ?? file.id}`, class: state },
      h("span", { class: "file" }, file.name ? link(["migrations", one.source, file.name], null, file.name) : `row ${file.id} of the ledger`),
      state === "pending" ? tag("pending") : h("span", null),
      h("span", { class: "time" }, time),
    );
  return part(
    `of-${one.source}`,
    TITLES[one.source] ?? one.source,
    `${count(one.applied.length)} applied, ${count(one.pending.length)} pending`,
    h("p", { class: "soft" }, "Ledger ", h("code", null, one.ledger), ", folder ", h("code", null, one.folder), "."),
    findings(one.findings),
    h(
      "ol",
      { class: "rows tall", role: "list", tabindex: 0, "aria-label": TITLES[one.source] ?? one.source },
      [...one.pending].reverse().map((file) => row(file, "pending", "")),
      [...one.applied].reverse().map((file) => row(file, "applied", file.duration_s === null ? "" : span(file.duration_s))),
    ),
  );
}

export function migrationsView() {
  const one = get("api/migrations", { live: false, every_s: 30 });
  if (missing(one)) return part("migrations", "Migrations", null, missing(one));
  return [...one.data.sources].reverse().map(source);
}

export function migrationView(from, name) {
  const one = get(`api/migrations/${encodeURIComponent(from)}/${encodeURIComponent(name)}`, { live: false, every_s: 300 });
  if (missing(one)) return part("migration", name, null, missing(one));
  const file = one.data;
  return [
    part(
      "migration",
      h("code", null, file.name),
      tag(file.state),
      facts([
        ["Folder", link(["migrations"], null, TITLES[file.source] ?? file.source)],
        ["Applied", file.applied_at ? moment(file.applied_at) : file.state === "applied" ? "not by this program" : null],
        ["Took", file.duration_s === null ? null : span(file.duration_s)],
        ["Size", `${count(file.size_bytes)} bytes, ${file.statements.length ? plural(file.statements.length, "statement") : "not told apart"}`],
        ["SHA-256", h("code", null, file.hash)],
      ]),
    ),
    file.statements.length
      ? part(
          "statements",
          "Statements",
          null,
          h(
            "ol",
            { class: "list", role: "list" },
            file.statements.map((s, n) =>
              h(
                "li",
                { key: n },
                h("div", { class: "what" }, h("div", { class: "title" }, h("b", null, s.kind), h("span", { class: "id" }, `line ${s.line}`))),
                h("div", { class: "acts" }, s.in_transaction ? null : tag("outside a transaction")),
                h("details", { class: "wide", open: file.statements.length <= 8, key: "sql" }, h("summary", null, "SQL"), pre(s.text, `Statement ${n + 1}`)),
              ),
            ),
          ),
        )
      : null,
    part("text", "The file", copyButton(file.text), pre(file.text, "The file"), file.is_cut ? h("p", { class: "soft" }, "It is cut here: it is longer.") : null),
  ];
}

const pre = (text, label) => h("pre", { class: "text", tabindex: 0, role: "region", "aria-label": label }, h("code", null, text));
