// The picture of the study that is looked at: plain, or with the map of one finding.

import { getPicture, TokenError } from "./api.js";
import { byId } from "./dom.js";
import { clock, findingName, probability } from "./words.js";

const KEPT = 40; // pictures in this tab's memory

const urls = new Map(); // path -> address of the blob, oldest first
let wanted = null; // the path that is to be shown, once it is here
let shownId = null; // the study whose picture is on the page

async function load(path) {
  if (urls.has(path)) return urls.get(path);
  const blob = await getPicture(path);
  if (!blob) return null;
  urls.set(path, URL.createObjectURL(blob));
  if (urls.size > KEPT) {
    const [oldest, url] = urls.entries().next().value;
    URL.revokeObjectURL(url);
    urls.delete(oldest);
  }
  return urls.get(path);
}

function show(id, url, { alternative, caption }) {
  shownId = id;
  byId("image").src = url;
  byId("image").alt = alternative;
  byId("image").hidden = false;
  byId("no-image").textContent = "";
  byId("caption").textContent = caption;
}

function showNone(why) {
  shownId = null;
  const image = byId("image");
  image.removeAttribute("src");
  image.alt = "";
  image.hidden = true;
  byId("no-image").textContent = why;
  byId("caption").textContent = "";
}

function captions(study, finding) {
  const time = clock(study.time);
  if (!finding) return { alternative: `The radiograph of ${time}`, caption: "The image as the network saw it." };
  const found = study.findings[finding];
  const sentence = `${findingName(finding)}: probability ${probability(found.probability)}, `
    + (found.positive ? "positive" : "not positive");
  return {
    alternative: `The radiograph of ${time} with the heat map of ${sentence}`,
    caption: `${sentence}. The map shows what speaks for it, scaled to its own maximum: its colours say where, `
      + "not how much.",
  };
}

const WHY_NONE = {
  refused: "Refused: there is no picture.",
  done: "This daemon keeps no pictures: see pictures in [retention] of its settings.",
};

/** Shows the picture of `study`, with the map of `finding` if maps are switched on; none unless pictures are `kept`. */
export async function showPicture(study, finding, kept) {
  byId("map-bar").hidden = !(study.state === "done" && kept && finding);
  if (study.state !== "done" || !kept) {
    wanted = null;
    showNone(WHY_NONE[study.state] ?? "Not run yet.");
    return;
  }
  const mapped = byId("map").checked ? finding : null;
  const base = `v1/images/${encodeURIComponent(study.id)}`;
  const plain = `${base}/picture.png`;
  const path = mapped ? `${base}/overlay.png?finding=${encodeURIComponent(mapped)}` : plain;
  if (wanted === path) return;
  wanted = path;
  // One study's picture must never be seen beside another's findings.
  if (shownId !== study.id && !urls.has(path)) showNone("Fetching the picture.");
  try {
    const url = await load(path);
    const instead = url ? null : await load(plain);
    if (wanted !== path) return; // another one was chosen meanwhile
    if (url) show(study.id, url, captions(study, mapped));
    else if (instead) show(study.id, instead, captions(study, null));
    else showNone("No picture is kept of this study.");
  } catch (error) {
    if (wanted !== path) return;
    wanted = null; // tried again with the daemon's next answer
    if (!(error instanceof TokenError)) showNone("The picture could not be fetched.");
  }
}

export function clearPicture() {
  wanted = null;
  for (const url of urls.values()) URL.revokeObjectURL(url);
  urls.clear();
  showNone("");
}
