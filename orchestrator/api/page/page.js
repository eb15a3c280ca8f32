// The status page: what `/health/events` and the API tell, drawn. No library, no build.
//
// Whatever comes from the server becomes text nodes and attributes (`h`, `patch`), never markup; the policy of the page
// (trusted types) holds that together. State flows one way: feeds → `model` → `draw()` → DOM.

import { askToken, forgetToken, guarded } from "./actions.js";
import { chain } from "./chain.js";
import { beginDrawing } from "./data.js";
import { h, patch, printable, say } from "./dom.js";
import { failurePanel } from "./failure.js";
import { failedCount } from "./failures.js";
import { favicon, glyph } from "./glyph.js";
import { describe } from "./headline.js";
import { jobs } from "./jobs_feed.js";
import { isSameProcess, model, onChange, token } from "./model.js";
import { gate, nav, ready, viewName, warnings } from "./ready.js";
import { route } from "./router.js";
import { followStart } from "./start_feed.js";
import { POLL_S } from "./transport.js";
import { ago, timer } from "./words.js";

function bar(start) {
  const asked = Boolean(start?.access?.token) && start?.phase === "ready";
  const isJobless = start?.phase === "ready" && jobs.mayRead() && model.jobs_misses > 2;
  const linked = {
    live: isJobless ? `Live; jobs every ${2 * POLL_S} s` : "Live",
    poll: `Asking every ${POLL_S} s`,
    away: model.ended ? "Ended" : model.start || model.misses > 1 ? "Cut off" : "Connecting",
  }[model.link];
  return [
    h("span", { class: "name" }, instance(start), start ? h("small", null, start.version) : null),
    h(
      "span",
      {
        class: "link",
        "data-link": model.ended ? "ended" : isJobless && model.link === "live" ? "poll" : model.link,
        title: model.link === "poll" ? "The event stream brings nothing (a proxy that buffers?)" : null,
      },
      linked,
    ),
    start?.access?.token && !start.tells_all && !token() && start.phase !== "ready"
      ? h("button", { type: "button", class: "plain", key: "enter", on: { click: askToken } }, "Enter the token")
      : null,
    asked && token()
      ? h("button", { type: "button", class: "plain", key: "forget", on: { click: forgetToken } }, "Forget the token")
      : null,
  ];
}

/** What the operator calls this one; the program's name where it has none. */
const instance = (start) => start?.instance || "orchestrator";

function content(shown) {
  const { start } = model;
  const isOverview = start?.phase !== "ready" || Boolean(gate(start)) || route().view === "overview";
  const hero = h(
    "section",
    { class: isOverview ? "hero" : "hero small", key: "hero", "aria-label": "State" },
    h(
      "svg",
      { class: "glyph", viewBox: "0 0 32 32", "aria-hidden": "true" },
      glyph(shown.shape, shown.part ?? 0).map(([tag, attributes]) => h(tag, attributes)),
    ),
    h("h1", null, shown.title),
    isOverview ? shown.sub.filter(Boolean).map((line) => h("p", { class: "sub" }, line)) : null,
  );
  if (!start) return [hero];
  const isReady = start.phase === "ready";
  const failed =
    model.failure && (start.failure !== null || !isSameProcess(model.failure.started_at, start.started_at));
  const isPast = failed && start.failure === null;
  const panel = !failed
    ? null
    : isPast
      ? h(
          "details",
          { class: "failure past", key: "past" },
          h(
            "summary",
            null,
            "The start before this one failed: ",
            model.failure.facts.reason ?? model.failure.facts.error,
          ),
          failurePanel(model.failure),
        )
      : h("section", { class: "failure", key: "failure", "aria-label": "Why it failed" }, failurePanel(model.failure));
  return [
    isReady && !gate(start) ? nav() : null,
    hero,
    isOverview ? panel : null,
    isOverview ? warnings(start) : null,
    isReady ? ready(start) : null,
    isReady && !isOverview
      ? null
      : isReady
      ? h(
          "section",
          { class: "part", key: "start" },
          h(
            "details",
            { key: "this" },
            h("summary", null, "This start, step by step"),
            h("div", { class: "past-chain" }, chain(start)),
          ),
        )
      : h("section", { key: "chain", "aria-label": "The start, step by step" }, chain(start)),
  ];
}

function foot(start) {
  const isReady = start?.phase === "ready";
  return [
    h("a", { href: "health" }, "/health"),
    isReady ? guarded("openapi.json", "/openapi.json") : null,
    isReady ? guarded("metrics", "/metrics") : null,
    h("span", null, `Times are in ${Intl.DateTimeFormat().resolvedOptions().timeZone}`),
    start && model.link !== "away"
      ? h("span", { class: "end" }, "Process started ", timer(ago(start.started_at)))
      : null,
  ];
}

let drawn = 0;

/** Draw at the next frame (or soon, in a hidden tab): many changes, one drawing. */
function schedule() {
  if (drawn) return;
  drawn = setTimeout(() => {
    drawn = 0;
    draw();
  }, 30);
}

function draw() {
  beginDrawing();
  const shown = describe();
  const { start } = model;
  const isOpen = start?.phase === "ready" && !gate(start);
  document.documentElement.dataset.state = shown.state;
  document.body.classList.toggle("wide", isOpen);
  patch(document.getElementById("bar"), bar(start).filter(Boolean));
  patch(document.getElementById("main"), content(shown).flat(Infinity).filter(Boolean));
  patch(document.getElementById("foot"), foot(start).filter(Boolean));
  drawToast();
  const of =
    start?.phase === "migrating" && start.migrations.total
      ? ` ${start.migrations.applied}/${start.migrations.total}`
      : "";
  const view = isOpen && viewName();
  const title = printable(`${view ? `${view} · ` : ""}${shown.title}${of} · ${instance(start)}`);
  if (document.title !== title) document.title = title;
  favicon(shown.shape, shown.part ?? 0, { name: start?.instance ?? "", fails: isOpen && Boolean(failedCount()) });
  speak(shown, start);
}

function drawToast() {
  const old = document.querySelector(".toast");
  if (!model.toast) old?.remove();
  else {
    const node = old ?? document.body.appendChild(Object.assign(document.createElement("div"), { className: "toast" }));
    node.setAttribute("aria-hidden", "true"); // the live region has said it
    node.textContent = printable(model.toast);
  }
}

let spoken = { title: "", at: 0 };

/** Changes of state are spoken at once, progress every 15 s, timers never. */
function speak(shown, start) {
  const moves =
    start?.phase === "migrating" && start.migrations.total
      ? `, ${start.migrations.applied} of ${start.migrations.total}`
      : "";
  const why =
    shown.state === "bad" && model.failure ? `: ${model.failure.facts.reason ?? model.failure.facts.error}` : "";
  if (shown.title === spoken.title && (!moves || Date.now() - spoken.at < 15000)) return;
  spoken = { title: shown.title, at: Date.now() };
  say(`${shown.title}${moves}${why}`);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && jobs.isStale) jobs.soon(0);
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", schedule);

schedule();
onChange(schedule);
followStart();
