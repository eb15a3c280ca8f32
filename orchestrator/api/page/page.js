// The status page: what `/health/events` and the API tell, drawn. No library, no build.
//
// Whatever comes from the server becomes text nodes and attributes (`h`, `patch`), never markup; the page's policy
// (trusted types) holds that together. State flows one way: feeds → `model` → `draw()` → DOM.

const PHASES = ["connecting", "locking", "extensions", "migrating", "launching"];
const SPENT = ["starting", ...PHASES]; // where a start's time goes
const STEPS = {
  connecting: "Database",
  locking: "Lock",
  extensions: "Extensions",
  migrating: "Migrations",
  launching: "Job server",
};
// A start that fails lives for a second: rarer tries would miss it, and a refused connection costs nothing.
const retry_s = (misses) => (misses < 2 ? 0.4 : misses < 120 ? 1 : 3);
const SILENCE_S = 25; // the server repeats itself every 10 s
const POLL_S = 2;
const JOBS_EVERY_S = 15; // live; without the stream every POLL_S × 2
const JOBS_GAP_MS = 700;

// ---------------------------------------------------------------------------------------------------------- drawing

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "circle", "rect", "line", "polyline", "title"]);

/** A node to be: `on` are listeners, `vars` CSS variables, `timer` text that runs, `key` what it is among siblings. */
function h(tag, props, ...children) {
  const kept = children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== "");
  return { tag, props: props ?? {}, children: kept.map((c) => (typeof c === "object" ? c : String(c))) };
}

/** Make the children of `parent` what `wanted` says, keeping the nodes that stay: focus, scroll and open details too. */
function patch(parent, wanted) {
  const keys = new Set(wanted.map((v) => v.props?.key).filter((k) => k !== undefined));
  const keyed = new Map();
  for (const node of [...parent.childNodes]) {
    if (node.orchKey === undefined) continue;
    if (keys.has(node.orchKey)) keyed.set(node.orchKey, node);
    else node.remove();
  }
  let at = parent.firstChild;
  for (const v of wanted) {
    let node = null;
    if (typeof v === "string") {
      if (at?.nodeType === Node.TEXT_NODE) {
        if (at.data !== v) at.data = v;
        node = at;
      } else node = document.createTextNode(v);
    } else {
      const { key } = v.props;
      if (key !== undefined) node = keyed.get(key) ?? null;
      else if (at?.nodeType === Node.ELEMENT_NODE && at.orchKey === undefined) node = at;
      if (node === null || node.orchTag !== v.tag) {
        node = SVG_TAGS.has(v.tag) ? document.createElementNS(SVG, v.tag) : document.createElement(v.tag);
        node.orchTag = v.tag;
        node.orchKey = key;
        if (v.props.open) node.setAttribute("open", ""); // from then on it is the person's
      }
      dress(node, v);
    }
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function dress(node, { props, children }) {
  const attributes = {};
  for (const [name, value] of Object.entries(props)) {
    if (["key", "on", "vars", "timer", "open"].includes(name) || value === null || value === undefined) continue;
    if (value !== false) attributes[name] = value === true ? "" : String(value);
  }
  for (const name of node.orchAttributes ?? []) if (!(name in attributes)) node.removeAttribute(name);
  for (const [name, value] of Object.entries(attributes)) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  node.orchAttributes = Object.keys(attributes);
  for (const [name, value] of Object.entries(props.vars ?? {})) node.style.setProperty(name, value);
  for (const [name, listener] of Object.entries(props.on ?? {})) {
    if (!node.orchOn?.[name]) node.addEventListener(name, (event) => node.orchOn[name](event));
    node.orchOn = { ...node.orchOn, [name]: listener };
  }
  if (props.timer) {
    node.orchTimer = props.timer;
    node.setAttribute("data-timer", "");
    run(node);
  } else {
    if (node.orchTimer) {
      node.orchTimer = null;
      node.removeAttribute("data-timer");
    }
    patch(node, children);
  }
}

function run(node) {
  const text = node.orchTimer(now());
  if (node.textContent !== text) node.textContent = text;
}

setInterval(() => {
  for (const node of document.querySelectorAll("[data-timer]")) run(node);
}, 100);

// ------------------------------------------------------------------------------------------------------------ words

/** Server time in ms: the two clocks need not agree. It stands still while nothing is heard: so do the timers. */
function now() {
  return (model.link === "away" ? model.heard_at : Date.now()) + model.skew_ms;
}

function span(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "";
  const s = Math.max(0, seconds);
  if (s < 0.0095) return "< 10 ms";
  if (s < 0.995) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 59.5) return `${Math.round(s)} s`;
  const m = Math.round(s / 60);
  if (s < 600) return `${Math.floor(Math.round(s) / 60)} min ${String(Math.round(s) % 60).padStart(2, "0")} s`;
  if (m < 60) return `${m} min`;
  const [big, small] =
    m < 1440
      ? [`${Math.floor(m / 60)} h`, `${m % 60} min`]
      : [`${Math.floor(m / 1440)} d`, `${Math.floor((m % 1440) / 60)} h`];
  return small.startsWith("0 ") ? big : `${big} ${small}`;
}

/** A span that is running: tenths for ten seconds, then calm. */
function running(seconds) {
  const s = Math.max(0, seconds);
  return s < 10 ? `${(Math.floor(s * 10) / 10).toFixed(1)} s` : span(Math.floor(s));
}

/** A span for ages: in whole units, and minutes without their seconds. */
function age(seconds) {
  const s = Math.round(seconds);
  if (s < 1) return "just now";
  if (s < 60) return `${s} s`;
  return s < 600 ? `${Math.floor(s / 60)} min` : span(s);
}

const ms = (iso) => (iso ? Date.parse(iso) : null);
const since =
  (iso, words = running) =>
  (t) =>
    words((t - ms(iso)) / 1000);
const ago = (iso) => (t) => (t - ms(iso) < 1000 ? "just now" : `${age((t - ms(iso)) / 1000)} ago`);
const count = new Intl.NumberFormat("en").format;
const plural = (n, word, many = `${word}s`) => `${count(n)} ${n === 1 ? word : many}`;

function clock(iso) {
  const at = new Date(ms(iso));
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${date(iso)}, ${time.slice(0, 5)}`;
}

function date(iso) {
  return new Date(ms(iso)).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
}

function until(iso) {
  return (t) => {
    const s = (ms(iso) - t) / 1000;
    return s > 0.5 ? `in ${age(s)}` : "now";
  };
}

function timer(text, props) {
  return h("span", { class: "num", ...props, timer: text });
}

// database/failure.py's causes, for people
const CAUSES = {
  refused: "Connection refused",
  name_not_resolved: "Host name not found",
  no_socket: "No such socket",
  timeout: "No answer in time",
  unreachable: "Host unreachable",
  starting_up: "The server is starting up",
  stopping: "The server is shutting down",
  closed: "Connection closed while logging in",
  credentials: "User or password refused",
  no_database: "No such database",
  not_permitted: "The user may not connect",
  too_many_connections: "Too many connections",
  out_of_resources: "The server is out of resources",
  no_matching_host: "No host with the role that is needed",
  certificate: "Certificate not trusted",
  tls: "TLS failed",
  tls_refused: "The server speaks no TLS",
};

const address = (text) => String(text).replace(/\/(32|128)$/, "");

/** With a capital letter and a full stop. */
const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1).replace(/\.$/, "")}.`;

const words = (text) => String(text ?? "").replaceAll("_", " ");

// ------------------------------------------------------------------------------------------------------------ state

const model = {
  skew_ms: 0,
  start: null, // the newest snapshot of /health/events
  heard_at: 0,
  link: "away", // live | poll | away
  link_retry_at: 0,
  misses: 0,
  ended: null, // the last snapshot of a process that has said good-bye
  failure: null, // { facts, at, phase, started_at }: kept over the process's end
  jobs: { queues: null, running: null, failed: null, schedules: null, starts: null },
  jobs_link: "away",
  jobs_misses: 0, // streams of job events that brought nothing, in a row
  jobs_error: null,
  wants_token: false,
  whole: new Map(), // job id → the job with its trace
  busy: new Set(),
  toast: null,
};

const TOKEN = "orchestrator.token";
const token = () => sessionStorage.getItem(TOKEN) ?? "";

function tell(snapshot, isEnd) {
  const before = model.start;
  model.skew_ms = ms(snapshot.timestamp) - Date.now();
  model.heard_at = Date.now();
  model.start = snapshot;
  model.ended = isEnd ? snapshot : null;
  if (snapshot.failure) {
    model.failure = {
      facts: snapshot.failure,
      at: snapshot.timestamp,
      history: snapshot.history,
      started_at: snapshot.started_at,
    };
  } else if (snapshot.phase === "ready") model.failure = null;
  if (snapshot.phase === "ready" && before?.phase !== "ready") jobs.wake();
  schedule();
}

const isSameProcess = (a, b) => Math.abs(ms(a) - ms(b)) < 1000;

// ------------------------------------------------------------------------------------------------------------ feeds

const sleep = (seconds, signal) =>
  new Promise((resolve) => {
    const id = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(id), resolve()), { once: true });
  });

