// The table of flows: live, filtered, and back into history.

import { ask, bytes, clock, count, endpoint, follow, html, lineOf, percent, queryOf, said, sameTerm, termsOf, useEffect, useRef, useState } from "./lib.js";

const ROWS = 100;
const PER_S = 40; // events a second that are shown; the others are counted

export function FlowTable({ base = [], terms, setTerms, open, title, hint }) {
  const [rows, setRows] = useState([]);
  const [cursor, setCursor] = useState(null);
  const [error, setError] = useState("");
  const [paused, setPaused] = useState(false);
  const [live, setLive] = useState(null);
  const [skipped, setSkipped] = useState(0);
  const [older, setOlder] = useState(false);
  const query = queryOf([...base, ...terms]).toString();
  const waiting = useRef(false);

  useEffect(() => {
    let gone = false;
    setOlder(false);
    setSkipped(0);
    ask(`/api/v1/flows?limit=${ROWS}&${query}`)
      .then((page) => { if (!gone) { setRows(page.flows); setCursor(page.next_cursor); setError(""); } })
      .catch((failure) => { if (!gone) { setRows([]); setError(failure.message); } });
    return () => { gone = true; };
  }, [query, paused]);

  useEffect(() => {
    if (paused || error) return undefined;
    return follow(`max_per_s=${PER_S}&${query}`, ({ events, skipped: more, open: is }) => {
      if (is !== undefined) setLive(is);
      setSkipped(more);
      if (events.length) setRows((before) => merged(events, before));
    });
  }, [query, paused, error]);

  const more = async () => {
    if (waiting.current) return;
    waiting.current = true;
    setPaused(true);
    try {
      const page = await ask(`/api/v1/flows?limit=${ROWS}&cursor=${cursor}&${query}`);
      setOlder(true);
      setRows((before) => [...before, ...page.flows.filter((flow) => !before.some((each) => each.flow_id === flow.flow_id))]);
      setCursor(page.next_cursor);
    } catch (failure) { setError(failure.message); }
    waiting.current = false;
  };
  const add = (term) => setTerms(terms.some((each) => sameTerm(each, term)) ? terms : [...terms, term]);
  const state = paused ? "paused" : live === false ? "reconnecting …" : skipped ? `a sample: ${count(Math.round(skipped * 4))} a second more` : "live";

  return html`<section class="card" aria-labelledby="flows-title">
    <header>
      <h2 id="flows-title">${title}</h2>
      <span class="soft note" role="status"><span class="dot ${!paused && live ? "good" : ""}" style="display:inline-block;margin-right:6px"></span>${state}</span>
      <button class="plain push" aria-pressed=${paused} onClick=${() => setPaused(!paused)}>${paused ? "Resume" : "Pause"}</button>
    </header>
    ${hint && html`<p class="note" style="margin:-4px 0 12px">${hint}</p>`}
    <${Search} terms=${terms} setTerms=${setTerms} />
    ${error && html`<p class="bad" role="alert" style="padding:12px 0">${error}</p>`}
    <div class="scroll" style="margin-top:10px" tabindex="0" role="region" aria-label="Flows">
      <table>
        <thead><tr><th>Time</th><th>Label</th><th>Probability</th><th>Client</th><th>Server</th><th class="opt">Name</th><th class="r opt">Packets</th><th class="r">Bytes</th></tr></thead>
        <tbody>${rows.map((event) => html`<${Row} key=${event.flow_id} event=${event} open=${open} add=${add} />`)}</tbody>
      </table>
      ${!rows.length && !error && html`<p class="empty">${terms.length ? "No flow fits these filters." : "No flow yet. As soon as one is answered it stands here."}</p>`}
    </div>
    ${cursor && html`<div class="more"><button class="plain" onClick=${more}>${older ? "Still older flows" : "Older flows"}</button></div>`}
  </section>`;
}

