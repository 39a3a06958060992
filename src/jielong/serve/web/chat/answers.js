/** An answer as it comes from the server: pieces of text with the tokens behind them. */
import { stream } from '../shell/api.js';

export const NUM_TOP = 5;

/**
 * @param {object[]} messages @param {import('./settings.js').Sampling} sampling
 * @param {{id: string, odds: boolean}} model odds: whether the server tells the chances of tokens
 * @returns {object} the body of POST /v1/chat/completions
 */
export function chatBody(messages, sampling, { id, odds }) {
  const wanted = odds ? { logprobs: true, top_logprobs: NUM_TOP, return_token_ids: true } : {};
  return { model: id, messages, ...sampling, ...wanted, stream: true, stream_options: { include_usage: true } };
}

/**
 * Streams an answer. on.piece(span) comes with every piece of text; a token that completes no character waits for the
 * one that does. Returns {finish, usage} at the end; an abort of `signal` gives finish "stopped".
 * @param {{path: string, body: object}} asked
 * @param {{piece: (span: import('./tree.js').Span) => void}} on
 */
export async function answer(asked, on, signal) {
  const cutter = new Cutter();
  const ids = []; // of all tokens so far; their odds may come later, but in the same order
  let told = 0;
  const result = { finish: null, usage: null };
  try {
    for await (const chunk of stream(asked.path, asked.body, signal)) {
      if (chunk.usage) result.usage = chunk.usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      if (choice.finish_reason) result.finish = choice.finish_reason;
      const text = choice.delta?.content ?? '';
      ids.push(...(choice.token_ids ?? []));
      const entries = (choice.logprobs?.content ?? []).map((one, place) => entryOf(one, ids[told + place] ?? null));
      told += entries.length;
      for (const span of cutter.take(text, entries)) on.piece(span);
    }
  } catch (error) {
    if (error.name !== 'AbortError') throw error;
    result.finish = 'stopped';
  }
  return result;
}

/** Entry of tree.js from one of the API's. */
function entryOf({ token, logprob, bytes, top_logprobs: top }, id) {
  const alternatives = (top ?? []).map((one) => (spelled(one) ? [one.token, round(one.logprob)] : [one.token, round(one.logprob), one.bytes]));
  return spelled({ token, bytes }) ? [token, round(logprob), alternatives, id] : [token, round(logprob), alternatives, id, bytes];
}

const encoder = new TextEncoder();
const round = (logprob) => Math.round(logprob * 1e4) / 1e4;

/** Whether a token's text says its bytes. */
function spelled({ token, bytes }) {
  if (!bytes) return true;
  const plain = encoder.encode(token);
  return plain.length === bytes.length && plain.every((byte, place) => byte === bytes[place]);
}

/**
 * Cuts text by the tokens behind it, however they come: a server ahead of its reader sends several together. A span for
 * each token that completes a character; what completes none waits, across events too. Where the tokens do not spell
 * the text, as where a stop word was cut away, the rest of the event is one span.
 */
export class Cutter {
  constructor() {
    this.ready = []; // spans whose tokens are here and whose text may yet come
    this.begin();
  }

  begin() {
    this.waiting = []; // tokens behind the last whole character
    this.decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  }

  /** @returns {import('./tree.js').Span[]} */
  take(text, entries) {
    for (const entry of entries) {
      this.waiting.push(entry);
      const said = this.decoder.decode(entry[4] ? new Uint8Array(entry[4]) : encoder.encode(entry[0]), { stream: true });
      if (said) { this.ready.push([said, this.waiting]); this.waiting = []; }
    }
    const spans = [];
    let rest = text;
    while (this.ready.length && rest.startsWith(this.ready[0][0])) {
      const span = this.ready.shift();
      spans.push(span);
      rest = rest.slice(span[0].length);
    }
    if (rest) {
      spans.push([rest, [...this.ready.splice(0).flatMap(([, each]) => each), ...this.waiting]]);
      this.begin();
    }
    return spans;
  }
}

/** The chance of a span: of all its tokens together. 1 when nothing is known. */
export function chance([, entries]) {
  return Math.exp(entries.reduce((sum, [, logprob]) => sum + logprob, 0));
}

/** A token as people read it: blanks and line ends become visible. */
export function visible(token) {
  return token.replace(/ /g, '␣').replace(/\n/g, '↵').replace(/\t/g, '⇥') || '∅';
}

/** What POST /api/branches wants of a token that is already said. */
export function prefixToken([token, , , id, bytes]) {
  if (id !== null && id !== undefined) return { id };
  return bytes ? { bytes } : { text: token };
}

/**
 * How many messages at the beginning of a path are certainly beyond the model's sight: a token has mostly fewer than 16
 * characters. They need not even be sent; the server says how many more must go.
 */
export function beyondSight(path, context) {
  let room = 16 * context;
  let first = path.length - 1;
  for (; first > 0; first -= 1) { room -= path[first - 1].content.length; if (room < 0) break; }
  return first - (first % 2); // questions and answers go in pairs
}

export const numTokens = (spans) => spans.reduce((sum, [, entries]) => sum + Math.max(1, entries.length), 0);

/** Tokens a second since the first of them, which itself took no time here. began: milliseconds. */
export function speedOf(tokens, began) {
  const seconds = (performance.now() - began) / 1000;
  return seconds > 0.005 ? Math.round(10 * Math.max(tokens - 1, 0) / seconds) / 10 : 0;
}

/** Spans of an answer that another model has written, whose numbers mean nothing here: the words alone are left. */
export function withoutIds(spans) {
  return spans.map(([text, entries]) => [text, entries.map(([said, logprob, top, , ...bytes]) => [said, logprob, top, null, ...bytes])]);
}
