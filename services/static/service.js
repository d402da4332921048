// What the page does beside htmx; without it every page works, and is loaded again by hand.
"use strict";

// Progress arrives as it happens: each event of the stream asks htmx for the part of the page that shows it.
const streams = { source: null, path: "" };

function follow() {
  // Not behind another tab: browsers keep few connections to one server, and an open stream takes one.
  const part = document.hidden ? null : document.querySelector("[data-events]");
  const path = part ? part.dataset.events : "";
  if (path === streams.path) return;
  if (streams.source) streams.source.close();
  streams.path = path;
  streams.source = path ? new EventSource(path) : null;
  if (!streams.source) return;
  const tell = () => {
    const shown = document.querySelector("[data-events]");
    if (shown) shown.dispatchEvent(new Event("happened"));
  };
  streams.source.addEventListener("progress", tell);
  streams.source.addEventListener("happened", tell);
  streams.source.addEventListener("end", () => { streams.source.close(); tell(); });
}

// The numbers of the lines beside a study that is written, and its height, follow the text.
const LEAST_LINES = 16;
const MOST_LINES = 2000;

function number(text) {
  const gutter = document.getElementById("gutter");
  const lines = Math.max(LEAST_LINES, text.value.split("\n").length);
  text.rows = lines;
  if (!gutter || gutter.childElementCount === lines || lines > MOST_LINES) return;
  gutter.replaceChildren(...Array.from({ length: lines }, (_, index) => {
    const line = document.createElement("li");
    line.textContent = index + 1;
    return line;
  }));
}

function show(text, line) {
  const before = text.value.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
  const end = text.value.indexOf("\n", before);
  text.focus();
  text.setSelectionRange(before, end < 0 ? text.value.length : end);
  const place = document.getElementById("gutter").children[line - 1];
  if (place) place.scrollIntoView({ block: "center" });
}

function edit() {
  const text = document.getElementById("yaml");
  if (!text) return;
  const first = text.value;
  text.addEventListener("input", () => number(text));
  number(text);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-line]");
    if (!link) return;
    event.preventDefault();
    show(text, Number(link.dataset.line));
  });
  const load = document.querySelector("[data-replaces]");
  if (load) load.addEventListener("click", (event) => {
    const lost = text.value.trim() && text.value !== first;
    if (lost && !window.confirm("Replace what you have written?")) event.preventDefault();
  });
}

document.addEventListener("DOMContentLoaded", () => { follow(); edit(); });
document.addEventListener("htmx:afterSettle", follow);
document.addEventListener("visibilitychange", follow);
