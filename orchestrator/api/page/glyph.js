// The shapes of the state, drawn beside the headline and as the favicon.

import { SVG } from "./dom.js";

/** The shapes of the glyph, as [tag, attributes]: the headline draws them, and so does the favicon. */
export function glyph(shape, part) {
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

/** The state's shape and colour; the first letter of the instance's name, and a dot where jobs have failed. */
export function favicon(shape, part, { name, fails }) {
  const letter = /^[\p{L}\p{N}]/u.exec(name)?.[0].toUpperCase();
  const bad = getComputedStyle(document.documentElement).getPropertyValue("--bad").trim();
  const more = [
    ...(letter && shape === "ready"
      ? [`<text x="16" y="22" font-family="sans-serif" font-weight="700" font-size="17" text-anchor="middle" fill="currentColor">${letter}</text>`]
      : []),
    ...(fails ? [`<circle cx="25" cy="7" r="7" fill="${bad}"/>`] : []),
  ];
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
  // Only our own shapes, numbers and one letter go into this markup, nothing else that the server said.
  const inside = glyph(shape, part)
    .slice(0, letter && shape === "ready" ? 1 : undefined)
    .map(
      ([tag, attributes]) =>
        `<${tag} ${Object.entries(attributes)
          .map(([k, v]) => `${k}="${v}"`)
          .join(" ")}/>`,
    )
    .join("");
  const svg = `<svg xmlns="${SVG}" viewBox="0 0 32 32" color="${colour}">${inside}${more.join("")}</svg>`;
  const url = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  const node = document.querySelector("link[rel=icon]");
  if (node.href !== url) node.href = url;
}
