// Times, numbers and names, as a person reads them.

import { h } from "./dom.js";
import { ms } from "./model.js";

export function span(seconds) {
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
export function running(seconds) {
  const s = Math.max(0, seconds);
  return s < 10 ? `${(Math.floor(s * 10) / 10).toFixed(1)} s` : span(Math.floor(s));
}

/** A span for ages: in whole units, and minutes without their seconds. */
export function age(seconds) {
  const s = Math.round(seconds);
  if (s < 1) return "just now";
  if (s < 60) return `${s} s`;
  return s < 600 ? `${Math.floor(s / 60)} min` : span(s);
}

export const since =
  (iso, words = running) =>
  (t) =>
    words((t - ms(iso)) / 1000);

export const ago = (iso) => (t) => (t - ms(iso) < 1000 ? "just now" : `${age((t - ms(iso)) / 1000)} ago`);

export const count = new Intl.NumberFormat("en").format;

export const plural = (n, word, many = `${word}s`) => `${count(n)} ${n === 1 ? word : many}`;

export function clock(iso) {
  const at = new Date(ms(iso));
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${date(iso)}, ${time.slice(0, 5)}`;
}

export function date(iso) {
  return new Date(ms(iso)).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
}

export function until(iso) {
  return (t) => {
    const s = (ms(iso) - t) / 1000;
    return s > 0.5 ? `in ${age(s)}` : "now";
  };
}

export function timer(text, props) {
  return h("span", { class: "num", ...props, timer: text });
}

// database/connect_errors.py's causes, for people
export const CAUSES = {
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

export const address = (text) => String(text).replace(/\/(32|128)$/, "");

/** With a capital letter and a full stop. */
export const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1).replace(/\.$/, "")}.`;

export const words = (text) => String(text ?? "").replaceAll("_", " ");
