// The last studies: the list, newest first, and the one that is looked at.

import { byId, element, empty, refresh } from "./dom.js";
import { clock, figure, findingName, probability } from "./words.js";
import { clearPicture, showPicture } from "./picture.js";

const STATES = { received: "waiting", running: "running", refused: "refused" };
const TOP = 3;
const ORIGINS = { dicom: "DICOM", folder: "folder", http: "HTTP", video: "video" };

const rows = new Map(); // of the list, by the study's id
let studies = [];
let served = { thresholds: {} }; // the bundle that new images are run with
let kept = false; // whether the daemon keeps pictures
let chosen = null; // the study that is looked at; it stays when the list has moved on
let finding = null; // whose map is shown

const when = (study) => study.time ?? study.received;

/** [label, {probability, positive}] of a study, positive findings first, then by probability. */
function ranked(study) {
  return Object.entries(study.findings ?? {}).sort(([, a], [, b]) =>
    b.positive - a.positive || b.probability - a.probability);
}

const positives = (study) => ranked(study).filter(([, found]) => found.positive);

function badge(study) {
  if (study.state !== "done") return [study.state, STATES[study.state] ?? study.state];
  const number = positives(study).length;
  return number ? ["positive", `${number} positive`] : ["negative", "none positive"];
}

function summary(study) {
  if (study.state === "refused") return [study.reason ?? ""];
  if (study.state !== "done") return ["no result yet"];
  const top = ranked(study).slice(0, TOP);
  return top.flatMap(([label, found], i) => [i ? " · " : null,
    element(found.positive ? "b" : "span", {}, `${findingName(label)} ${probability(found.probability)}`)]);
}

/** What is said of a study to those who hear the page. */
export function spoken(study) {
  if (study.state === "refused") return `refused: ${study.reason}`;
  const found = positives(study).slice(0, TOP)
    .map(([label, one]) => `${findingName(label)} ${probability(one.probability)}`);
  return found.length ? `positive: ${found.join(", ")}` : "no finding positive";
}

function makeRow(study, isNew) {
  const input = element("input", { type: "radio", name: "study", value: study.id });
  const content = element("span");
  const row = element("li", { class: isNew ? "new" : null }, element("label", {}, input, content));
  input.addEventListener("change", () => {
    byId("follow").checked = false;
    choose(studies.find((each) => each.id === study.id));
  });
  rows.set(study.id, { row, input, content });
  return rows.get(study.id);
}

function showList(fresh) {
  const list = byId("list");
  const first = rows.size === 0;
  fresh.forEach((study, i) => {
    const { row, content } = rows.get(study.id) ?? makeRow(study, !first);
    const [kind, text] = badge(study);
    refresh(content, study, () => [
      element("span", { class: "when" }, element("time", { datetime: when(study) }, clock(when(study))), " ",
        element("span", { class: `badge ${kind}` }, text)), " ",
      element("span", { class: "what" }, ...summary(study))]);
    if (list.children[i] !== row) list.insertBefore(row, list.children[i] ?? null);
  });
  const listed = new Set(fresh.map((study) => study.id));
  for (const [id, { row }] of rows) {
    if (!listed.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
}

function choose(study) {
  if (!study) return;
  if (chosen?.id !== study.id || chosen.state !== study.state) finding = ranked(study)[0]?.[0] ?? null;
  chosen = study;
  if (rows.has(study.id)) rows.get(study.id).input.checked = true;
  const marks = served.sha256 === study.bundle ? served.thresholds : {};
  refresh(byId("detail"), [study, marks], () => [
    element("h3", {}, `Study of ${clock(when(study))}`),
    element("p", { class: "meta" }, about(study)),
    guard(study),
    study.state === "refused" ? element("p", { class: "reason" }, study.reason) : null,
    study.findings ? findingList(study, marks) : null]);
  showPicture(study, mapped(study), kept);
}

function about(study) {
  const parts = [ORIGINS[study.origin] ?? study.origin, study.source, `id ${study.id.slice(0, 8)}`];
  if (study.total_ms) parts.push(`${figure(study.total_ms)} ms`);
  if (study.bundle && study.bundle !== served.sha256) parts.push(`by another bundle, ${study.bundle.slice(0, 8)}`);
  if (study.gate === "fail") parts.push("by a bundle that failed its gate");
  return parts.filter(Boolean).join(" · ");
}

/** What the guard said of an image that it let pass; why it refused one is the study's reason. */
function guard(study) {
  const verdict = study.guard;
  if (!verdict || verdict.refused) return null;
  if (verdict.off) {
    return element("p", { class: "reason" }, "The guard was off: this may be no chest radiograph at all.");
  }
  const limit = verdict.threshold === null ? "no limit is set" : `at most ${figure(verdict.threshold)} is let pass`;
  return element("p", { class: "meta" }, `Guard: ${figure(verdict.score)} from the calibration images, ${limit}`);
}

function findingList(study, marks) {
  const items = ranked(study).map(([label, found]) => {
    const input = element("input", { type: "radio", name: "finding", value: label, checked: label === finding });
    input.addEventListener("change", () => {
      byId("follow").checked = false;
      finding = label;
      showPicture(study, mapped(study), kept);
    });
    const track = element("span", { class: label in marks ? "track marked" : "track", "aria-hidden": "true" });
    track.style.setProperty("--share", found.probability);
    track.style.setProperty("--threshold", marks[label] ?? 0);
    return element("label", { class: found.positive ? "finding is-positive" : "finding" }, input,
      element("span", { class: "name" }, element("b", {}, findingName(label)), " ",
        found.positive ? element("span", { class: "badge positive" }, "positive") : null),
      " ", element("span", { class: "p" }, probability(found.probability)), track);
  });
  return element("fieldset", {}, element("legend", {}, "Probability of each finding; the map shown is of"), ...items);
}

/** The finding whose map is asked for: none of a study by the served bundle, if that has no maps. */
const mapped = (study) => (study.bundle === served.sha256 && !served.maps ? null : finding);

/** Shows the studies, newest first, of a daemon that serves `bundle`; `pictures` says whether it keeps them. */
export function showStudies(fresh, bundle, pictures) {
  [studies, served, kept] = [fresh, bundle, pictures];
  byId("no-studies").hidden = fresh.length > 0;
  byId("viewer").hidden = fresh.length === 0 && !chosen;
  showList(fresh);
  showChosen();
}

function showChosen() {
  if (byId("follow").checked || !chosen) choose(studies.find((study) => study.state === "done") ?? studies[0]);
  else choose(studies.find((study) => study.id === chosen.id) ?? chosen);
}

export function startStudies() {
  byId("follow").addEventListener("change", showChosen);
  byId("map").addEventListener("change", () => chosen && showPicture(chosen, mapped(chosen), kept));
}

/** Takes everything of patients off the page. */
export function clearStudies() {
  [studies, chosen, finding] = [[], null, null];
  rows.clear();
  byId("list").replaceChildren();
  empty(byId("detail"));
  clearPicture();
}
