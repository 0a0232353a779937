// One flow: what it is said to be, what came first on the wire, how the answer developed, and its right label.

import { ask, bytes, clock, count, duration, endpoint, html, percent, post, said, useEffect, useRef, useState } from "./lib.js";
import { Packets } from "./chart.js";
import { Probability } from "./table.js";

export function FlowDialog({ id, close, labels }) {
  const dialog = useRef(null);
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  const load = () => ask(`/api/v1/flows/${id}`).then((flow) => { setFound(flow); setError(""); }).catch((failure) => setError(failure.message));
  useEffect(() => {
    dialog.current.showModal();
    setFound(null);
    load();
    const again = setInterval(() => { if (!document.hidden) load(); }, 5000);
    return () => clearInterval(again);
  }, [id]);
  const outside = (click) => { if (click.target === dialog.current) close(); };
  return html`<dialog ref=${dialog} onClose=${close} onClick=${outside} aria-labelledby="flow-title">
    <div class="flow">
      <header>
        <div><p class="note">Flow <span class="mono">${String(id)}</span></p>
        <h2 class="title" id="flow-title">${found ? said(found.event).label : error ? "Not found" : "…"}</h2></div>
        <button class="close" aria-label="Close" onClick=${close}>×</button>
      </header>
      ${error && html`<p class="bad" role="alert">${error}</p>`}
      ${found && html`<${Details} found=${found} labels=${labels} reload=${load} />`}
    </div>
  </dialog>`;
}

function Details({ found, labels, reload }) {
  const { event, earlier, packets } = found;
  const ours = event.netcls || {}, flow = event.flow || {};
  const [byTime, setByTime] = useState(false);
  return html`
    <${Answers} ours=${ours} />
    <div class="head" style="margin:22px 0 6px"><h3 style="margin:0">First packets</h3>
      <span class="key push"><i class="k0"></i>to the server</span><span class="key"><i class="k1"></i>to the client</span>
      <div class="seg" role="group" aria-label="Horizontal axis"><button aria-pressed=${!byTime} onClick=${() => setByTime(false)}>by order</button><button aria-pressed=${byTime} onClick=${() => setByTime(true)}>over time</button></div>
    </div>
    ${packets ? html`<${Packets} packets=${packets} byTime=${byTime} />` : html`<p class="note">The packets of this flow are not kept any more.</p>`}
    <h3>How the answer developed</h3>
    <ol class="steps">${[...earlier, event].map((each, i) => html`<${Step} key=${i} event=${each} />`)}</ol>
    <h3>Facts</h3>
    <dl class="facts">
      <dt>Client</dt><dd class="mono">${endpoint(event.src_ip, event.src_port)}</dd>
      <dt>Server</dt><dd class="mono">${endpoint(event.dest_ip, event.dest_port)}</dd>
      <dt>Protocol</dt><dd>${event.proto}${event.vlan ? `, VLAN ${event.vlan.join(" in ")}` : ""}${event.tunnel ? `, inside ${event.tunnel.kind}` : ""}</dd>
      ${ours.sni && html`<dt>Server name</dt><dd>${ours.sni}</dd>`}
      ${ours.alpn && html`<dt>ALPN</dt><dd>${ours.alpn.join(", ")}</dd>`}
      <dt>Community ID</dt><dd><span class="mono">${event.community_id}</span> <${Copy} text=${event.community_id} /></dd>
      <dt>Began</dt><dd class="num">${String(flow.start).slice(0, 23).replace("T", " ")} UTC</dd>
      <dt>Lasted</dt><dd>${flow.age} s${ours.end_reason ? `, ended: ${ours.end_reason.replaceAll("_", " ")}` : ", still open when told"}</dd>
      <dt>To the server</dt><dd>${count(flow.pkts_toserver)} packets, ${bytes(flow.bytes_toserver)}</dd>
      <dt>To the client</dt><dd>${count(flow.pkts_toclient)} packets, ${bytes(flow.bytes_toclient)}</dd>
      ${ours.packets_used !== undefined && html`<dt>The model saw</dt><dd>${count(ours.packets_used)} packets</dd>`}
      ${ours.latency_us !== undefined && html`<dt>Answered after</dt><dd>${duration(ours.latency_us)}</dd>`}
      ${ours.model && html`<dt>Model</dt><dd>${ours.model} <span class="mono soft">${ours.checkpoint}</span></dd>`}
      ${ours.quality && html`<dt>Note</dt><dd>${ours.quality.join(", ").replaceAll("_", " ")}</dd>`}
      <dt>Seen on</dt><dd>${event.in_iface ?? event.pcap_filename}</dd>
    </dl>
    <${LabelForm} found=${found} labels=${labels} reload=${reload} />`;
}

