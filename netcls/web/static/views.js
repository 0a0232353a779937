// The model's card, the appliance's health, and the upload of a capture.

import { ask, bytes, count, duration, html, percent, post, said, short, useEffect, useRef, useState } from "./lib.js";
import { Probability } from "./table.js";

export function ModelView() {
  const [model, setModel] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => { ask("/api/v1/model").then(setModel).catch((failure) => setError(failure.message)); }, []);
  if (error) return html`<section class="card"><p class="empty">${error}</p></section>`;
  if (!model) return html`<p class="loading">Loading …</p>`;
  const card = model.card || {}, metrics = card.metrics || {};
  const classes = [...(card.per_class || [])].sort((a, b) => b.f1 - a.f1);
  return html`
    <section class="card"><header><h2>${model.name}</h2><span class="pill mono">${model.checkpoint}</span><span class="pill">${model.representation}</span></header>
      <p style="max-width:78ch">${card.summary || card.title || "This checkpoint has no card."}</p></section>
    ${metrics.macro_f1 !== undefined && html`<dl class="figures">
      <div><dt>Macro-F1</dt><dd>${metrics.macro_f1.toFixed(3)}<small>${interval(metrics.macro_f1_interval)}</small></dd></div>
      <div><dt>Accuracy</dt><dd>${metrics.accuracy.toFixed(3)}<small>${interval(metrics.accuracy_interval)}</small></dd></div>
      <div><dt>Test flows</dt><dd>${count(metrics.test_flows)}</dd></div>
      <div><dt>Calibration error</dt><dd>${card.calibration?.ece_after !== undefined ? card.calibration.ece_after.toFixed(3) : "—"}</dd></div></dl>`}
    <div class="grid2">
      <section class="card"><header><h2>F1 of each class</h2><span class="note push">flows not trained on</span></header>
        ${classes.length ? html`<ul class="bars">${classes.map((each) => html`<li key=${each.label}><span class="fill" style=${{ width: `${100 * each.f1}%` }}></span><span>${each.label}</span><span class="num"><span class="soft">${count(each.support)} flows</span>  ${each.f1.toFixed(2)}</span></li>`)}</ul>` : html`<p class="empty">The card has no figures by class.</p>`}
      </section>
      <div style="display:grid;gap:16px;align-content:start">
        ${card.baselines && html`<section class="card"><header><h2>Against baselines</h2></header>
          <div class="scroll"><table><thead><tr><th>Name</th><th class="r">Macro-F1</th><th class="r">95 %</th><th class="r">Accuracy</th></tr></thead>
          <tbody>${card.baselines.map((row) => html`<tr key=${row.name} title=${row.sees}><td>${row.name}</td><td class="r">${row.macro_f1.toFixed(3)}</td><td class="r soft">${interval([row.macro_f1_low, row.macro_f1_high])}</td><td class="r">${row.accuracy.toFixed(3)}</td></tr>`)}</tbody></table></div></section>`}
        ${card.known_limits && html`<section class="card"><header><h2>Known limits</h2></header><ul style="display:grid;gap:8px">${card.known_limits.map((limit, i) => html`<li key=${i} class="soft">${limit}</li>`)}</ul></section>`}
      </div>
    </div>
    <${Confusion} confusion=${card.confusion} />`;
}

const interval = (pair) => (Array.isArray(pair) && pair.every(Number.isFinite) ? `${pair[0].toFixed(3)} – ${pair[1].toFixed(3)}` : "");

function Confusion({ confusion }) {
  if (!confusion) return html`<section class="card"><header><h2>Confusion matrix</h2></header><p class="note">The card of this checkpoint was written without one; netcls finetune writes it from now on.</p></section>`;
  const { labels, matrix } = confusion;
  return html`<section class="card"><header><h2>Confusion matrix</h2><span class="note push">rows: what it was, columns: what was said; share of the row</span></header>
    <div class="matrix" tabindex="0" role="region" aria-label="Confusion matrix"><table><thead><tr><th></th>${labels.map((label, i) => html`<th key=${i} title=${label}>${i + 1}</th>`)}</tr></thead>
    <tbody>${matrix.map((row, i) => {
      const sum = row.reduce((a, b) => a + b, 0);
      return html`<tr key=${i}><th>${i + 1} ${labels[i]}</th>${row.map((n, j) => html`<td key=${j} title=${`${labels[i]} said to be ${labels[j]}: ${n} of ${sum}`} style=${{ background: n ? `color-mix(in srgb, var(--${i === j ? "c0" : "bad"}) ${Math.round(12 + (88 * n) / sum)}%, var(--card))` : "var(--raised)" }}><span class="sr">${n}</span></td>`)}</tr>`;
    })}</tbody></table></div></section>`;
}