class HttpError extends Error {
  constructor(status, detail) {
    super(detail || `HTTP ${status}`);
    this.status = status;
  }
}

function headers(more) {
  return token() ? { ...more, Authorization: `Bearer ${token()}` } : more;
}

/** Read server-sent events by fetch (EventSource can send no Authorization). Returns when the stream ends. */
async function stream(url, onEvent) {
  const control = new AbortController();
  let quiet = setTimeout(() => control.abort(), SILENCE_S * 1000);
  try {
    const response = await fetch(url, {
      headers: headers({ Accept: "text/event-stream" }),
      cache: "no-store",
      signal: control.signal,
    });
    if (!response.ok) throw new HttpError(response.status);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(quiet);
      quiet = setTimeout(() => control.abort(), SILENCE_S * 1000);
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        let event = "message";
        let id;
        const data = [];
        for (const line of block.split(/\r?\n/)) {
          if (line.startsWith("event:")) event = line.slice(6).trim();
          else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
          else if (line.startsWith("id:")) id = line.slice(3).trim();
        }
        if (data.length) onEvent(event, JSON.parse(data.join("\n")), id);
      }
    }
  } finally {
    clearTimeout(quiet);
  }
}

async function ask(path, options = {}) {
  const response = await fetch(path, {
    cache: "no-store",
    ...options,
    headers: headers({ Accept: "application/json", ...options.headers }),
  });
  const isJson = (response.headers.get("Content-Type") ?? "").includes("json");
  const body = isJson ? await response.json() : null;
  if (!response.ok) throw new HttpError(response.status, body?.detail ?? body?.error);
  return body;
}

/** The start, for ever: the stream; where it brings nothing, polling; where nothing answers, tries that grow apart. */
async function followStart() {
  for (;;) {
    let told = false;
    let ended = false;
    const silent = setTimeout(() => {
      if (!told) pollOnce().then((answered) => answered && link("poll"));
    }, 4000);
    try {
      await stream("health/events", (event, data) => {
        told = true;
        ended = event === "end";
        model.misses = 0;
        link("live");
        if (event === "state" || event === "end") tell(data, event === "end");
      });
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof HttpError || error.name === "AbortError")) throw error;
    } finally {
      clearTimeout(silent);
    }
    if (!ended && !told && (await pollOnce())) {
      link("poll");
      for (let n = 0; n < 15 && (await sleep(POLL_S), await pollOnce()); n++);
      continue;
    }
    const wait_s = retry_s(model.misses);
    model.misses += 1;
    model.link_retry_at = Date.now() + wait_s * 1000;
    if (ended || model.misses > 1) link("away");
    await sleep(wait_s);
  }
}

