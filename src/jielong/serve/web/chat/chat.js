/** The chat: a conversation that is kept, streamed, branched, looked into and compared. */
import { announce, el } from '../shell/dom.js';
import { getJson, modelsOf, request, send } from '../shell/api.js';
import { say } from '../shell/words.js';
import { answer, beyondSight, chatBody, NUM_TOP, numTokens, prefixToken, speedOf, withoutIds } from './answers.js';
import { Composer } from './composer.js';
import { Models } from './models.js';
import { Settings, translates } from './settings.js';
import { Sidebar } from './sidebar.js';
import { noteText, Thread } from './thread.js';
import { TokenCard } from './tokens.js';
import { newId, spoken, Tree } from './tree.js';
import { welcome } from './welcome.js';

export async function mount(host, app) {
  const chat = new Chat(host, app);
  await chat.begin();
  return { show: () => chat.look(), hide: () => chat.card?.close() };
}

class Chat {
  constructor(host, app) {
    this.host = host;
    this.app = app;
    this.conversation = null; // {id, title, system}; null before the first message
    this.tree = new Tree();
    this.leaf = '';
    this.sight = { parent: '', dropped: 0 }; // how many turns were left out for the answer to this message
    this.goOn = null; // keeps the answers that were voted on, as a press of "Go on" does
    this.running = null; // AbortController of the answer that is being written
  }

  async begin() {
    const served = await modelsOf(this.app, this.host, () => this.begin());
    if (!served) return;
    this.models = new Models(served);
    this.sidebar = new Sidebar({
      open: (id) => this.open(id), fresh: () => this.fresh(), changed: () => this.refresh(),
      gone: (id) => { if (this.conversation?.id === id) this.fresh(); this.refresh(); },
    });
    this.settings = new Settings({ model: { ...served[0], context: this.models.context }, onRole: (system) => this.role(system) });
    this.thread = new Thread({
      again: (message) => this.again(message), edit: (message, text) => this.ask(text, message.parent),
      turn: (id) => this.turn(id), inspect: (message) => this.inspect(message), spansOf: (message) => this.spansOf(message),
    });
    this.card = new TokenCard(this.thread.host, {
      spansOf: (node) => this.spansAt(node.closest('.message')),
      onBranch: translates(served[0]) ? null : (...where) => this.branch(...where),
    });
    this.build();
    await this.refresh();
    const wanted = location.hash.slice(1);
    if (/^[0-9a-f]{8,}$/.test(wanted)) await this.open(wanted); else this.fresh(false);
    for (const event of ['focus', 'server-back']) addEventListener(event, () => this.look());
    addEventListener('keydown', (event) => { if (event.key === 'Escape' && this.running && !this.host.hidden) this.stop(); });
    addEventListener('hashchange', () => { const id = location.hash.slice(1); if (!this.host.hidden && id && id !== this.conversation?.id) this.open(id); });
  }

  build() {
    this.composer = new Composer({ models: this.models, settings: this.settings, sidebar: this.sidebar, acts: {
      submit: (text) => this.submit(text), stop: () => this.stop(), colours: (on) => this.thread.setColours(on), answering: () => { if (!this.tree.messages.size) this.greet(); },
    } });
    this.welcome = el('div', { class: 'welcome' });
    this.host.append(this.sidebar.host, this.sidebar.scrim,
      el('section', { class: 'middle', tLabel: 'chat' }, el('h1', { class: 'sr', t: 'chat' }), this.thread.host, this.welcome, this.composer.host),
      this.settings.host);
  }

  /** The list of conversations, anew. */
  async refresh() {
    try {
      const { conversations } = await getJson('/api/conversations');
      this.sidebar.show(conversations, this.conversation?.id);
    } catch { /* the banner says it */ }
  }

  /** What another window added to this conversation. */
  async look() {
    if (this.running || !this.conversation) return;
    await this.refresh();
    try {
      const found = await getJson(`/api/conversations/${this.conversation.id}`);
      if (this.running || found.messages.length === this.tree.messages.size) return;
      const atEnd = this.tree.leafUnder(this.leaf || '') === this.leaf;
      for (const message of found.messages) this.tree.add(message);
      if (atEnd) this.leaf = found.leaf;
      this.draw();
    } catch (error) {
      if (error.status === 404) this.fresh();
    }
  }

  fresh(focus = true) {
    this.stop();
    this.conversation = null;
    this.tree = new Tree();
    this.leaf = '';
    this.address('');
    this.draw();
    this.sidebar.show(this.sidebar.items, null);
    if (focus || !matchMedia('(pointer: coarse)').matches) this.composer.focus();
  }

  /** The conversation in the address, when the chat is what is shown. */
  address(id) {
    if (!this.host.hidden) history.replaceState(null, '', id && `/#${id}` || '/');
  }