function Answers({ ours }) {
  const rows = ours.top || ours.labels || [
    ours.label !== undefined && { label: ours.unknown ? ours.nearest : ours.label, probability: ours.probability },
    ours.runner_up,
  ].filter(Boolean);
  return html`
    ${ours.unknown && html`<p class="note" style="margin-top:6px">Unlike what the model was trained on (score ${ours.unknown_score}); nearest is <strong>${ours.nearest}</strong>.</p>`}
    <ul class="answers" style="margin-top:12px">${rows.map((row) => html`<li key=${row.label}><span>${row.label}</span><${Probability} value=${row.probability} /></li>`)}</ul>
    ${ours.number && html`<p class="note">80 of 100 such flows: ${ours.number.low} to ${ours.number.high} ${ours.number.unit}</p>`}`;
}

function Step({ event }) {
  const { label, probability } = said(event);
  const ours = event.netcls || {}, flow = event.flow || {};
  const when = ours.phase === "ready" ? `after ${ours.packets_used} packets` : "at its end";
  return html`<li><strong>${label}</strong>${probability !== undefined ? ` ${percent(probability)}` : ""}
    <div class="note">${clock(event.timestamp)}, ${when}; ${count((flow.pkts_toserver || 0) + (flow.pkts_toclient || 0))} packets so far${ours.was ? html`; was ${ours.was}` : ""}</div></li>`;
}

function Copy({ text }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try { await navigator.clipboard.writeText(text); } catch { select(text); }
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button class="plain" style="padding:1px 9px;font-size:12px" onClick=${copy}>${done ? "Copied" : "Copy"}</button>`;
}

// The clipboard is for secure origins only; elsewhere the old way.
function select(text) {
  const field = document.createElement("textarea");
  field.value = text;
  document.querySelector("dialog").append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

function LabelForm({ found, labels, reload }) {
  const given = found.label;
  const [label, setLabel] = useState(given?.label ?? "");
  const [told, setTold] = useState("");
  const send = async (value) => {
    try {
      const answer = await post("/api/v1/labels", { flow_id: found.event.flow_id, label: value });
      setTold(value === null ? "Taken back." : answer.can_teach ? "Stored. netcls finetune --from-store will learn from it." : "Stored, but this flow's packets are not kept, so no model can learn from it.");
      reload();
    } catch (failure) { setTold(failure.message); }
  };
  return html`<h3>The right label</h3>
    <form class="labelform" onSubmit=${(submit) => { submit.preventDefault(); if (label.trim()) send(label.trim()); }}>
      <label class="sr" for="right-label">The right label of this flow</label>
      <input id="right-label" type="text" list="known-labels" maxlength="200" value=${label} onInput=${(input) => setLabel(input.target.value)} placeholder="What it really is" autocomplete="off" />
      <button class="primary" disabled=${!label.trim() || label.trim() === given?.label}>${given ? "Change" : "Give label"}</button>
      <datalist id="known-labels">${labels.map((name) => html`<option value=${name} key=${name} />`)}</datalist>
    </form>
    <p class="note" role="status" style="margin-top:6px">${told || (given ? html`Labelled <strong>${given.label}</strong>. <button class="rowlink soft" onClick=${() => send(null)}>Take back</button>` : "Labels and the flow's first packets collect in the store, for netcls finetune --from-store.")}</p>`;
}