async function pollOnce() {
  try {
    tell(await ask("health/events"), false);
    model.misses = 0;
    return true;
  } catch (error) {
    if (error instanceof TypeError || error instanceof HttpError) return false;
    throw error;
  }
}

function link(state) {
  model.link = state;
  schedule();
}

/** Everything behind the gate: read whole at a wake, and again when an event says that something changed. */
const jobs = {
  again: null,
  timer: 0,
  loading: false,
  following: false,
  isStale: false,
  slowAt: 0, // when schedules and starts were read

  wake() {
    model.wants_token = false;
    this.slowAt = 0;
    this.soon(0);
    if (!this.following) this.follow();
  },

  soon(wait_ms = JOBS_GAP_MS) {
    if (this.timer) return;
    this.timer = setTimeout(() => {
      this.timer = 0;
      this.load();
    }, wait_ms);
  },

  mayRead() {
    return model.start?.phase === "ready" && !(model.start.access?.token && !token()) && !model.wants_token;
  },

  async load() {
    clearTimeout(this.again);
    this.isStale = this.loading || document.hidden; // then it is read again: after this, or when somebody looks
    if (!this.mayRead() || this.isStale) return;
    this.loading = true;
    try {
      // What seldom changes is not asked for at every event.
      const isSlowDue = Date.now() - this.slowAt > 10_000;
      const [queues, runs, failed, schedules, starts] = await Promise.all([
        ask("api/queues"),
        ask("api/jobs?state=running&limit=20"),
        ask("api/jobs?state=failed&limit=10"),
        isSlowDue ? ask("api/schedules") : model.jobs.schedules,
        isSlowDue ? ask("api/starts?limit=12") : model.jobs.starts,
      ]);
      if (isSlowDue) this.slowAt = Date.now();
      if (!this.mayRead()) return; // the token was forgotten meanwhile
      model.jobs = { queues, running: runs, failed, schedules, starts };
      model.jobs_error = null;
    } catch (error) {
      if (!(error instanceof HttpError || error instanceof TypeError)) throw error;
      if (error.status === 401) refuseToken();
      else model.jobs_error = error instanceof TypeError ? "no answer" : error.message;
    } finally {
      this.loading = false;
      this.again = setTimeout(() => this.load(), (model.jobs_link === "live" ? JOBS_EVERY_S : POLL_S * 2) * 1000);
      if (this.isStale) this.soon();
      schedule();
    }
  },

  async follow() {
    this.following = true;
    let misses = 0;
    while (this.mayRead()) {
      try {
        await stream("api/events", (event) => {
          misses = model.jobs_misses = 0;
          model.jobs_link = "live";
          if (event !== "phase") this.soon();
        });
      } catch (error) {
        if (error.status === 401) refuseToken();
        else if (!(error instanceof TypeError || error instanceof HttpError || error.name === "AbortError"))
          throw error;
      }
      model.jobs_link = "away";
      schedule();
      misses += 1;
      model.jobs_misses = misses;
      await sleep(retry_s(misses));
    }
    this.following = false;
  },
};

/** The whole of a job, for its trace: read when somebody opens it. */
async function readJob(id) {
  if (model.whole.get(id)) return;
  model.whole.set(id, {});
  try {
    model.whole.set(id, await ask(`api/jobs/${encodeURIComponent(id)}`));
  } catch (error) {
    if (!(error instanceof HttpError || error instanceof TypeError)) throw error;
    model.whole.set(id, { problem: error.message });
  }
  schedule();
}

function refuseToken() {
  if (token()) sessionStorage.removeItem(TOKEN);
  model.wants_token = true;
  schedule();
}

// ---------------------------------------------------------------------------------------------------------- actions

function canAct() {
  const access = model.start?.access;
  if (access?.actions === "refused") return false;
  return access?.token ? Boolean(token()) : access?.actions === "open" || Boolean(token());
}

async function act(key, path, done) {
  if (model.busy.has(key)) return;
  model.busy.add(key);
  schedule();
  try {
    await ask(path, { method: "POST" });
    toast(done);
  } catch (error) {
    if (error.status === 401) {
      refuseToken();
      toast("The server refused the token.");
    } else toast(`Not done: ${error.message}`);
  } finally {
    model.busy.delete(key);
    jobs.slowAt = 0;
    jobs.soon(50);
    schedule();
  }
}

function button(key, label, path, done, about) {
  if (!canAct()) return null;
  const busy = model.busy.has(key);
  return h(
    "button",
    {
      type: "button",
      key,
      disabled: busy,
      "aria-label": `${label} ${about}`,
      on: { click: () => act(key, path, done) },
    },
    label,
  );
}

function toast(text) {
  model.toast = text;
  say(text);
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => {
    model.toast = null;
    schedule();
  }, 4000);
  schedule();
}

function copyButton(text) {
  if (!navigator.clipboard) return null;
  const copy = (event) => {
    navigator.clipboard.writeText(text).then(
      () => toast("Copied."),
      () => toast("The browser does not allow copying."),
    );
    event.preventDefault();
  };
  return h("button", { type: "button", class: "plain", "aria-label": "Copy the SQL", on: { click: copy } }, "Copy");
}

const dialog = document.getElementById("ask");

function askToken() {
  document.getElementById("ask-error").textContent = "";
  document.getElementById("ask-token").value = "";
  dialog.showModal();
}

document.getElementById("ask-no").addEventListener("click", () => dialog.close());
dialog.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = document.getElementById("ask-token").value.trim();
  sessionStorage.setItem(TOKEN, given);
  try {
    await ask("api/queues");
  } catch (error) {
    if (error.status === 401) {
      sessionStorage.removeItem(TOKEN);
      document.getElementById("ask-error").textContent = "The server refused this token.";
      document.getElementById("ask-token").select();
      return;
    }
  }
  dialog.close();
  jobs.wake();
  say("The token is accepted.");
  schedule();
});

