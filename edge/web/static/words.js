// Figures and times, as a reader wants them.

const DASH = "\u2013";
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit" };

/** Three significant digits, thousands grouped; a dash for null. */
export function figure(value) {
  if (value === null || value === undefined) return DASH;
  if (value === 0) return "0";
  const digits = Math.max(0, Math.min(4, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export const count = (value) => value.toLocaleString("en");

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Two digits are what a probability is good for; none is rounded to certainty. */
export function probability(value) {
  if (value >= 0.995) return ">0.99";
  return value < 0.005 ? "<0.01" : value.toFixed(2);
}

/** A finding's label as text: the underscores are the data set's. */
export const findingName = (label) => label.replaceAll("_", " ");

/** The reader's own time of day; with the date where that is not today's. `when` is ISO 8601 or milliseconds. */
export function clock(when) {
  const date = new Date(when);
  const time = date.toLocaleTimeString("en-GB", CLOCK);
  if (date.toDateString() === new Date().toDateString()) return time;
  return `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
}

/** Seconds in the two largest units that fit. */
export function duration(seconds) {
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

/** The nearest-rank percentile, as in the latency report; null where too few values support it. */
export function percentile(values, percent) {
  if (values.length === 0 || values.length < 100 / (100 - percent)) return null;
  const ordered = Float64Array.from(values).sort();
  return ordered[Math.ceil((percent * ordered.length) / 100) - 1];
}
