// Asking the API, following its events, and writing numbers. Strings from the wire are only ever text nodes.

export { h, html, render, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";

export async function ask(path, options) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  if (answer.status === 401) location.href = "/login";
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error || `the server answered ${answer.status}`);
  return said;
}

export const post = (path, value) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) });

// Server-sent events. `on` gets {events, skipped, open}, at most four times a second however many come.
export function follow(query, on) {
  let events = [], skipped = 0, timer = 0;
  const source = new EventSource(`/api/v1/events?${query}`);
  const tell = (more = {}) => {
    timer = 0;
    on({ events, skipped, ...more });
    events = [];
    skipped = 0;
  };
  const soon = () => { timer ||= setTimeout(tell, 250); };
  source.onmessage = (message) => {
    const event = parsed(message.data);
    if (event && event.flow_id) events.push(event);
    if (events.length > 400) events.splice(0, events.length - 400);
    soon();
  };
  source.addEventListener("skipped", (message) => { skipped += Number(message.data) || 0; soon(); });
  source.onopen = () => tell({ open: true });
  source.onerror = () => tell({ open: false });
  return () => { clearTimeout(timer); source.close(); };
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return null; }
}

// A search line such as `label:web -label:dns 10.0.0.0/8 unknown:true` is a list of terms. Two terms of one field
// mean OR, a minus means NOT, other words are looked for everywhere.
const FIELDS = ["label", "ip", "src_ip", "dest_ip", "port", "proto", "text", "unknown", "final", "min_probability", "max_probability"];
const SHORT = { src: "src_ip", dst: "dest_ip", dest: "dest_ip", "p>": "min_probability", "p<": "max_probability" };
const IS_ADDRESS = /^(\d{1,3}(\.\d{1,3}){3}|[0-9a-f]*:[0-9a-f:.]+)(\/\d+)?$/i;

export function termsOf(line) {
  const words = line.match(/-?[\w.]*[:<>]?"[^"]*"|\S+/g) || [];
  return words.map((word) => {
    const not = word.startsWith("-") && word.length > 1;
    const rest = not ? word.slice(1) : word;
    if (IS_ADDRESS.test(rest)) return { field: "ip", value: rest, not };
    const found = rest.match(/^(p[<>]|[a-z_]+:)(.+)$/);
    const name = found && (SHORT[found[1].replace(":", "")] || found[1].replace(":", ""));
    if (found && FIELDS.includes(name)) return { field: name, value: unquoted(found[2]), not };
    return { field: "text", value: unquoted(rest), not };
  });
}

const unquoted = (text) => text.replace(/^"(.*)"$/, "$1");
const quoted = (text) => (/[\s"]/.test(text) ? `"${text.replaceAll('"', "")}"` : text);

export function lineOf(terms) {
  return terms
    .map(({ field, value, not }) => {
      const bare = (field === "text" && !/[:<>]/.test(value)) || (field === "ip" && IS_ADDRESS.test(value));
      return `${not ? "-" : ""}${bare ? "" : `${field}:`}${quoted(value)}`;
    })
    .join(" ");
}

export function queryOf(terms, more = {}) {
  const query = new URLSearchParams(more);
  for (const { field, value, not } of terms) query.append(not ? `not.${field}` : field, value);
  return query;
}

export const sameTerm = (a, b) => a.field === b.field && a.value === b.value && a.not === b.not;

const whole = new Intl.NumberFormat("en-US");
export const count = (n) => (n < 100000 ? whole.format(n) : short(n));
export function scaled(n) {
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (n >= limit) return [(n / limit).toPrecision(3), unit];
  }
  return [n < 10 && n % 1 ? n.toFixed(1) : String(Math.round(n)), ""];
}
export const short = (n) => scaled(n).join("");
export function bytes(n) {
  for (const [limit, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (n >= limit) return `${(n / limit).toPrecision(3)} ${unit}`;
  }
  return `${Math.round(n)} B`;
}
export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
export function duration(us) {
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${(us / 1000).toPrecision(3)} ms`;
  if (us < 120e6) return `${(us / 1e6).toPrecision(3)} s`;
  const s = us / 1e6;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}
export const clock = (timestamp) => String(timestamp).slice(11, 19);
export const endpoint = (ip, port) => (port === undefined ? ip : ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`);

// What an event says its flow is.
export function said(event) {
  const ours = event.netcls || {};
  if (ours.label !== undefined) return { label: ours.label, probability: ours.probability, unknown: ours.unknown, nearest: ours.nearest };
  if (ours.labels) return { label: ours.labels.map((each) => each.label).join(", ") || "none", probability: ours.labels[0]?.probability };
  if (ours.number) return { label: `${ours.number.name} ${ours.number.estimate} ${ours.number.unit}` };
  return { label: "no answer" };
}
