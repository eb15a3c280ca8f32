// A chart of what ended in each minute: with its scale, its span, and the value under the pointer or the arrow keys.

import { h } from "./dom.js";
import { changed } from "./model.js";
import { count, plural } from "./words.js";

const HEIGHT = 48;
const chosen = new Map(); // chart → the minute that is looked at

/** A round number at or above n, for the top of the scale. */
function top(n) {
  const size = 10 ** Math.floor(Math.log10(Math.max(1, n)));
  return [1, 2, 5, 10].map((step) => step * size).find((one) => one >= n);
}

/** `minutes` are counts, oldest first; the last one is of the minute that runs. */
export function chart(key, minutes, what) {
  const most = top(Math.max(1, ...minutes));
  const total = minutes.reduce((sum, n) => sum + n, 0);
  const at = chosen.get(key);
  const ago = (n) => (n === minutes.length - 1 ? "in the last minute" : `${minutes.length - 1 - n} min ago`);
  const shown =
    at === undefined || at >= minutes.length ? `${plural(total, what)} in ${minutes.length} min` : `${plural(minutes[at], what)} ${ago(at)}`;
  const choose = (n) => {
    if (chosen.get(key) === n) return;
    if (n === undefined) chosen.delete(key);
    else chosen.set(key, n);
    changed();
  };
  const move = (event) => {
    const box = event.currentTarget?.getBoundingClientRect?.() ?? event.target.closest("svg").getBoundingClientRect();
    const n = Math.floor(((event.clientX - box.left) / box.width) * minutes.length);
    choose(Math.max(0, Math.min(minutes.length - 1, n)));
  };
  const press = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(minutes.length - 1, (at ?? minutes.length) + step)));
  };
  const label = `${plural(total, what)} in ${minutes.length} minutes, at most ${count(Math.max(0, ...minutes))} in one`;
  return h(
    "figure",
    { class: "chart", key: `chart-${key}` },
    h("figcaption", null, h("span", null, shown), h("span", { class: "scale" }, count(most))),
    h(
      "svg",
      {
        viewBox: `0 0 ${minutes.length * 10} ${HEIGHT}`,
        preserveAspectRatio: "none",
        role: "img",
        tabindex: 0,
        "aria-label": at === undefined ? label : shown,
        on: { pointermove: move, pointerleave: () => choose(undefined), keydown: press, blur: () => choose(undefined) },
      },
      h("line", { x1: 0, x2: minutes.length * 10, y1: 0.5, y2: 0.5, class: "grid" }),
      minutes.map((n, i) => {
        const tall = n ? Math.max(1.5, ((HEIGHT - 1) * n) / most) : 0.75;
        const kind = i === at ? "chosen" : n ? "" : "none";
        return h("rect", { class: kind, x: i * 10 + 1, y: (HEIGHT - tall).toFixed(2), width: 8, height: tall.toFixed(2) });
      }),
    ),
    h("p", { class: "span", "aria-hidden": "true" }, h("span", null, `${minutes.length} min ago`), h("span", null, "now")),
  );
}