function merged(events, before) {
  const newest = new Map();
  for (let i = events.length - 1; i >= 0; i--) if (!newest.has(events[i].flow_id)) newest.set(events[i].flow_id, events[i]);
  for (const event of before) if (newest.size < ROWS && !newest.has(event.flow_id)) newest.set(event.flow_id, event);
  return [...newest.values()].slice(0, ROWS);
}

function Row({ event, open, add }) {
  const { label, probability, unknown, nearest } = said(event);
  const flow = event.flow || {};
  return html`<tr class="go" onClick=${(click) => { if (!click.target.closest("button")) open(event.flow_id); }}>
    <td class="num soft">${clock(event.timestamp)}</td>
    <td><button class="rowlink ${unknown ? "unknown" : ""}" title=${label} onClick=${() => open(event.flow_id)}>${label}${unknown && nearest ? html` <span class="soft">(${nearest}?)</span>` : ""}</button></td>
    <td><${Probability} value=${probability} /></td>
    <td class="mono">${endpoint(event.src_ip, event.src_port)}</td>
    <td class="mono">${endpoint(event.dest_ip, event.dest_port)} <span class="soft">${event.proto}</span></td>
    <td class="opt wide soft" title=${event.netcls?.sni}>${event.netcls?.sni}</td>
    <td class="r opt">${count((flow.pkts_toserver || 0) + (flow.pkts_toclient || 0))}</td>
    <td class="r">${bytes((flow.bytes_toserver || 0) + (flow.bytes_toclient || 0))}</td>
  </tr>`;
}

export function Probability({ value }) {
  if (value === undefined || value === null) return html`<span class="soft">—</span>`;
  return html`<span class="prob"><span class="meter ${value < 0.5 ? "low" : ""}" aria-hidden="true"><i style=${{ width: `${100 * value}%` }}></i></span>${percent(value)}</span>`;
}

function Search({ terms, setTerms }) {
  const [line, setLine] = useState("");
  const field = useRef(null);
  useEffect(() => {
    const jump = (key) => {
      if (key.key === "/" && !key.ctrlKey && !key.metaKey && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
        key.preventDefault();
        field.current?.focus();
      }
    };
    addEventListener("keydown", jump);
    return () => removeEventListener("keydown", jump);
  }, []);
  const take = (submit) => {
    submit.preventDefault();
    const more = termsOf(line).filter((term) => !terms.some((each) => sameTerm(each, term)));
    if (more.length) setTerms([...terms, ...more]);
    setLine("");
  };
  const turned = (term) => setTerms(terms.map((each) => (sameTerm(each, term) ? { ...each, not: !each.not } : each)));
  return html`<div>
    <form role="search" onSubmit=${take}>
      <label class="sr" for="search">Filter flows</label>
      <input id="search" type="search" ref=${field} value=${line} onInput=${(input) => setLine(input.target.value)} autocomplete="off" spellcheck="false"
        aria-describedby="search-help" placeholder="label:web  -label:dns  10.0.0.0/8  port:443  p<0.5  any text" />
      <span id="search-help" class="sr">Several values of one field mean or; a minus before a term excludes it; press Enter to apply, slash to come here.</span>
    </form>
    ${terms.length > 0 && html`<ul class="chips" style="margin-top:8px" aria-label="Filters">${terms.map((term) => html`<li class="chip ${term.not ? "not" : ""}" key=${lineOf([term])}>
      <span>${term.not ? "not " : ""}${term.field === "text" ? "" : `${term.field.replace("_probability", " probability")} `}${term.value}</span>
      ${!/probability|unknown|final/.test(term.field) && html`<button title="Turn round" aria-label=${`Turn round: ${lineOf([term])}`} onClick=${() => turned(term)}>±</button>`}
      <button title="Remove" aria-label=${`Remove: ${lineOf([term])}`} onClick=${() => setTerms(terms.filter((each) => !sameTerm(each, term)))}>×</button>
    </li>`)}<li><button class="chip" onClick=${() => setTerms([])}>Clear</button></li></ul>`}
  </div>`;
}
