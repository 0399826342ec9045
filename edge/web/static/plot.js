// The latency plot: one dot an image, oldest at the left, milliseconds on a logarithmic axis.

import { element, refresh, svgElement, table } from "./dom.js";
import { clock, count, figure, percentile } from "./words.js";

const HEIGHT = 230, TOP = 12, BOTTOM = 30, LEFT = 52, RIGHT = 74;
const LEAST_GAP = 15; // between two labels, in pixels

/** Round numbers (1, 2, 5 times a power of ten) from the last one not above `low` to the first not below `high`. */
function roundNumbers(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of [1, 2, 5]) found.push(Number(`${factor}e${power}`));
  }
  const first = found.findLastIndex((value) => value <= low);
  const last = found.findIndex((value) => value >= high);
  return found.slice(first, Math.max(last, first + 1) + 1);
}

function draw(latency, width) {
  const totals = latency.map(([, total]) => total);
  const values = latency.flatMap(([, total, infer]) => [total, infer]).filter((value) => value > 0);
  const numbers = roundNumbers(Math.min(...values), Math.max(...values));
  const [low, high] = [numbers[0], numbers.at(-1)].map(Math.log10);
  const x = (i) => LEFT + (latency.length === 1 ? 0.5 : i / (latency.length - 1)) * (width - LEFT - RIGHT);
  const y = (ms) => TOP + (1 - (Math.log10(Math.max(ms, numbers[0])) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const text = (px, py, content, kind, anchor) =>
    svgElement("text", { x: px, y: py, class: kind, "text-anchor": anchor }, content);
  const ticks = numbers.length > 7 ? numbers.filter((value) => String(value).replace(/[0.]/g, "") === "1") : numbers;
  const body = ticks.flatMap((value) => [
    svgElement("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
    text(LEFT - 8, y(value) + 4, value.toLocaleString("en", { maximumFractionDigits: 4 }), "tick", "end")]);
  for (const [column, kind] of [[2, "infer-dot"], [1, "total-dot"]]) {
    body.push(...latency.map((row, i) => svgElement("circle", { cx: x(i), cy: y(row[column]), r: 2.6, class: kind })));
  }
  let below = Infinity; // labels are set from the bottom up, each clear of the one before
  for (const percent of [50, 99]) {
    const value = percentile(totals, percent);
    if (value === null) continue;
    body.push(svgElement("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "mark" }));
    below = Math.min(y(value) + 4, below - LEAST_GAP);
    body.push(text(width - RIGHT + 8, below, `p${percent} ${figure(value)}`, "", "start"));
  }
  body.push(text(LEFT, HEIGHT - 8, clock(latency[0][0] * 1000), "tick", "start"));
  if (latency.length > 1) body.push(text(width - RIGHT, HEIGHT - 8, clock(latency.at(-1)[0] * 1000), "tick", "end"));
  return svgElement("svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img",
      "aria-labelledby": "plot-title plot-text" },
    svgElement("title", { id: "plot-title" }, `Latency of the last ${latency.length} images`),
    svgElement("desc", { id: "plot-text" },
      "One dot an image for the total and for the inference, in milliseconds on a logarithmic axis. "
      + "The table below has the percentiles."),
    ...body);
}

const key = () => element("ul", { class: "key" },
  element("li", {}, element("i", { class: "total" }), "total, from received to result, ms"),
  element("li", {}, element("i", { class: "infer" }), "inference alone, ms"));

function summary(name, values) {
  const figures = [50, 90, 99].map((percent) => figure(percentile(values, percent)));
  return [name, count(values.length), ...figures, figure(Math.max(...values))];
}

/** Shows `latency`, rows of [seconds, total, infer], in `plot` and as percentiles in `below`. */
export function showLatency(plot, below, latency) {
  const width = plot.clientWidth;
  const facts = [latency, width];
  refresh(plot, facts, () => (latency.length && width
    ? [key(), draw(latency, width)]
    : element("p", { class: "muted" }, "No image was done since the daemon started.")));
  refresh(below, latency, () => latency.length && element("div", { class: "scroll" }, table(
    "Milliseconds; a dash stands where there are too few images for the percentile",
    ["", "images", "p50", "p90", "p99", "max"],
    [summary("total", latency.map((row) => row[1])), summary("inference", latency.map((row) => row[2]))])));
}
