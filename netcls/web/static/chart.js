// Stacked areas over time (uPlot) and the packets of one flow (SVG).

import { html, useEffect, useRef } from "./lib.js";

export const COLOURS = 8; // of the style sheet, --c0 to --c7; the last is for all the rest

const colour = (index) => css(`--c${index}`);

// uPlot draws on a canvas, which knows no light-dark(): the browser is asked what the colour is now.
function css(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// series: [{label, values}], largest first, the rest summed in the last one.
export function Stacked({ times, series, step, format, label }) {
  const place = useRef(null);
  const plot = useRef(null);
  const shape = series.map((each) => `${each.label} ${each.colour}`).join("\n");
  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const draw = () => {
      plot.current?.destroy();
      plot.current = made(place.current, times, series, format);
    };
    draw();
    const watch = new ResizeObserver(() => plot.current?.setSize(sizeOf(place.current)));
    watch.observe(place.current);
    dark.addEventListener("change", draw);
    return () => { watch.disconnect(); dark.removeEventListener("change", draw); plot.current?.destroy(); plot.current = null; };
  }, [shape, step, format]);
  useEffect(() => plot.current?.setData(stacked(times, series)), [times]);
  return html`<div class="chart" role="img" aria-label=${label} ref=${place}></div>`;
}

const sizeOf = (element) => ({ width: Math.max(element.clientWidth, 120), height: Math.max(element.clientHeight, 200) });

function stacked(times, series) {
  const sums = new Array(times.length).fill(0);
  const layers = series.map(({ values }) => values.map((value, i) => (sums[i] += value)));
  // The largest sum is drawn first, so that each layer shows only what is its own.
  return [times, ...layers.reverse()];
}

function made(place, times, series, format) {
  const line = css("--line"), text = css("--soft");
  const font = `11.5px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: text, font, grid: { stroke: line, width: 1 }, ticks: { show: false } };
  const layers = series.map((each) => ({
    label: each.label,
    stroke: colour(each.colour),
    width: 1,
    fill: colour(each.colour),
    points: { show: false },
  }));
  return new uPlot(
    {
      ...sizeOf(place),
      legend: { show: false },
      cursor: { show: false },
      padding: [8, 4, 0, 0],
      scales: { x: { time: true }, y: { range: (_, __, most) => [0, Math.max(most, 1) * 1.08] } },
      axes: [
        { ...axis, grid: { show: false }, space: 70, size: 26, values: [[3600 * 24, "{D} {MMM}", null, null, null, null, null, null, 1], [3600, "{HH}:{mm}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]] },
        { ...axis, size: place.clientWidth < 500 ? 46 : 54, space: 44, values: (_, ticks) => ticks.map((tick) => format(tick)) },
      ],
      series: [{}, ...layers.reverse()],
    },
    stacked(times, series),
    place,
  );
}

// First packets of a flow: up is to the server, down to the client.
export function Packets({ packets, byTime }) {
  const n = packets.bytes.length;
  if (!n) return html`<p class="note">No packet was kept.</p>`;
  const [width, height, left, right] = [540, 190, 40, 8];
  const middle = height / 2 - 6;
  const most = Math.max(...packets.bytes.map(Math.abs), 100);
  const last = Math.max(packets.at_us[n - 1], 1);
  const inner = width - left - right;
  const slot = inner / n;
  const x = (i) => (byTime ? left + 3 + (packets.at_us[i] / last) * (inner - 8) : left + slot * (i + 0.5));
  const wide = byTime ? 3 : Math.min(Math.max(slot - 3, 2), 14);
  const tall = (size) => Math.max((Math.abs(size) / most) * (middle - 10), 1.5);
  const text = `${n} packets: ${packets.bytes.filter((size) => size > 0).length} to the server, the others to the client`;
  return html`<svg class="packets" viewBox="0 0 ${width} ${height}" role="img" aria-label=${text}>
    <line x1=${left} x2=${width - right} y1=${middle} y2=${middle} />
    <text x=${left - 6} y="14" text-anchor="end">${most}</text>
    <text x=${left - 6} y=${middle + 4} text-anchor="end">0 B</text>
    <text x=${left - 6} y=${2 * middle - 4} text-anchor="end">${most}</text>
    <text x=${left} y=${height - 3}>${byTime ? "0" : "1st"}</text>
    <text x=${width - right} y=${height - 3} text-anchor="end">${byTime ? `${(last / 1000).toPrecision(3)} ms` : `${n}th packet`}</text>
    ${packets.bytes.map((size, i) => html`<rect class=${size > 0 ? "up" : "down"} x=${x(i) - wide / 2} width=${wide} rx="1.5"
      y=${size > 0 ? middle - 1 - tall(size) : middle + 1} height=${tall(size)}><title>${`packet ${i + 1}: ${Math.abs(size)} bytes to the ${size > 0 ? "server" : "client"}, after ${(packets.at_us[i] / 1000).toFixed(3)} ms`}</title></rect>`)}
  </svg>`;
}
