// Asks the daemon for its state every second while the page is looked at, and shows what it says.

import { DaemonError, getJson, token, TokenError } from "./api.js";
import { byId, empty } from "./dom.js";
import { clearOverview, describeState, showLocked, showOverview, showUnreachable } from "./overview.js";
import { clearPassport, showPassport } from "./passport.js";
import { showLatency } from "./plot.js";
import { clearStudies, showStudies, spoken, startStudies } from "./studies.js";
import { clock } from "./words.js";

const EVERY_MS = 1000;
const RETRY_MS_AT_MOST = 10000;
const NEWS_MS = 5000; // between two announcements: a screen reader must get to the end of one

let timer = null;
let polling = false;
let failures = 0;
let heardAt = null;
let page = null;
let lastState = null;
let finished = null; // ids of the finished studies that were announced
let unspoken = [];
let spokenAt = 0;

async function poll() {
  clearTimeout(timer);
  if (polling || document.hidden) return;
  polling = true;
  try {
    show(await getJson("v1/page"));
    await showPassport(page.bundle.sha256);
    failures = 0;
    schedule(EVERY_MS);
  } catch (error) {
    if (error instanceof TokenError) {
      askForToken();
    } else {
      if (!(error instanceof DaemonError)) console.error(error); // a mistake of this page
      unreachable(error);
    }
  } finally {
    polling = false;
  }
}

function schedule(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(poll, milliseconds);
}

function show(answer) {
  page = answer;
  heardAt = Date.now();
  byId("token-form").hidden = true;
  byId("live").hidden = false;
  byId("live").classList.remove("stale");
  byId("forget").hidden = !token.get();
  showOverview(page);
  showStudies(page.studies, page.bundle, page.status.pictures);
  showLatency(byId("plot"), byId("latency-table"), page.status.latency_ms);
  announce([...stateNews(describeState(page.status)[0]), ...studyNews(page.studies)]);
}

function unreachable(error) {
  failures += 1;
  byId("live").classList.add("stale");
  showUnreachable(error.message, heardAt);
  announce(stateNews("unreachable"));
  schedule(Math.min(EVERY_MS * 2 ** (failures - 1), RETRY_MS_AT_MOST));
}

/** Tells those who hear the page. */
function announce(news) {
  if (news.length) byId("news").textContent = news.join(". ");
}

function stateNews(state) {
  const changed = lastState !== null && state !== lastState;
  lastState = state;
  return changed ? [byId("verdict").textContent] : [];
}

/** One sentence on the studies that were finished since the last one, no more often than one can listen. */
function studyNews(studies) {
  const now = studies.filter((study) => study.state === "done" || study.state === "refused");
  if (finished) unspoken.unshift(...now.filter((study) => !finished.has(study.id)));
  finished = new Set(now.map((study) => study.id));
  if (!unspoken.length || Date.now() - spokenAt < NEWS_MS) return [];
  const [last] = unspoken;
  const lead = unspoken.length === 1 ? "New study" : `${unspoken.length} new studies, the last`;
  unspoken = [];
  spokenAt = Date.now();
  return [`${lead} at ${clock(last.time)}, ${spoken(last)}`];
}

function askForToken() {
  clearTimeout(timer);
  tokenError(token.get() ? "The daemon did not accept this token: check it, and type it again." : "");
  token.forget();
  [page, heardAt, lastState, finished, unspoken] = [null, null, null, null, []];
  byId("live").hidden = true;
  empty(byId("plot"), byId("latency-table"), byId("news"));
  clearOverview();
  clearStudies();
  clearPassport();
  showLocked();
  byId("token-form").hidden = false;
  byId("token").focus();
}

function tokenError(text) {
  byId("token-error").textContent = text;
}

function takeToken(event) {
  event.preventDefault();
  const typed = byId("token").value.trim();
  byId("token").value = "";
  if (!/^[\x21-\x7e]+$/.test(typed)) { // else no header can carry it
    tokenError("A token has letters, digits and signs of ASCII only, and no blanks: type it again.");
    return;
  }
  token.set(typed);
  poll();
}

function start() {
  startStudies();
  byId("token-form").addEventListener("submit", takeToken);
  byId("forget").addEventListener("click", () => {
    token.forget();
    poll();
  });
  document.addEventListener("visibilitychange", poll);
  window.addEventListener("online", poll);
  new ResizeObserver(() => page && showLatency(byId("plot"), byId("latency-table"), page.status.latency_ms))
    .observe(byId("plot"));
  poll();
}

start();
