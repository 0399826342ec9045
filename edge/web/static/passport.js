// The bundle's passport, fetched anew when another bundle is served.

import { getJson } from "./api.js";
import { byId, element } from "./dom.js";

let shown = null;

function section({ heading, lines }) {
  return element("details", {},
    element("summary", {}, element("b", {}, heading), " ", element("span", {}, lines[0])),
    element("ul", {}, ...lines.map((line) => element("li", {}, line))));
}

/** Shows the passport of the bundle with this hash. Throws TokenError, DaemonError. */
export async function showPassport(sha256) {
  if (shown === sha256) return;
  const found = await getJson("v1/page/passport");
  shown = found.sha256;
  byId("passport").replaceChildren(element("div", { class: "passport" }, ...found.sections.map(section)));
}

export function clearPassport() {
  shown = null;
  byId("passport").replaceChildren();
}