function forgetToken() {
  sessionStorage.removeItem(TOKEN);
  model.jobs = { queues: null, running: null, failed: null, schedules: null, starts: null };
  jobs.slowAt = 0;
  schedule();
}

// ------------------------------------------------------------------------------------------------- what state it is

/** One word for colour and shape, the headline, and the lines below it. */
function describe() {
  const start = model.start;
  if (!start) {
    if (model.link === "away" && model.misses > 1)
      return { state: "warn", shape: "away", title: "No answer yet", sub: [retryLine()] };
    return { state: "idle", shape: "wait", title: "Looking…", sub: [] };
  }
  const { phase } = start;
  if (model.ended || model.link === "away") return describeAway(start);
  if (phase === "failed")
    return { state: "bad", shape: "failed", title: "The start failed", sub: [failedLine(model.failure)] };
  if (phase === "stopping" || phase === "stopped")
    return { state: "idle", shape: "away", title: "Stopping", sub: ["Requests in flight are finished first."] };
  if (phase === "ready") {
    const entered = start.history.at(-1).entered_at;
    return {
      state: "ok",
      shape: "ready",
      title: "Ready",
      sub: [h("span", null, "for ", timer(since(entered, age)), readyAfter(start))],
    };
  }
  if (phase === "connecting" && start.status === "unavailable") {
    return {
      state: "bad",
      shape: "lost",
      title: "The database is lost",
      sub: [
        h(
          "span",
          null,
          "for ",
          timer(since(start.history.at(-1).entered_at)),
          ". The job server waits for it and goes on by itself.",
        ),
      ],
    };
  }
  return { ...describeStart(start), state: waits(start) ? "warn" : "go", shape: "start", part: progress(start) };
}

/** Something outside has to happen before this start goes on. */
function waits(start) {
  return (
    (start.phase === "connecting" && start.checks.database?.status === "failed") ||
    (start.phase === "locking" && start.checks.lock)
  );
}

function readyAfter(start) {
  const first = start.history.findIndex((entry) => entry.phase === "ready");
  if (first < 0) return "";
  const took = start.history.slice(0, first).reduce((sum, entry) => sum + (entry.duration_s ?? 0), 0);
  const lost = start.history.filter((entry) => entry.phase === "connecting").length - 1;
  return `, after a start of ${span(took)}${lost > 0 && start.history[0].phase === "starting" ? `; the database was lost ${lost === 1 ? "once" : `${lost} times`} on the way` : ""}`;
}

function describeStart(start) {
  const entered = start.history.at(-1).entered_at;
  const took = timer(since(entered));
  switch (start.phase) {
    case "starting":
      return { title: "Starting", sub: [h("span", null, "Reading settings and migrations, ", took)] };
    case "connecting": {
      const check = start.checks.database;
      if (check?.status !== "failed") return { title: "Connecting to the database", sub: [took] };
      return {
        title: "Waiting for the database",
        sub: [h("span", null, "for ", took, check.attempt ? `, ${plural(check.attempt, "try", "tries")} so far` : "")],
      };
    }
    case "locking":
      return start.checks.lock
        ? {
            title: "Waiting for another migrator",
            sub: [h("span", null, "It holds the lock of this database. Waiting for ", took)],
          }
        : { title: "Taking the lock", sub: [took] };
    case "extensions":
      return { title: "Looking after extensions", sub: [took] };
    case "migrating": {
      const { applied, total } = start.migrations;
      return {
        title: "Applying migrations",
        sub: [
          h(
            "span",
            null,
            total ? `${count(applied)} of ${count(total)} applied, ` : "Reading files and ledger, ",
            "for ",
            took,
            leftover(start),
          ),
        ],
      };
    }
    default:
      return { title: "Launching the job server", sub: [took] };
  }
}

/** What the rest may take: the mean of what this process applied, once there is something to go by. */
function leftover(start) {
  const { items, migrations } = start;
  const left = migrations.total - migrations.applied;
  if (!items || items.timed < 5 || left < 5) return "";
  return `; about ${age(Math.max(1, (items.spent_s / items.timed) * left))} more at this pace`;
}

function describeAway(start) {
  if (model.failure && (start.failure || start.phase === "failed")) {
    return {
      state: "bad",
      shape: "failed",
      title: "The start failed",
      sub: [failedLine(model.failure), processLine()],
    };
  }
  const ended = model.ended !== null;
  const stopped = ended && ["stopping", "stopped"].includes(start.phase);
  return {
    state: stopped ? "idle" : "warn",
    shape: "away",
    title: stopped ? "Stopped" : ended ? "The process ended" : "Cut off",
    sub: [
      stopped
        ? "It was asked to stop, and did."
        : `No answer since ${new Date(model.heard_at).toLocaleTimeString("en-GB")}. What is shown below is from then.`,
      retryLine(),
    ],
  };
}

function failedLine(failure) {
  const facts = failure?.facts ?? {};
  const during = failure?.history?.filter((entry) => entry.phase !== "failed").at(-1)?.phase;
  const where = facts.migration ? h("b", null, facts.migration) : during ? `while ${during}` : "";
  return h(
    "span",
    null,
    where,
    where ? ", " : "",
    failure ? timer(() => ago(failure.at)(Date.now() + model.skew_ms)) : "",
  );
}

function processLine() {
  const code = model.failure?.facts.exit_code;
  return h("span", null, `The process has ended${code === undefined ? "" : ` with exit code ${code}`}. `, retryLine());
}

function retryLine() {
  return timer(() => {
    const s = (model.link_retry_at - Date.now()) / 1000;
    return s > 1.4 ? `Looking for it again in ${Math.ceil(s)} s.` : "Looking for it again every second.";
  });
}