// What was lost, by place: [name, number, what to do].
export function lossesOf(status) {
  const losses = [];
  const drops = status.capture?.kernel_drops;
  if (drops) losses.push(["dropped by the kernel", drops, "give more ring memory, more workers, or filter with --bpf"]);
  for (const [name, queue] of Object.entries(status.queues || {})) if (queue.dropped && !(name === "early")) losses.push([`dropped by queue ${name}`, queue.dropped, "the reader behind it is too slow"]);
  for (const [name, sink] of Object.entries(status.sinks || {})) if (sink.failed) losses.push([`failed in sink ${name}`, sink.failed, sink.last_error || "see the log"]);
  if (status.books_imbalance_packets) losses.push(["packets not accounted for", Math.abs(status.books_imbalance_packets), "a defect of netcls; please report it"]);
  return losses;
}

export function HealthView({ status, error }) {
  const [stats, setStats] = useState(null);
  const [told, setTold] = useState("");
  useEffect(() => {
    const load = () => { if (!document.hidden) ask("/api/v1/stats").then(setStats).catch(() => {}); };
    load();
    const again = setInterval(load, 3000);
    return () => clearInterval(again);
  }, []);
  if (!status) return html`<p class="loading">${error || "Loading …"}</p>`;
  const losses = lossesOf(status), latency = status.latency_us || {};
  const packets = stats?.netcls?.packets || {};
  const reload = async () => {
    setTold("Reloading …");
    try { setTold((await post("/api/v1/reload", undefined)).reloaded); } catch (failure) { setTold(failure.message); }
  };
  return html`
    <section class="card"><header><h2>${losses.length ? "Something was lost" : "Nothing was lost"}</h2><span class="pill ${status.state === "running" ? "" : "bad"}">${status.state}</span>
      ${status.overload?.step > 0 && html`<span class="pill bad">${status.overload.name}</span>`}
      <span class="note">up ${duration((status.uptime_s || 0) * 1e6)}</span>
      <button class="plain push" onClick=${reload}>Reload configuration and model</button></header>
      ${told && html`<p class="note" role="status">${told}</p>`}
      ${status.last_reload_error && html`<p class="bad">Last reload failed: ${status.last_reload_error}</p>`}
      ${losses.length > 0 && html`<ul>${losses.map(([name, n, todo]) => html`<li key=${name} class="bad"><strong class="num">${count(n)}</strong> ${name}: <span class="soft">${todo}</span></li>`)}</ul>`}
      ${!losses.length && html`<p class="soft">Every packet that the kernel handed over is in a flow, rejected by name or ignored by name, and every event reached its sinks.</p>`}
    </section>
    <dl class="figures">
      <div><dt>Packets seen</dt><dd>${short(packets.seen ?? status.packets_seen ?? 0)}</dd></div>
      <div><dt>Flows open</dt><dd>${count(status.flows_open ?? 0)}</dd></div>
      <div><dt>Latency, p50 · p95 · p99</dt><dd style="font-size:17px;line-height:1.85">${["p50", "p95", "p99"].map((p) => (latency[p] === undefined ? "—" : duration(latency[p]))).join(" · ")}</dd></div>
      <div><dt>Followers of events</dt><dd>${count(status.web?.followers ?? 0)}${status.web?.followers_cut ? html`<small class="bad">${count(status.web.followers_cut)} cut</small>` : ""}</dd></div>
    </dl>
    <div class="grid2">
      <${Table} title="Queues" head=${["Queue", "Waiting", "Room", "Dropped"]} rows=${Object.entries(status.queues || {}).map(([name, queue]) => [name, queue.depth, queue.limit, { n: queue.dropped, bad: name !== "early" }])} />
      <${Table} title="Sinks" head=${["Sink", "Sent", "Retried", "Failed"]} rows=${Object.entries(status.sinks || {}).map(([name, sink]) => [html`${name} <span class="pill ${sink.up ? "" : "bad"}">${sink.up ? "up" : "down"}</span>`, sink.sent, sink.retried, { n: sink.failed, bad: true }])} />
      <${Table} title="Interfaces" head=${["Interface", "Packets", "Bytes", "Dropped by the kernel"]} rows=${Object.entries(status.capture?.interfaces || {}).map(([name, live]) => [name, live.n_packets, bytes(live.n_bytes || 0), live.counts_drops === false ? "not known" : { n: live.n_kernel_drops, bad: true }])} />
      <${Table} title="Packets in no flow" head=${["Reason", "", "Packets"]} rows=${[...Object.entries(packets.rejected || {}).map(([name, n]) => [name.replaceAll("_", " "), "rejected", n]), ...Object.entries(packets.ignored || {}).map(([name, n]) => [name.replaceAll("_", " "), "ignored", n])]} />
    </div>
    <p class="note">Store: ${count(status.web?.store?.flows_written ?? 0)} events written, ${bytes(status.web?.store?.bytes ?? 0)}, ${count(status.web?.store?.labels ?? 0)} labels. Books out of balance by ${count(Math.abs(status.books_imbalance_packets ?? 0))} packets.
      ${(status.web?.warnings || []).map((warning, i) => html`<span class="bad" key=${i}> ${warning}</span>`)}</p>`;
}

