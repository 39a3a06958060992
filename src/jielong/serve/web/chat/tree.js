/**
 * A conversation as a tree. A message is never changed: editing it, or asking again, adds a sibling.
 *
 * @typedef {[text: string, entries: Entry[]]} Span what was shown at once, and the tokens behind it: mostly one, more
 *   where a character took several
 * @typedef {[text: string, logprob: number, top: [string, number, number[]?][], id: number | null, bytes?: number[]]} Entry
 *   id: null where it is not known; bytes: where the text does not tell them, as in half a character
 * @typedef {{id: string, parent: string, role: 'user' | 'assistant', content: string, note: Record<string, any>,
 *   spans?: Span[] | null}} Message spans: null when there are none, undefined while the server may have some
 */

/** 128 random bits as hex. crypto.randomUUID is missing where a page comes over http from another machine. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export class Tree {
  /** @param {Message[]} messages parents before children */
  constructor(messages = []) {
    this.messages = new Map();
    this.children = new Map();
    for (const message of messages) this.add(message);
  }

  add(message) {
    if (this.messages.has(message.id)) return;
    this.messages.set(message.id, message);
    const siblings = this.children.get(message.parent);
    if (siblings) siblings.push(message.id); else this.children.set(message.parent, [message.id]);
  }

  /** From the first message down to this one. */
  path(leaf) {
    const found = [];
    for (let at = this.messages.get(leaf); at; at = this.messages.get(at.parent)) found.push(at);
    return found.reverse();
  }

  /** The ids beside a message, itself included, oldest first. */
  siblings(id) {
    return this.children.get(this.messages.get(id).parent);
  }

  /** Where a branch ends: down from a message, always to the newest answer. */
  leafUnder(id) {
    for (let at = id; ;) {
      const children = this.children.get(at);
      if (!children) return at;
      at = children.at(-1);
    }
  }
}

/** Messages as the API wants them. */
export function spoken(path, system) {
  const turns = path.map(({ role, content }) => ({ role, content }));
  return system ? [{ role: 'system', content: system }, ...turns] : turns;
}

/** A branch as a text that people read. */
export function asMarkdown(title, path, names) {
  const turns = path.map(({ role, content }) => `**${names[role]}**\n\n${content}\n`);
  return `# ${title}\n\n${turns.join('\n')}`;
}
