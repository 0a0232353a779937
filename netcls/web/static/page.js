// netcls in a browser: what is on the wire, what is uncertain, the model, the appliance's health.

import { ask, bytes, count, duration, html, percent, render, scaled, short, termsOf, lineOf, useEffect, useMemo, useState } from "./lib.js";
import { COLOURS, Stacked } from "./chart.js";
import { FlowTable } from "./table.js";
import { FlowDialog } from "./flow.js";
import { HealthView, lossesOf, ModelView, UploadView } from "./views.js";

const TABS = [["traffic", "Traffic"], ["uncertain", "Uncertain"], ["model", "Model"], ["health", "Health"], ["upload", "Upload"]];
const WINDOWS = [[900, "15 min"], [3600, "1 h"], [86400, "24 h"], [604800, "7 days"]];

// #traffic?q=label:web&flow=123: where one is stands in the address, so that it can be sent to a colleague.
function placeOf(hash) {
  const [tab, rest = ""] = hash.replace(/^#/, "").split("?");
  const more = new URLSearchParams(rest);
  return { tab: TABS.some(([name]) => name === tab) ? tab : "traffic", terms: termsOf(more.get("q") || ""), flow: /^\d{1,16}$/.test(more.get("flow") || "") ? more.get("flow") : null };
}

function go({ tab, terms, flow }, quietly) {
  const more = new URLSearchParams();
  if (terms.length) more.set("q", lineOf(terms));
  if (flow) more.set("flow", flow);
  const hash = `#${tab}${more.size ? `?${more}` : ""}`;
  if (hash === location.hash) return;
  history[quietly ? "replaceState" : "pushState"](null, "", hash);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

function Page() {
  const [place, setPlace] = useState(placeOf(location.hash));
  const [status, setStatus] = useState(null);
  const [error, setError] = useState("");
  const [labels, setLabels] = useState([]);
  useEffect(() => {
    const look = () => setPlace(placeOf(location.hash));
    addEventListener("hashchange", look);
    addEventListener("popstate", look);
    ask("/api/v1/model").then((model) => setLabels(model.labels)).catch(() => {});
    const load = () => { if (!document.hidden) ask("/api/v1/status").then((found) => { setStatus(found); setError(""); }).catch((failure) => setError(failure.message)); };
    load();
    const again = setInterval(load, 2000);
    return () => clearInterval(again);
  }, []);
  useEffect(() => { document.title = `${TABS.find(([name]) => name === place.tab)[1]} · netcls`; }, [place.tab]);
  const setTerms = (terms) => go({ ...place, terms }, true);
  const open = (flow) => go({ ...place, flow: String(flow) });
  const close = () => { if (place.flow) go({ ...place, flow: null }); };
  const view = { traffic: TrafficView, uncertain: UncertainView, model: ModelView, health: HealthView, upload: UploadView }[place.tab];
  return html`
    <header class="top"><div>
      <a class="brand" href="#traffic"><span class="mark" aria-hidden="true"></span>netcls</a>
      <nav aria-label="Views"><ul>${TABS.map(([name, text]) => html`<li key=${name}><a href=${`#${name}`} aria-current=${place.tab === name ? "page" : undefined}>${text}</a></li>`)}</ul></nav>
      <${Pulse} status=${status} error=${error} />
    </div></header>
    <main id="main" tabindex="-1"><h1 class="sr">${TABS.find(([name]) => name === place.tab)[1]}</h1>
      <${view} ...${{ terms: place.terms, setTerms, open, status, error }} />
    </main>
    ${place.flow && html`<${FlowDialog} key=${place.flow} id=${place.flow} close=${close} labels=${labels} />`}`;
}

function Pulse({ status, error }) {
  if (error) return html`<div class="pulse"><a class="alarm" href="#health"><i class="dot ill"></i>no answer</a></div>`;
  if (!status) return html`<div class="pulse"></div>`;
  const losses = lossesOf(status), n = losses.reduce((sum, [, lost]) => sum + lost, 0);
  const down = Object.entries(status.sinks || {}).filter(([, sink]) => sink.up === false).map(([name]) => name);
  const waiting = Object.values(status.queues || {}).reduce((sum, queue) => sum + (queue.depth || 0), 0);
  const p95 = status.latency_us?.p95;
  const ill = n > 0 || down.length > 0 || !["running", "overloaded"].includes(status.state);
  const text = !["running", "overloaded"].includes(status.state) ? status.state : n ? `${count(n)} lost` : down.length ? `${down.join(", ")} down` : "nothing lost";
  return html`<div class="pulse" role="status">
    <span class="hide">${(status.source?.names || []).join(", ")}</span>
    ${p95 !== undefined && html`<span class="hide num" title="95 of 100 answers came within">p95 ${duration(p95)}</span>`}
    <span class="hide num ${waiting > 1000 ? "bad" : ""}">${count(waiting)} queued</span>
    ${status.state === "overloaded" && html`<a class="alarm" href="#health">overloaded</a>`}
    <a href="#health" class=${ill ? "alarm" : ""}><i class="dot ${ill ? "ill" : "good"}"></i>${text}</a></div>`;
}

function useSummary(window_s) {
  const [summary, setSummary] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => {
    const load = () => { if (!document.hidden) ask(`/api/v1/summary?window_s=${window_s}&top=8`).then((found) => { setSummary(found); setError(""); }).catch((failure) => setError(failure.message)); };
    load();
    const again = setInterval(load, window_s <= 3600 ? 3000 : 15000);
    return () => clearInterval(again);
  }, [window_s]);
  return [summary, error];
}

function TrafficView({ terms, setTerms, open, status }) {
  const [window_s, setWindow] = useState(900);
  const [what, setWhat] = useState("flows");
  const [summary, error] = useSummary(window_s);
  const add = (field, value) => setTerms([...terms.filter((term) => !(term.field === field && term.value === value)), { field, value, not: false }]);
  const shown = useMemo(() => summary && layersOf(summary, what), [summary, what]);
  return html`
    <${Figures} summary=${summary} status=${status} />
    <div class="grid-main">
      <section class="card stretch" aria-labelledby="now-title"><header><h2 id="now-title">On the wire, by label</h2>
        <div class="seg push" role="group" aria-label="What is shown">${["flows", "bytes"].map((name) => html`<button key=${name} aria-pressed=${what === name} onClick=${() => setWhat(name)}>${name}</button>`)}</div>
        <div class="seg" role="group" aria-label="How far back">${WINDOWS.map(([s, text]) => html`<button key=${s} aria-pressed=${window_s === s} onClick=${() => setWindow(s)}>${text}</button>`)}</div></header>
        ${error && html`<p class="bad" role="alert">${error}</p>`}
        ${shown && html`<${Stacked} times=${shown.times} series=${shown.series} step=${summary.step_s} format=${what === "flows" ? perSecond : bitsPerSecond} label=${`${what} per second by label, stacked, over the last ${WINDOWS.find(([s]) => s === window_s)[1]}`} />`}
      </section>
      <section class="card" aria-labelledby="labels-title"><header><h2 id="labels-title">Labels</h2><span class="note push">${WINDOWS.find(([s]) => s === window_s)[1]}</span></header>
        ${shown?.list.length ? html`<ul class="legend">${shown.list.map((each) => html`<li key=${each.label}><button onClick=${() => each.rest || add("label", each.label)} title=${each.rest ? "all other labels" : `show only ${each.label}`}><i class="k${each.colour}"></i><span class="name">${each.label || "no answer"}</span><span class="num">${what === "flows" ? count(each.all) : bytes(each.all)}</span><span class="num soft">${percent(each.share)}</span></button></li>`)}</ul>` : html`<p class="empty">No flow in this time.</p>`}
      </section>
    </div>
    <div class="grid2">${[["clients", "Top clients", "src_ip"], ["servers", "Top servers", "dest_ip"]].map(([side, title, field]) => html`<section class="card" key=${side}><header><h2>${title}</h2><span class="note push">by bytes</span></header>
      ${summary?.talkers[side].length ? html`<ul class="bars">${summary.talkers[side].slice(0, 6).map((each) => html`<li key=${each.ip} style="padding:0"><button onClick=${() => add(field, each.ip)} title="show only its flows"><span class="fill" style=${{ width: `${(100 * each.bytes) / (summary.talkers[side][0].bytes || 1)}%` }}></span><span class="mono">${each.ip}</span><span class="num"><span class="soft">${count(each.flows)} flows</span>  ${bytes(each.bytes)}</span></button></li>`)}</ul>` : html`<p class="empty">None yet.</p>`}</section>`)}</div>
    <${FlowTable} title="Flows" terms=${terms} setTerms=${setTerms} open=${open} />`;
}

const perSecond = (n) => `${short(n)}/s`;
const bitsPerSecond = (n) => `${scaled(8 * n).join(" ")}b/s`;

function layersOf(summary, what) {
  const all = summary.labels.map((each) => ({ label: each.label, sum: each[`all_${what}`], values: each[what] })).filter((each) => each.sum > 0).sort((a, b) => b.sum - a.sum || (a.label < b.label ? -1 : 1));
  const total = all.reduce((sum, each) => sum + each.sum, 0) || 1;
  // The step that has just begun is left out: it would always look like a fall.
  const times = summary.times.slice(0, -1);
  const rate = (values) => values.slice(0, -1).map((value) => value / summary.step_s);
  const top = all.slice(0, COLOURS - 1).map((each, i) => ({ ...each, colour: i }));
  const rest = all.slice(COLOURS - 1);
  const series = top.map((each) => ({ label: each.label, colour: each.colour, values: rate(each.values) }));
  const list = top.map((each) => ({ label: each.label, colour: each.colour, all: each.sum, share: each.sum / total }));
  if (rest.length) {
    const sums = summary.times.map((_, i) => rest.reduce((sum, each) => sum + each.values[i], 0));
    const sum = rest.reduce((n, each) => n + each.sum, 0);
    series.push({ label: "other labels", colour: COLOURS - 1, values: rate(sums) });
    list.push({ label: `${rest.length} other labels`, rest: true, colour: COLOURS - 1, all: sum, share: sum / total });
  }
  return { times, series, list };
}

function Figures({ summary, status }) {
  if (!summary) return html`<dl class="figures">${[0, 1, 2, 3].map((i) => html`<div key=${i}><dt> </dt><dd> </dd></div>`)}</dl>`;
  const steps = Math.max(Math.min(6, summary.times.length - 1), 1);
  const lately = (what) => summary.labels.reduce((sum, each) => sum + each[what].slice(-1 - steps, -1).reduce((a, b) => a + b, 0), 0) / (steps * summary.step_s);
  const looked = summary.flows_looked_at || 1;
  return html`<dl class="figures">
    <div><dt>New flows</dt><dd>${short(lately("flows"))}<small>a second</small></dd></div>
    <div><dt>Traffic</dt><dd>${scaled(8 * lately("bytes"))[0]}<small>${scaled(8 * lately("bytes"))[1]}bit/s</small></dd></div>
    <div><dt>Unknown</dt><dd>${percent(summary.unknown / looked)}<small><a href="#uncertain">${count(summary.unknown)} flows</a></small></dd></div>
    <div><dt>Open flows</dt><dd>${count(status?.flows_open ?? 0)}${status?.flow_memory_limit_bytes && html`<small>${percent((status.flow_memory_bytes || 0) / status.flow_memory_limit_bytes)} of memory</small>`}</dd></div></dl>`;
}

const KINDS = {
  unknown: ["Unknown", [{ field: "unknown", value: "true", not: false }], "Unlike anything the model was trained on. The label in brackets is the nearest one."],
  low: ["Low confidence", [{ field: "max_probability", value: "0.5", not: false }, { field: "unknown", value: "false", not: false }], "The best label is less likely than not. Giving some of these their right label teaches the next model most."],
};

function UncertainView({ terms, setTerms, open }) {
  const [kind, setKind] = useState("unknown");
  const [title, base, hint] = KINDS[kind];
  return html`<div class="head"><div class="seg" role="group" aria-label="Kind">${Object.entries(KINDS).map(([name, [text]]) => html`<button key=${name} aria-pressed=${kind === name} onClick=${() => setKind(name)}>${text}</button>`)}</div></div>
    <${FlowTable} key=${kind} title=${`${title} flows`} base=${base} hint=${hint} terms=${terms} setTerms=${setTerms} open=${open} />`;
}

const page = document.getElementById("page");
page.textContent = "";
render(html`<${Page} />`, page);