/** 0…1 of the way to READY, for the ring. */
function progress(start) {
  const at = PHASES.indexOf(start.phase);
  if (at < 0) return 0.02;
  const { applied, total } = start.migrations;
  const inner = start.phase === "migrating" && total ? applied / total : 0.1;
  const weights = [0.08, 0.04, 0.04, 0.76, 0.08];
  return weights.slice(0, at).reduce((a, b) => a + b, 0.02) + weights[at] * inner;
}

// ------------------------------------------------------------------------------------------------------------ glyph

/** The shapes of the glyph, as [tag, attributes]: the headline draws them, and so does the favicon. */
function glyph(shape, part) {
  const ring = { cx: 16, cy: 16, r: 13, fill: "none", stroke: "currentColor", "stroke-width": 3 };
  const line = {
    fill: "none",
    stroke: "currentColor",
    "stroke-width": 3,
    "stroke-linecap": "round",
    "stroke-linejoin": "round",
  };
  const around = 2 * Math.PI * 13;
  switch (shape) {
    case "ready":
      return [
        ["circle", ring],
        ["path", { ...line, d: "M10 16.5l4.2 4.2L22 12.2" }],
      ];
    case "failed":
      return [
        ["circle", ring],
        ["path", { ...line, d: "M11.5 11.5l9 9m0-9l-9 9" }],
      ];
    case "lost":
      return [
        ["circle", { ...ring, "stroke-dasharray": "8.2 5.41" }],
        ["path", { ...line, d: "M16 9.5v8.5m0 4.4v.1" }],
      ];
    case "away":
      return [["circle", { ...ring, "stroke-dasharray": "2.2 4.607", "stroke-linecap": "round" }]];
    case "start":
      return [
        ["circle", { ...ring, "stroke-opacity": 0.18 }],
        [
          "circle",
          {
            ...ring,
            class: "arc",
            "stroke-linecap": "round",
            "stroke-dasharray": `${(around * part).toFixed(2)} ${around.toFixed(2)}`,
            transform: "rotate(-90 16 16)",
          },
        ],
        ["circle", { cx: 16, cy: 16, r: 4.5, fill: "currentColor" }],
      ];
    default:
      return [["circle", { ...ring, "stroke-opacity": 0.3 }]];
  }
}

function favicon(shape, part) {
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
  // Only our own shapes and numbers go into this markup, nothing that the server said.
  const inside = glyph(shape, part)
    .map(
      ([tag, attributes]) =>
        `<${tag} ${Object.entries(attributes)
          .map(([k, v]) => `${k}="${v}"`)
          .join(" ")}/>`,
    )
    .join("");
  const svg = `<svg xmlns="${SVG}" viewBox="0 0 32 32" color="${colour}">${inside}</svg>`;
  const url = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  const node = document.querySelector("link[rel=icon]");
  if (node.href !== url) node.href = url;
}

// ------------------------------------------------------------------------------------------------------- the chain

function chain(start) {
  const reached = new Map();
  for (const entry of start.history) {
    const known = reached.get(entry.phase) ?? { total_s: 0, entered_at: entry.entered_at };
    known.total_s += entry.duration_s ?? 0;
    known.now = entry.duration_s === null ? entry.entered_at : null;
    reached.set(entry.phase, known);
  }
  const isFailed = start.phase === "failed";
  const last = start.history.filter((entry) => PHASES.includes(entry.phase)).at(-1)?.phase;
  // A start that was sent back (a connection lost under way) has its later steps before it again.
  const at = ["ready", "stopping", "stopped"].includes(start.phase)
    ? PHASES.length
    : last === undefined
      ? -1
      : PHASES.indexOf(last);
  return h(
    "ol",
    { class: "chain" },
    PHASES.map((phase, index) => {
      const been = reached.get(phase);
      const state = index < at || (isFailed && index < at) ? "done" : index > at ? "next" : isFailed ? "failed" : "now";
      const warned = phase === "extensions" && state === "done" && start.checks.extensions?.status === "warning";
      const time =
        !been || state === "next" ? "" : been.now && state === "now" ? timer(since(been.now)) : span(been.total_s);
      const spoken = { done: "done", now: "running", failed: "failed", next: "to come" }[state];
      return h(
        "li",
        { key: phase, class: `${state}${warned ? " warned" : ""}`, "aria-current": state === "now" ? "step" : null },
        h("span", { class: "node", "aria-hidden": "true" }),
        h("h2", null, STEPS[phase], h("span", { class: "unseen" }, ` (${spoken})`)),
        h("span", { class: "clock" }, time),
        state === "next" ? null : h("div", { class: "detail" }, DETAILS[phase](start, state)),
      );
    }),
  );
}