  async open(id) {
    this.stop();
    try {
      const { messages, ...conversation } = await getJson(`/api/conversations/${id}`);
      this.conversation = conversation;
      this.tree = new Tree(messages);
      this.leaf = this.tree.messages.has(conversation.leaf) ? conversation.leaf : messages.at(-1)?.id ?? '';
      this.address(id);
      this.settings.show(conversation.system);
      this.draw();
      this.sidebar.show(this.sidebar.items, id);
    } catch (error) {
      this.fresh();
      if (error.status === 404) announce(error.message);
    }
  }

  draw() {
    const path = this.tree.path(this.leaf);
    const forgotten = path.some(({ id }) => id === this.sight.parent) ? this.sight.dropped : 0;
    this.welcome.hidden = path.length > 0;
    this.thread.host.hidden = !path.length;
    this.thread.show(path, this.tree, this.conversation?.system ?? '', forgotten);
    if (!path.length) this.greet();
    if (this.thread.colours) this.thread.setColours(true);
  }

  greet() {
    this.welcome.replaceChildren(...welcome(this.models.writers[0], this.settings.system.value, (text) => this.ask(text, this.leaf)));
  }

  /** A new system message: of this conversation when nothing was said in it yet, else of a new one. */
  async role(system) {
    this.settings.show(system);
    if (this.tree.messages.size) this.fresh();
    this.greet();
  }

  /** A message under what is shown last; beside a question that has got no answer, for no two questions follow each other. */
  async submit(text) {
    if (this.running || !this.models.writers[0].chats) return;
    this.composer.take();
    if (this.goOn && !await this.goOn()) { this.composer.put(text); return; }
    const last = this.tree.messages.get(this.leaf);
    this.ask(text, last?.role === 'user' ? last.parent : this.leaf);
  }

  stop() { this.running?.abort(); }

  turn(id) {
    this.leaf = this.tree.leafUnder(id);
    this.draw();
    this.keepLeaf();
  }

  async keepLeaf() {
    await send('PATCH', `/api/conversations/${this.conversation.id}`, { leaf: this.leaf }).catch(() => {}); // only which branch is shown next time
  }

  /** A question under `parent`, and its answer. */
  async ask(text, parent) {
    if (this.running) return;
    this.running = new AbortController(); // at once: a second press of Enter sends nothing
    try {
      if (!this.conversation) await this.create(text);
      await this.keep({ id: newId(), parent, role: 'user', content: text, note: {}, spans: null });
      this.draw();
    } catch (error) {
      this.running = null;
      if (!this.tree.messages.size) this.conversation = null;
      this.composer.put(text);
      this.welcome.hidden = true;
      this.thread.host.hidden = false;
      this.thread.fail(error, () => this.composer.submit());
      return;
    }
    await this.reply(this.leaf);
  }

  async create(text) {
    const title = text.replace(/\s+/g, ' ').slice(0, 60);
    const system = this.settings.system.value.trim() ? this.settings.system.value : '';
    this.conversation = { id: newId(), title, system };
    await send('POST', '/api/conversations', { id: this.conversation.id, title, system });
    this.address(this.conversation.id);
    this.refresh();
  }

  /** Writes a message to the server and into the tree. */
  async keep(message) {
    const { spans, ...record } = message;
    await send('POST', `/api/conversations/${this.conversation.id}/messages`, { ...record, tokens: spans ?? null });
    this.tree.add(message);
    this.leaf = message.id;
  }

  again(message) {
    if (this.running) return;
    this.running = new AbortController();
    this.leaf = message.parent;
    this.draw();
    this.reply(message.parent);
  }

  /**
   * An answer under the question `parent`. begun: spans that it begins with, when it branches off another answer.
   * writers: who answers. The oldest turns are left out where a context is too small for all; a line says so.
   */
  async reply(parent, begun = [], writers = this.models.writers) {
    const controller = this.running;
    this.composer.busy(true);
    const path = this.tree.path(parent);
    const sampling = this.settings.sampling();
    const twice = this.models.comparing && !begun.length;
    try {
      const unseen = beyondSight(path, Math.min(...writers.map(({ context }) => context)));
      const messages = spoken(path.slice(unseen), this.conversation.system);
      const fit = await send('POST', '/api/fit', { messages, models: writers.map(({ id }) => id), max_tokens: sampling.max_tokens }, { signal: controller.signal });
      const dropped = unseen + fit.dropped;
      this.sight = { parent, dropped };
      if (dropped) this.draw();
      const kept = spoken(path.slice(dropped), this.conversation.system);
      if (twice) await this.replyTwice(parent, { messages: kept, sampling, models: writers }, controller);
      else await this.replyOnce(parent, kept, sampling, controller, begun, writers[0]);
    } catch (error) {
      if (error.name !== 'AbortError') this.thread.fail(error, () => { if (!this.running) { this.running = new AbortController(); this.reply(parent, begun, begun.length ? writers : undefined); } });
    } finally {
      if (this.running === controller) { this.running = null; this.composer.busy(false); }
      this.refresh();
    }
  }

