/** The list of conversations: open, rename, delete, save. */
import { download, el, iconButton } from '../shell/dom.js';
import { getJson, send } from '../shell/api.js';
import { say } from '../shell/words.js';
import { asMarkdown, Tree } from './tree.js';

const DAY = 86400;

export class Sidebar {
  /** @param {{open: Function, fresh: Function, changed: Function, gone: Function}} acts changed(), gone(id): the list is not as it was */
  constructor(acts) {
    this.acts = acts;
    this.list = el('div', { class: 'list' });
    this.find = el('input', { type: 'search', tHint: 'search', tLabel: 'search', on: { input: () => this.draw() } });
    this.host = el('aside', { class: 'sidebar', tLabel: 'conversations', id: 'conversations' },
      el('div', { class: 'top' }, el('button', { type: 'button', class: 'new', on: { click: () => { this.toggle(false); acts.fresh(); } } },
        iconPlus(), el('span', { t: 'newChat' }))),
      this.find, el('nav', { tLabel: 'conversations' }, this.list));
    this.scrim = el('div', { class: 'scrim', on: { click: () => this.toggle(false) } });
    this.items = [];
    this.current = null;
    addEventListener('respeak', () => this.draw());
  }

  /** items: {id, title, updated} newest first. */
  show(items, current) {
    this.items = items;
    this.current = current;
    this.find.hidden = items.length < 8;
    this.draw();
  }

  draw() {
    const wanted = this.find.value.trim().toLowerCase();
    const shown = this.items.filter(({ title }) => title.toLowerCase().includes(wanted)).slice(0, 300);
    const now = Date.now() / 1000;
    let group = null;
    const nodes = [];
    for (const item of shown) {
      const age = now - item.updated;
      const name = age < DAY ? 'today' : age < 7 * DAY ? 'thisWeek' : 'before7';
      if (name !== group) { group = name; nodes.push(el('h3', { t: name })); }
      nodes.push(this.item(item));
    }
    if (!shown.length) nodes.push(el('p', { class: 'mute small none', t: this.items.length ? 'nothingFound' : 'noChats' }));
    this.list.replaceChildren(...nodes);
  }

  item(item) {
    const title = item.title || say('untitled');
    const more = el('details', { class: 'more' }, el('summary', { tLabel: ['moreOf', title] }, '⋯'), el('div', { class: 'menu' },
      el('button', { type: 'button', t: 'rename', on: { click: () => { more.open = false; this.rename(item, row); } } }),
      el('button', { type: 'button', t: 'saveMarkdown', on: { click: () => { more.open = false; this.save(item, 'md'); } } }),
      el('button', { type: 'button', t: 'saveJson', on: { click: () => { more.open = false; this.save(item, 'json'); } } }),
      el('button', { type: 'button', class: 'bad', t: 'remove', on: { click: () => { more.open = false; this.confirm(item); } } })));
    more.addEventListener('focusout', (event) => { if (!more.contains(event.relatedTarget)) more.open = false; });
    const link = el('a', { href: `/#${item.id}`, 'aria-current': item.id === this.current ? 'true' : null, title, on: {
      click: (event) => { event.preventDefault(); this.toggle(false); this.acts.open(item.id); } } }, title);
    const row = el('div', { class: 'item' }, link, more);
    return row;
  }

  rename(item, row) {
    const input = el('input', { type: 'text', maxlength: 200, value: item.title, tLabel: 'rename' });
    const done = (keep) => {
      input.onblur = null;
      if (keep && input.value.trim() && input.value !== item.title) this.change(item, input.value.trim());
      this.draw();
    };
    input.onblur = () => done(true);
    input.onkeydown = (event) => { if (event.key === 'Enter' && !event.isComposing) done(true); if (event.key === 'Escape') done(false); };
    row.replaceChildren(input);
    input.focus();
    input.select();
  }

  confirm(item) {
    const dialog = el('dialog', { class: 'ask', on: { close: () => { if (dialog.returnValue === 'yes') this.remove(item); dialog.remove(); } } },
      el('form', { method: 'dialog' }, el('h2', { t: 'removeSure' }), el('p', { class: 'mute' }, item.title || say('untitled')),
        el('div', { class: 'row' }, el('button', { value: 'no', autofocus: true, t: 'cancel' }), el('button', { value: 'yes', class: 'danger', t: 'remove' }))));
    document.body.append(dialog);
    dialog.showModal();
  }

  async change(item, title) {
    await send('PATCH', `/api/conversations/${item.id}`, { title });
    this.acts.changed();
  }

  async remove(item) {
    await send('DELETE', `/api/conversations/${item.id}`);
    this.acts.gone(item.id);
  }

  /** The whole tree as JSON, or the branch that is shown as a text. */
  async save(item, kind) {
    const found = await getJson(`/api/conversations/${item.id}`);
    const name = (found.title || 'chat').replace(/[^\p{L}\p{N}]+/gu, '-').slice(0, 40);
    if (kind === 'json') download(`${name}.json`, JSON.stringify(found, null, 1), 'application/json');
    else download(`${name}.md`, asMarkdown(found.title, new Tree(found.messages).path(found.leaf), { user: say('you'), assistant: say('model') }), 'text/markdown');
  }

  /** On a phone the list lies over the chat. */
  toggle(open = !this.host.classList.contains('open')) {
    this.host.classList.toggle('open', open);
    this.scrim.classList.toggle('open', open);
    this.button?.setAttribute('aria-expanded', String(open));
  }
}

const iconPlus = () => iconButton('plus', 'newChat', null, { tabindex: -1 }).firstChild;
