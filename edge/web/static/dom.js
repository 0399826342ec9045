// Builds nodes. Text is only ever set as text, so nothing that the daemon says can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const element = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svgElement = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

const shown = new WeakMap();

/** Puts what `make` returns into `node`, but only if `facts` differ from those of the last time. */
export function refresh(node, facts, make) {
  const key = JSON.stringify(facts);
  if (shown.get(node) === key) return;
  shown.set(node, key);
  node.replaceChildren(...[make()].flat().filter(Boolean));
}

/** Takes the content out of nodes that `refresh` fills. */
export function empty(...nodes) {
  for (const node of nodes) refresh(node, null, () => null);
}

/** A table: the first column names the row; `figures` says from which column on the cells are figures. */
export function table(caption, head, rows, figures = 1) {
  const align = (i) => (i >= figures ? "n" : null);
  const top = head.map((name, i) => element("th", { scope: "col", class: align(i) }, name));
  const body = rows.map(([name, ...cells]) =>
    element("tr", {}, element("th", { scope: "row" }, name),
      ...cells.map((cell, i) => element("td", { class: align(i + 1) }, cell))));
  return element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...top)),
    element("tbody", {}, ...body));
}
