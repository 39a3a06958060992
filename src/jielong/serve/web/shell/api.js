/** The server: JSON, streams of server-sent events, and what to say when it does not answer. */
import { el, iconButton } from './dom.js';
import { say } from './words.js';

/** What the server said no to. status: HTTP status, 0 when it could not be reached. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const KEY = 'jielong-key';
let asked = null;

/** Whether this tab sends a key. */
export const holdsKey = () => sessionStorage.getItem(KEY) !== null;

function headers(hasBody) {
  const key = sessionStorage.getItem(KEY);
  return { ...(hasBody ? { 'content-type': 'application/json' } : {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

/** The answer to a request, its status good. Asks for the key once when the server wants one. */
export async function request(path, { method = 'GET', body, signal, keepalive } = {}) {
  let reply;
  try {
    reply = await fetch(path, {
      method, signal, keepalive, headers: headers(body !== undefined), cache: 'no-store',
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    showBanner();
    throw new ServerError(0, say('serverGone'));
  }
  hideBanner();
  if (reply.status === 401) {
    await askForKey();
    return request(path, { method, body, signal, keepalive });
  }
  if (!reply.ok) throw new ServerError(reply.status, await reason(reply));
  return reply;
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

export async function send(method, path, body, options = {}) {
  const reply = await request(path, { method, body, ...options });
  return reply.status === 204 ? null : reply.json();
}

/** Said in the reader's own language: what the server finds too long. */
const TOO_LONG = { context_length_exceeded: 'tooLong', too_long_for_one: 'tooLongForOne' };

async function reason(reply) {
  if (reply.status === 413) return say('tooLarge');
  try {
    const found = await reply.json();
    if (found.error?.code in TOO_LONG) return say(TOO_LONG[found.error.code]);
    return found.error?.message ?? found.detail ?? `HTTP ${reply.status}`;
  } catch {
    return `HTTP ${reply.status}`;
  }
}

/**
 * The events of a stream, each parsed; ends at [DONE]. An event with an error raises it; so does a stream that breaks
 * off before its end, for what it would have said is not known.
 */
export async function* stream(path, body, signal) {
  const reply = await request(path, { method: 'POST', body, signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await next(reader);
    if (done) throw new ServerError(0, say('brokeOff'));
    rest += value;
    const events = rest.split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith('data:')).map((line) => line.slice(5).trimStart());
      if (!data.length) continue;
      if (data[0].startsWith('[DONE]')) {
        while (!(await next(reader)).done) { /* so that the browser does not take the rest for broken off */ }
        return;
      }
      const found = JSON.parse(data.join('\n'));
      if (found.error) throw new ServerError(500, found.error.message ?? String(found.error));
      yield found;
    }
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    showBanner();
    throw new ServerError(0, say('brokeOff'));
  }
}

let retry = 0;

/** The server cannot be reached: says so, and looks again every two seconds until it answers. */
function showBanner() {
  const banner = document.getElementById('banner');
  if (!banner.hidden) return;
  banner.replaceChildren(el('span', { t: 'serverGone' }), el('button', { type: 'button', t: 'tryAgain', on: { click: look } }));
  banner.hidden = false;
  retry = setInterval(look, 2000);
}

async function look() {
  try {
    await fetch('/health', { cache: 'no-store' });
    hideBanner();
    dispatchEvent(new CustomEvent('server-back'));
  } catch { /* still gone */ }
}

function hideBanner() {
  clearInterval(retry);
  document.getElementById('banner').hidden = true;
}

/** Asks for the API key in a dialog; it is kept for this tab alone. Several requests wait for one answer. */
function askForKey() {
  asked ??= new Promise((resolve) => {
    const input = el('input', { type: 'password', name: 'key', autocomplete: 'off', required: true, tLabel: 'apiKey' });
    const form = el('form', { method: 'dialog' },
      el('h2', { t: 'apiKey' }), el('p', { class: 'mute', t: 'apiKeyWhy' }), input, el('button', { class: 'primary', t: 'enter' }));
    const dialog = el('dialog', { class: 'ask' }, form);
    document.body.append(dialog);
    dialog.addEventListener('close', () => {
      if (!input.value) return dialog.showModal();
      sessionStorage.setItem(KEY, input.value);
      dialog.remove();
      asked = null;
      return resolve();
    });
    dialog.showModal();
  });
  return asked;
}

/**
 * What GET /api/page says of each model. null when it cannot be told: then the trouble stands in `host`, with a button that
 * begins anew.
 */
export async function modelsOf(app, host, begin) {
  try {
    return (await app.about()).models;
  } catch (error) {
    host.replaceChildren(trouble(error, () => { host.replaceChildren(); begin(); }));
    return null;
  }
}

/** A message where something was to stand, with a button that tries again when there is a way to. */
export function trouble(error, again) {
  return el('div', { class: 'trouble', role: 'alert' }, el('p', {}, error.message),
    again ? iconButton('again', 'tryAgain', again) : null);
}
