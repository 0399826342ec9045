// The head of the page, its tiles, and the tables on the daemon and its machine.

import { byId, element, empty, refresh, table } from "./dom.js";
import { clock, count, duration, figure, percentile, plural } from "./words.js";

const FILLED = ["about", "notice", "gate", "tiles", "sinks", "machine", "version"];
const FOR_RESEARCH = "Research use only, not for diagnosis.";
const GATE_FAILED = "This bundle failed its accuracy gate: it is further from float32 than was allowed.";
const GATE = { pass: "gate passed", fail: "gate failed" };

/** What the daemon is doing: a state for the colour, and one sentence. */
export function describeState(status) {
  if (status.stopping) return ["stopping", "Stopping: finishing what is under way"];
  if (!status.ready) return ["starting", "Starting: not yet taking images to run"];
  const { waiting, running } = status.queue;
  const under = waiting + running;
  return ["ready", under ? `Ready, ${plural(under, "image")} under way` : "Ready, nothing waiting"];
}

function showVerdict(state, sentence) {
  byId("verdict").dataset.state = state;
  byId("verdict").textContent = sentence;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}`;

function noticeOf(notice) {
  if (!notice) return FOR_RESEARCH;
  return `${sentence(notice)}. ${/research use only/i.test(notice) ? "Not for diagnosis." : FOR_RESEARCH}`;
}

function aboutLine(bundle, status) {
  return [
    element("b", {}, bundle.name), ` · ${bundle.precision} on ${status.backend ?? "a backend being opened"} · `,
    `${GATE[bundle.gate] ?? `gate: ${bundle.gate}`} · bundle ${bundle.signature} · `,
    `up ${duration(status.uptime_seconds)}`];
}

function tiles(status) {
  const { queue, counts, latency_ms: latency, sinks } = status;
  const totals = latency.map(([, total]) => total);
  const ms = (percent) => {
    const value = percentile(totals, percent);
    return value === null ? ["\u2013", "too few images"] : [figure(value), "ms"];
  };
  const backlog = Object.values(sinks).reduce((sum, sink) => sum + sink.pending, 0);
  const shown = [
    ["waiting", count(queue.waiting), `of ${count(queue.limit)}`],
    ["running", count(queue.running), ""],
    ["done", count(counts.done ?? 0), ""],
    ["refused", count(counts.refused ?? 0), ""],
    ["latency, p50", ...ms(50)],
    ["latency, p99", ...ms(99)],
    ["results to deliver", count(backlog), ""],
    hottest(status.temperatures) ?? ["memory", figure(status.memory_mb), "MB"],
  ];
  return shown.map(([name, value, unit]) => element("div", {},
    element("dt", {}, name), element("dd", {}, value, " ", unit && element("small", {}, unit))));
}

function hottest(temperatures) {
  const values = Object.values(temperatures);
  return values.length ? ["hottest zone", figure(Math.max(...values)), "°C"] : null;
}

function sinkTable(sinks) {
  const names = Object.keys(sinks).sort();
  if (!names.length) return element("p", { class: "muted" }, "Results go into the ledger; there is no other sink.");
  const rows = names.map((name) => {
    const sink = sinks[name];
    return [sinkName(name, sink), count(sink.pending), count(sink.delivered), count(sink.failed)];
  });
  const errors = names.filter((name) => sinks[name].error)
    .map((name) => element("p", { class: "reason" }, `${name}: ${sinks[name].error}`));
  return [element("div", { class: "scroll" },
    table("Delivered and failed: since the daemon started", ["sink", "to deliver", "delivered", "failed"], rows)),
  ...errors];
}

function sinkName(name, sink) {
  const well = sink.pending ? "delivering" : "up to date";
  const [kind, state] = sink.error ? ["refused", "trying again"] : ["delivered", well];
  return element("span", { class: "sink" }, name, " ", element("span", { class: `badge ${kind}` }, state));
}

function machineTable(status) {
  const rows = [["memory of the daemon", status.memory_mb === null ? "unavailable" : `${figure(status.memory_mb)} MB`]];
  for (const [facts, what, unit] of [[status.temperatures, "temperature", "°C"], [status.power, "power", "W"]]) {
    const names = Object.keys(facts);
    if (!names.length) rows.push([what, "unavailable"]);
    rows.push(...names.map((name) => [`${what}, ${name}`, `${figure(facts[name])} ${unit}`]));
  }
  rows.push(["self-test", selfTest(status.self_test)]);
  rows.push(["pictures of done images", status.pictures ? "kept" : "not kept"]);
  return element("table", { class: "facts" },
    element("caption", {}, "As the kernel reports it; unavailable never means zero"),
    element("tbody", {}, ...rows.map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)))));
}

function selfTest(figures) {
  if (!figures) return "not yet run";
  const { max } = figures.difference;
  return `passed, ${max < 1e-4 ? max.toExponential(1) : max.toPrecision(2)} off at most`;
}

/** Shows all of `page`, the answer of v1/page, but its studies and latencies. */
export function showOverview({ version, bundle, status }) {
  showVerdict(...describeState(status));
  refresh(byId("about"), [bundle, status.backend, duration(status.uptime_seconds)], () => aboutLine(bundle, status));
  refresh(byId("notice"), bundle.notice, () => noticeOf(bundle.notice));
  byId("gate").hidden = bundle.gate !== "fail";
  refresh(byId("gate"), bundle.gate, () => GATE_FAILED);
  refresh(byId("tiles"), [status.queue, status.counts, status.latency_ms, status.sinks, status.temperatures,
    status.memory_mb], () => tiles(status));
  refresh(byId("sinks"), status.sinks, () => sinkTable(status.sinks));
  refresh(byId("machine"), [status.memory_mb, status.temperatures, status.power, status.self_test, status.pictures],
    () => machineTable(status));
  refresh(byId("version"), version, () => `mdconv-edge ${version} · times are those of this browser's time zone`);
}

export function showUnreachable(why, heardAt) {
  showVerdict("unreachable", "No news from the daemon");
  const last = heardAt ? `What is below is of ${clock(heardAt)}.` : "";
  refresh(byId("about"), [why, heardAt], () => `${sentence(why)}; this page goes on trying. ${last}`);
}

export function showLocked() {
  showVerdict("locked", "Locked");
  refresh(byId("about"), "locked", () => "The daemon answers only to those who have its token.");
}

export function clearOverview() {
  empty(...FILLED.map(byId));
  byId("notice").textContent = FOR_RESEARCH;
  byId("gate").hidden = true;
}
