// Talks to the daemon. The token, if it asks for one, lives in sessionStorage: this tab only, gone when it is closed.

const TOKEN = "edge-infer-token";
const PATIENCE_MS = 8000;
const NO_PICTURE = [404, 409, 422]; // none of this image, or not of this finding

/** The daemon wants a token, or another one. */
export class TokenError extends Error {}

/** The daemon does not answer, or not as this page needs; the message says how. */
export class DaemonError extends Error {}

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

async function get(path) {
  const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  let response;
  try {
    response = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch {
    throw new DaemonError("it does not answer");
  }
  if (response.status === 401) throw new TokenError();
  return response;
}

/** The JSON behind `path`. Throws TokenError, DaemonError. */
export async function getJson(path) {
  const response = await get(path);
  if (!response.ok) throw new DaemonError(`it answers with status ${response.status}`);
  try {
    return await response.json();
  } catch {
    throw new DaemonError("its answer broke off");
  }
}

/** The picture behind `path` as a blob; null if the daemon has none. Throws as getJson. */
export async function getPicture(path) {
  const response = await get(path);
  if (NO_PICTURE.includes(response.status)) return null;
  if (!response.ok) throw new DaemonError(`it answers with status ${response.status}`);
  return response.blob();
}