const DETAILS = {
  connecting(start, state) {
    const check = start.checks.database;
    if (!check) return null;
    if (check.status === "failed" && state !== "done") {
      const where = check.hosts?.join(", ") ?? check.server;
      return [
        h(
          "p",
          null,
          h("b", null, CAUSES[check.cause] ?? words(check.cause)),
          where ? ` at ${where}` : "",
          check.sqlstate ? ` (SQLSTATE ${check.sqlstate})` : "",
        ),
        check.hint && h("p", { class: "hint" }, check.hint),
        check.next_try_at &&
          h(
            "p",
            null,
            "Next try ",
            timer(until(check.next_try_at)),
            ["refused", "no_socket", "name_not_resolved", "unreachable"].includes(check.cause)
              ? ", or as soon as something listens"
              : "",
          ),
      ];
    }
    if (check.server_version) {
      return h(
        "p",
        null,
        h("b", null, `PostgreSQL ${check.server_version}`),
        `, database ${check.database} as ${check.user}${check.standby ? ", a standby" : ""}`,
      );
    }
    return null;
  },

  locking(start, state) {
    const check = start.checks.lock;
    if (!check || state === "done")
      return state === "done" ? h("p", null, "This process is the only one that migrates.") : null;
    const holder = check.holder;
    if (!holder) return h("p", null, "Another session holds the lock; who, this user may not see.");
    const aged = check.checked_at;
    return [
      h("p", null, "Held by ", h("b", null, holder.application_name || "a session without a name"), "."),
      h(
        "dl",
        { class: "facts" },
        [
          [
            "Process",
            `pid ${holder.pid}${holder.client_address ? ` from ${address(holder.client_address)}` : ", by the local socket"}`,
          ],
          ["Connected", timer((t) => `for ${age(holder.session_age_s + (t - ms(aged)) / 1000)}`)],
          holder.state === "active" &&
            holder.statement_age_s !== null && [
              "Its statement runs",
              timer((t) => `for ${age(holder.statement_age_s + (t - ms(aged)) / 1000)}`),
            ],
          ["State", holder.state],
        ]
          .filter(Boolean)
          .map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
      ),
      h("p", null, "This start goes on as soon as the lock is free."),
    ];
  },

  extensions(start) {
    const check = start.checks.extensions;
    if (!check) return null;
    const installed = Object.entries(check.installed ?? {});
    const missing = check.missing ?? [];
    if (!installed.length && !missing.length) return h("p", null, "None asked for.");
    const reasons = {
      not_permitted: "this user may not create it",
      not_available: "the server has no files of it",
      standby: "the server is a standby",
      failed: "the server refused",
    };
    return h(
      "ul",
      { class: "lines" },
      installed.length
        ? h(
            "li",
            { key: "installed" },
            h(
              "span",
              null,
              installed.map(([name, version], n) => [n ? ", " : "", h("b", null, name), ` ${version}`]),
            ),
          )
        : null,
      missing.map((one) =>
        h(
          "li",
          { key: `m-${one.extension}` },
          h("b", null, one.extension),
          h("span", { class: "warn" }, `missing: ${reasons[one.reason] ?? words(one.reason)}`),
          one.reason === "standby" ? null : h("span", { class: "soft" }, "The database’s owner runs, once:"),
          sql(one.sql),
        ),
      ),
    );
  },

  migrating(start, state) {
    const { migrations, items } = start;
    if (!migrations.total) return null;
    const done =
      state === "now" // the headline says it
        ? null
        : h(
            "p",
            null,
            h("b", null, `${count(migrations.applied)} of ${count(migrations.total)}`),
            " applied",
            items?.timed ? `, ${count(items.timed)} by this start` : "",
          );
    return [
      done,
      items?.rows.length ? sky(items) : null,
      state === "now" && migrations.current ? current(start) : null,
      items?.rows.length ? listing(items) : null,
    ];
  },

  launching() {
    return null;
  },
};

function sql(text) {
  return h("div", { class: "sql" }, h("pre", null, h("code", null, text)), copyButton(text));
}