  async replyOnce(parent, messages, sampling, controller, begun, model) {
    const { conversation } = this;
    const written = this.thread.begin();
    const began = performance.now();
    let first = 0;
    const piece = (span) => {
      first ||= performance.now();
      written.spans.push(span);
      written.markdown.push(span[0]);
      const count = numTokens(written.spans) - numTokens(begun);
      if (count % 8 === 1) written.note(noteText({ model: model.name, tokens: count, speed: speedOf(count, first) }));
    };
    for (const span of begun) { written.spans.push(span); written.markdown.push(span[0]); }
    const asked = begun.length
      ? { path: '/api/branches', body: { model: model.id, messages, prefix: begun.flatMap(([, entries]) => entries.map(prefixToken)), logprobs: true, top_logprobs: NUM_TOP, ...sampling } }
      : { path: '/v1/chat/completions', body: chatBody(messages, sampling, model) };
    try {
      const { finish, usage } = await answer(asked, { piece }, controller.signal);
      const tokens = usage?.completion_tokens ?? numTokens(written.spans) - numTokens(begun);
      const note = { model: model.name, tokens, speed: speedOf(tokens, first || began), finish, seed: sampling.seed, temperature: sampling.temperature };
      written.markdown.flush();
      await this.settle(conversation, { id: newId(), parent, role: 'assistant', content: written.spans.map(([text]) => text).join(''), note, spans: written.spans });
    } finally {
      written.node.remove();
    }
  }

  /** An answer that is done: kept, and drawn if its conversation is still the one that is shown. */
  async settle(conversation, message) {
    if (this.conversation === conversation) {
      await this.keep(message);
      const pinned = this.thread.pinned;
      const { scrollTop } = this.thread.host;
      this.draw();
      if (!pinned) this.thread.host.scrollTop = scrollTop;
      announce(say('answerDone', message.content.slice(0, 300)));
    } else if (conversation && message.content) {
      const { spans, ...record } = message;
      // Another conversation is shown by now; this one may even be gone, and then nobody misses its answer.
      await request(`/api/conversations/${conversation.id}/messages`, { method: 'POST', body: { ...record, tokens: spans } }).catch(() => {});
    }
  }

  /** Two answers, and a vote; both are kept then, the better one last, so that it is the branch that is shown. */
  async replyTwice(parent, asked, controller) {
    const { conversation, thread } = this;
    thread.pinned = true;
    const { comparison } = await import('./compare.js'); // most first visits compare nothing
    await comparison(thread.log, asked, controller.signal, { stick: () => thread.toEnd(), onVote: (answers) => {
      if (this.conversation !== conversation) return null;
      const both = answers.map((each) => ({ id: newId(), parent, role: 'assistant', ...each, spans: null }));
      this.goOn = async () => {
        try { // not where another branch is shown by now: what comes next belongs there
          if (this.conversation === conversation && this.leaf === parent) { for (const each of both) await this.keep(each); this.draw(); this.composer.focus(); }
          this.goOn = null;
        } catch (error) {
          this.leaf = parent; // again, as a whole: what is kept twice is there once
          thread.fail(error, () => this.goOn?.());
        }
        return !this.goOn;
      };
      return () => this.goOn?.();
    } });
  }

  /** Another answer from a token on: what was said before it, then the alternative, then what the model makes of it. */
  async branch(node, index, place, [token, logprob, bytes]) {
    const message = this.tree.messages.get(node.closest('.message').dataset.id);
    if (this.running || !message) return;
    this.running = new AbortController();
    let spans;
    try {
      spans = await this.spansOf(message);
    } catch (error) {
      this.running = null;
      this.thread.fail(error, () => this.branch(node, index, place, [token, logprob, bytes]));
      return;
    }
    const [, entries] = spans[index];
    const chosen = [token, logprob, entries[place][2], null, ...(bytes ? [bytes] : [])];
    const begun = [...spans.slice(0, index), [bytes ? '' : token, [...entries.slice(0, place), chosen]]];
    const writer = this.models.named(message.note.model);
    this.leaf = message.parent;
    this.draw();
    // By whom it was written; another model has numbers of its own for the same tokens.
    if (writer) this.reply(message.parent, begun, [writer]);
    else this.reply(message.parent, withoutIds(begun), [this.models.chosen]);
  }

  /** The tokens of the answer drawn in a node, also while it is being written. */
  async spansAt(node) {
    if (node && node === this.thread.writing?.node) return this.thread.writing.spans;
    return this.spansOf(this.tree.messages.get(node?.dataset.id));
  }

  /** The tokens of an answer, from the server when they are not here yet. */
  async spansOf(message) {
    if (!message || message.role !== 'assistant') return null;
    if (message.spans === undefined) {
      const { tokens } = await getJson(`/api/conversations/${this.conversation.id}/messages/${message.id}/tokens`);
      message.spans = tokens;
    }
    return message.spans;
  }

  inspect(message) {
    this.app.inspect = { messages: spoken(this.tree.path(message.id), this.conversation.system), model: message.note.model };
    this.app.open('inside');
  }
}