function Table({ title, head, rows }) {
  const cell = (value) => (value && typeof value === "object" && "n" in value ? html`<span class=${value.bad && value.n ? "bad" : ""}>${count(value.n)}</span>` : typeof value === "number" ? count(value) : value);
  return html`<section class="card"><header><h2>${title}</h2></header>${rows.length ? html`<div class="scroll"><table><thead><tr>${head.map((name, i) => html`<th key=${i} class=${i ? "r" : ""}>${name}</th>`)}</tr></thead>
    <tbody>${rows.map((row, i) => html`<tr key=${i}>${row.map((value, j) => html`<td key=${j} class=${j ? "r" : ""}>${cell(value)}</td>`)}</tr>`)}</tbody></table></div>` : html`<p class="empty" style="padding:16px">None.</p>`}</section>`;
}

export function UploadView() {
  const [state, setState] = useState({});
  const [over, setOver] = useState(false);
  const field = useRef(null);
  const send = async (file) => {
    if (!file) return;
    setState({ busy: file.name });
    try {
      const answer = await ask("/api/v1/classify", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
      setState({ done: file.name, ...answer });
    } catch (failure) { setState({ error: failure.message }); }
  };
  const drop = (event) => { event.preventDefault(); setOver(false); send(event.dataTransfer.files[0]); };
  const byLabel = new Map();
  for (const event of state.events || []) byLabel.set(said(event).label, (byLabel.get(said(event).label) || 0) + 1);
  const labels = [...byLabel].sort((a, b) => b[1] - a[1]);
  return html`<section class="card"><header><h2>Classify a capture</h2></header>
    <div class="drop ${over ? "over" : ""}" onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <p>Drop a pcap or pcapng here, plain or compressed, up to 64 MB.</p>
      <button class="primary" disabled=${state.busy} onClick=${() => field.current.click()}>${state.busy ? "Classifying …" : "Choose a file"}</button>
      <input class="sr" type="file" ref=${field} aria-label="Capture file" tabindex="-1" onChange=${(change) => send(change.target.files[0])} />
      <p class="note">It is read in a process of its own with limits on memory and time, and not kept.</p>
    </div>
    <p role="status" class=${state.error ? "bad" : "soft"} style="margin-top:12px">${state.error || (state.busy ? `Classifying ${state.busy} …` : state.done ? `${state.done}: ${count(state.events.length)} flows, ${count(state.stats.packets.seen)} packets${state.truncated ? "; only the first are shown" : ""}` : "")}</p>
    ${(state.warnings || []).map((warning, i) => html`<p key=${i} class="note">${warning}</p>`)}</section>
    ${labels.length > 0 && html`<div class="grid-main"><section class="card"><header><h2>Flows</h2></header><div class="scroll"><table>
      <thead><tr><th>Label</th><th>Probability</th><th>Client</th><th>Server</th><th class="r">Bytes</th></tr></thead>
      <tbody>${state.events.slice(0, 500).map((event) => html`<tr key=${event.flow_id}><td>${said(event).label}</td><td><${Probability} value=${said(event).probability} /></td><td class="mono">${event.src_ip}</td><td class="mono">${event.dest_ip} <span class="soft">${event.proto} ${event.dest_port}</span></td><td class="r">${bytes(event.flow.bytes_toserver + event.flow.bytes_toclient)}</td></tr>`)}</tbody></table></div></section>
      <section class="card" style="align-self:start"><header><h2>By label</h2></header><ul class="bars">${labels.map(([label, n]) => html`<li key=${label}><span class="fill" style=${{ width: `${(100 * n) / labels[0][1]}%` }}></span><span>${label}</span><span class="num">${count(n)} <span class="soft">${percent(n / state.events.length)}</span></span></li>`)}</ul></section></div>`}`;
}