/** Every migration as a bar: how high says how long (by the logarithm), how dark what state. */
function sky(items) {
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

function current(start) {
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

function listing(items) {
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

// ---------------------------------------------------------------------------------------------------------- failure

function failurePanel({ facts, history }) {
  const message = facts.reason ?? facts.error;
  const where = [
    facts.file && h("code", null, facts.file),
    facts.line && h("span", null, `line ${facts.line}${facts.column ? `, column ${facts.column}` : ""}`),
    facts.statement &&
      h("span", null, `statement ${facts.statement}${facts.statement_kind ? `, ${facts.statement_kind}` : ""}`),
  ];
  const rows = [
    ["SQLSTATE", facts.sqlstate],
    ["Detail", facts.detail],
    ["Hint", facts.hint],
    ["Context", facts.context],
    ["Table", facts.table],
    ["Constraint", facts.constraint],
    ["Hosts", facts.hosts?.join?.(", ")],
    ["Cause", facts.cause && words(facts.cause)],
    [
      "Done of the file",
      facts.statements_done !== undefined && `${plural(facts.statements_done, "statement")}, which stay`,
    ],
    ["Applied before", facts.applied_before?.length ? plural(facts.applied_before.length, "migration") : null],
    ["Refused", facts.refused?.map?.((one) => `${one.migration} (${words(one.kind)})`).join(", ")],
    ["Holder", facts.holder && `pid ${facts.holder.pid}, ${facts.holder.application_name}`],
    ["Phase", history?.filter((entry) => entry.phase !== "failed").at(-1)?.phase],
  ].filter(([, value]) => value !== undefined && value !== null && value !== false && value !== "");
  return [
    h("div", null, h("h2", null, message), where.some(Boolean) ? h("p", { class: "where" }, where) : null),
    facts.excerpt ? excerpt(facts) : null,
    facts.remedy
      ? h(
          "div",
          { class: "remedy" },
          h("h3", null, "What to do"),
          h("p", null, facts.remedy),
          facts.restart_helps === false ? h("p", null, "Starting it again as it is will end the same way.") : null,
        )
      : null,
    rows.length
      ? h(
          "div",
          null,
          h(
            "dl",
            { class: "facts" },
            rows.map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
          ),
        )
      : null,
  ];
}

/** The line of the file, and the word at the caret marked. */
function excerpt(facts) {
  const lines = String(facts.excerpt).split("\n");
  const caret = lines.length > 1 && /^\s*\^$/.test(lines.at(-1)) ? lines.pop().length - 1 : -1;
  const text = lines.at(-1);
  // At the beginning of the statement the server named no place in it: then the statement is meant.
  const isAll = caret >= 0 && text.slice(0, caret).trim() === "";
  const word = isAll
    ? text.slice(caret)
    : caret >= 0
      ? (/^("[^"]*"|'[^']*'|[\w$]+|.)/.exec(text.slice(caret))?.[0] ?? " ")
      : "";
  return h(
    "div",
    { class: "excerpt", tabindex: 0, role: "region", "aria-label": "The statement in the file" },
    h("code", { class: "line", "aria-hidden": "true" }, facts.line ?? ""),
    h(
      "code",
      null,
      caret < 0
        ? lines.join("\n")
        : [text.slice(0, caret), h("mark", { class: isAll ? "all" : null }, word), text.slice(caret + word.length)],
    ),
  );
}

// ------------------------------------------------------------------------------------------------------------ ready

function warnings(start) {
  const shown = start.warnings.filter((one) => one.event !== "extension.missing" || start.phase === "ready");
  if (!shown.length) return null;
  const titles = { "extension.missing": (w) => `The extension ${w.extension} is missing` };
  return h(
    "ul",
    { class: "notes", "aria-label": "Warnings", key: "warnings" },
    shown.slice(0, 8).map((one, n) => {
      const name = one.migration ?? one.files?.join?.(", ") ?? "";
      const title = titles[one.event]?.(one) ?? [
        sentence(words(one.event.split(".").at(-1))).slice(0, -1),
        name ? ": " : "",
        name,
      ];
      return h(
        "li",
        { key: n },
        h("b", null, title),
        one.decision ? h("p", null, sentence(one.decision)) : null,
        h("p", null, one.remedy ?? one.hint ?? ""),
        one.sql ? sql(one.sql) : null,
      );
    }),
    shown.length > 8 ? h("li", { key: "more" }, `${shown.length - 8} more on /health`) : null,
  );
}

function part(key, title, aside, ...body) {
  return h(
    "section",
    { class: "part", key, "aria-labelledby": `h-${key}` },
    h("div", { class: "head" }, h("h2", { id: `h-${key}` }, title), aside ? h("p", null, aside) : null),
    body,
  );
}

const listOf = (body, name) => (Array.isArray(body) ? body : (body?.[name] ?? body?.items ?? []));

function ready(start) {
  if ((start.access?.token && !token()) || model.wants_token) {
    return h(
      "section",
      { class: "gate", key: "gate", "aria-label": "Jobs" },
      h("p", null, "Queues, jobs and schedules are shown to those who have the server’s API token."),
      h("button", { type: "button", class: "strong", on: { click: askToken } }, "Enter the token"),
    );
  }
  const { queues, running: runs, failed, schedules, starts } = model.jobs;
  if (!queues)
    return model.jobs_error
      ? h("p", { class: "note", key: "jobs-error" }, `The jobs cannot be read: ${model.jobs_error}`)
      : null;
  return [
    model.jobs_error
      ? h("p", { class: "note", key: "jobs-error" }, `The jobs are not up to date: ${model.jobs_error}`)
      : null,
    start.access?.actions === "refused"
      ? h(
          "p",
          { class: "note", key: "refused" },
          h("b", null, "To look at only. "),
          "The port is open beyond this machine and no API_TOKEN is set: the server refuses what changes something.",
        )
      : null,
    queuesPart(queues),
    runningPart(listOf(runs, "jobs")),
    failedPart(listOf(failed, "jobs")),
    schedulesPart(listOf(schedules, "schedules")),
    startsPart(listOf(starts, "starts")),
  ];
}

function queuesPart({ queues, workers }) {
  const alive = (workers ?? []).filter((one) => one.is_alive !== false);
  const slots = alive.reduce((sum, one) => sum + (one.concurrency ?? 0), 0);
  return part(
    "queues",
    "Queues",
    workers
      ? alive.length
        ? `${plural(alive.length, "worker")}, ${plural(slots, "slot")}`
        : h("span", { class: queues?.some((one) => one.counts.queued) ? "bad" : null }, "No worker is there")
      : null,
    queues?.length
      ? h("div", { class: "cards" }, queues.map(card))
      : h("p", { class: "empty" }, "No queue has had a job yet."),
  );
}

function card({ name, counts, oldest_queued_s: oldest_s, throughput_per_s: rate, ended_per_minute: minutes }) {
  const shown = [
    ["queued", "waiting"],
    ["running", "running"],
    ["scheduled", "later"],
    ["failed", "failed"],
  ];
  const rated = !rate
    ? "idle for a minute"
    : rate >= 1
      ? `${count(Math.round(rate))} a second`
      : `${count(Math.round(rate * 60))} a minute`;
  return h(
    "article",
    { class: "card", key: name, "aria-label": `Queue ${name}` },
    h("h3", null, name),
    h(
      "dl",
      { class: "counts" },
      shown.map(([state, label]) =>
        h(
          "div",
          { class: !counts[state] ? "zero" : state === "failed" ? "bad" : "" },
          h("dt", null, label),
          h("dd", null, count(counts[state] ?? 0)),
        ),
      ),
    ),
    h(
      "p",
      { class: "more" },
      h("span", null, oldest_s === null || oldest_s === undefined ? "nothing waits" : `oldest waits ${age(oldest_s)}`),
      h("span", null, rated),
    ),
    spark(minutes ?? []),
  );
}

/** Jobs that ended in each minute, as a line on its own area. */
function spark(minutes) {
  const frame = { class: "spark", viewBox: "0 0 100 48", preserveAspectRatio: "none" };
  const most = Math.max(1, ...minutes);
  const points = (minutes.length > 1 ? minutes : [0, 0]).map(
    (n, i, all) => `${((100 * i) / (all.length - 1)).toFixed(2)} ${(46 - (42 * n) / most).toFixed(2)}`,
  );
  const total = minutes.reduce((sum, n) => sum + n, 0);
  const label = `${plural(total, "job")} ended in ${minutes.length} minutes, at most ${count(Math.max(0, ...minutes))} in one`;
  return h(
    "svg",
    { ...frame, role: "img", "aria-label": label },
    h("title", null, label),
    h("path", { class: "area", d: `M0 48 L${points.join(" L")} L100 48 Z` }),
    h("path", { class: "line", d: `M${points.join(" L")}` }),
  );
}

function jobTitle(job) {
  return h(
    "div",
    { class: "title" },
    h("b", null, job.name),
    h("span", { class: "id" }, `#${job.id}`),
    job.attempt > 1 ? h("span", { class: "id" }, `attempt ${job.attempt} of ${job.max_attempts}`) : null,
  );
}

function runningPart(list) {
  return part(
    "running",
    "Running",
    list.length ? plural(list.length, "job") : null,
    list.length
      ? h(
          "ul",
          { class: "list" },
          list.map((job) => {
            const { done, total, note } = job.progress ?? {};
            const percent = total ? Math.min(100, (100 * done) / total) : null;
            return h(
              "li",
              { key: job.id },
              h("div", { class: "what" }, jobTitle(job), note ? h("p", { class: "said" }, note) : null),
              h(
                "div",
                { class: "acts" },
                percent === null ? null : h("span", null, `${count(done)} of ${count(total)}`),
                job.started_at ? timer(since(job.started_at)) : null,
                job.cancel_requested
                  ? h("span", null, "is being cancelled")
                  : button(
                      `cancel-${job.id}`,
                      "Cancel",
                      `api/jobs/${encodeURIComponent(job.id)}/cancel`,
                      `Job #${job.id} is cancelled.`,
                      `${job.name} #${job.id}`,
                    ),
              ),
              h(
                "div",
                { class: "wide" },
                h(
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
                ),
              ),
            );
          }),
        )
      : h("p", { class: "empty" }, "Nothing runs."),
  );
}

function failedPart(list) {
  return part(
    "failed",
    "Recent failures",
    null,
    list.length
      ? h(
          "ul",
          { class: "list" },
          list.map((job) => {
            const whole = model.whole.get(job.id);
            const lines = whole?.error?.trace;
            const trace =
              whole?.problem ??
              (Array.isArray(lines) ? lines.join("\n") : lines) ??
              (whole?.id ? "There is no trace." : "Reading…");
            const about = `${job.name} #${job.id}`;
            return h(
              "li",
              { key: job.id },
              h(
                "div",
                { class: "what" },
                jobTitle(job),
                h(
                  "p",
                  { class: "said" },
                  h("span", { class: "bad" }, whole?.error?.type ? `${whole.error.type}: ` : ""),
                  job.error_message ?? "without a message",
                ),
              ),
              h(
                "div",
                { class: "acts" },
                job.finished_at ? timer(ago(job.finished_at)) : null,
                button(
                  `retry-${job.id}`,
                  "Retry",
                  `api/jobs/${encodeURIComponent(job.id)}/retry`,
                  `Job #${job.id} is queued again.`,
                  about,
                ),
              ),
              h(
                "details",
                { class: "wide", on: { toggle: (event) => event.target.open && readJob(job.id) } },
                h("summary", null, "Trace"),
                h("pre", { tabindex: 0, role: "region", "aria-label": `Trace of ${about}` }, h("code", null, trace)),
              ),
            );
          }),
        )
      : h("p", { class: "empty" }, "No job has failed lately."),
  );
}

function schedulesPart(list) {
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

function startsPart(list) {
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

// ------------------------------------------------------------------------------------------------------------- draw

function bar(start) {
  const asked = Boolean(start?.access?.token) && start?.phase === "ready";
  const isJobless = start?.phase === "ready" && model.jobs.queues && model.jobs_misses > 2;
  const linked = {
    live: isJobless ? `Live; jobs every ${2 * POLL_S} s` : "Live",
    poll: `Asking every ${POLL_S} s`,
    away: model.ended ? "Ended" : model.start || model.misses > 1 ? "Cut off" : "Connecting",
  }[model.link];
  return [
    h("span", { class: "name" }, "orchestrator", start ? h("small", null, start.version) : null),
    h(
      "span",
      {
        class: "link",
        "data-link": model.ended ? "ended" : isJobless && model.link === "live" ? "poll" : model.link,
        title: model.link === "poll" ? "The event stream brings nothing (a proxy that buffers?)" : null,
      },
      linked,
    ),
    asked && token()
      ? h("button", { type: "button", class: "plain", key: "forget", on: { click: forgetToken } }, "Forget the token")
      : null,
  ];
}

function content(shown) {
  const { start } = model;
  const hero = h(
    "section",
    { class: "hero", key: "hero", "aria-label": "State" },
    h(
      "svg",
      { class: "glyph", viewBox: "0 0 32 32", "aria-hidden": "true" },
      glyph(shown.shape, shown.part ?? 0).map(([tag, attributes]) => h(tag, attributes)),
    ),
    h("h1", null, shown.title),
    shown.sub.filter(Boolean).map((line) => h("p", { class: "sub" }, line)),
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
    hero,
    panel,
    warnings(start),
    isReady ? ready(start) : null,
    isReady
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
    isReady ? h("a", { href: "openapi.json" }, "/openapi.json") : null,
    isReady ? h("a", { href: "metrics" }, "/metrics") : null,
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
  const shown = describe();
  const { start } = model;
  document.documentElement.dataset.state = shown.state;
  document.body.classList.toggle("wide", start?.phase === "ready" && Boolean(model.jobs.queues));
  patch(document.getElementById("bar"), bar(start).filter(Boolean));
  patch(document.getElementById("main"), content(shown).flat(Infinity).filter(Boolean));
  patch(document.getElementById("foot"), foot(start).filter(Boolean));
  drawToast();
  const of =
    start?.phase === "migrating" && start.migrations.total
      ? ` ${start.migrations.applied}/${start.migrations.total}`
      : "";
  const title = `${shown.title}${of} · orchestrator`;
  if (document.title !== title) document.title = title;
  favicon(shown.shape, shown.part ?? 0);
  speak(shown, start);
}

function drawToast() {
  const old = document.querySelector(".toast");
  if (!model.toast) old?.remove();
  else {
    const node = old ?? document.body.appendChild(Object.assign(document.createElement("div"), { className: "toast" }));
    node.setAttribute("aria-hidden", "true"); // the live region has said it
    node.textContent = model.toast;
  }
}

function say(text) {
  const node = document.getElementById("said");
  if (node.textContent !== text) node.textContent = text;
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
followStart();
